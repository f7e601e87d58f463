"""Figures of `expert_importance`: which metric predicts, how the best does, and by domain."""

from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from analyses.reporting import figures, heatmap
from analyses.reporting.layer_panels import shown_layers

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PRIMARY: dict[str, Any] = {"replacement": "mean", "tokens": "all"}
_TITLES = {"all": "all tokens", "served": "the tokens it serves"}


def plot_prediction(at: xr.Dataset, names: dict[str, str]) -> "Figure":
    """Mean rank correlation of every metric with importance: a row a metric, a mark an arm.

    Parameters
    ----------
    at : result at one step.
    names : of the metrics, as the axis has them.
    """
    arms = at["each_arm"].values.astype(str).tolist()
    rows = np.arange(len(names))
    with figures.style():
        figure = figures.new_figure(width=8.6, height=1.5 + 0.5 * len(names))
        axes = figure.subplots(1, 2, sharey=True)
        for ax, tokens in zip(axes, _TITLES, strict=True):
            chosen = at.sel(replacement="mean", tokens=tokens)
            for i, arm in enumerate(arms):
                where = rows + 0.7 * ((i + 0.5) / len(arms) - 0.5)
                _draw_arm(ax, chosen, arm, list(names), where)
            ax.axvline(0, color=figures.NULL, lw=1, ls="--")
            ax.set_xlim(-1.03, 1.03)
            ax.set_xlabel("mean Spearman's rho over experts")
            ax.grid(axis="y", visible=False)
            figures.panel_title(ax, f"importance over {_TITLES[tokens]}")
        axes[0].set_yticks(rows, [figures.label(name) for name in names.values()])
        axes[0].set_ylim(len(rows) - 0.5, -0.5)
        figure.legend(handles=_handles(at, arms), loc="outside lower center", ncols=6)
    return figure


def _draw_arm(ax: "Axes", at: xr.Dataset, arm: str, metrics: list[str], where: np.ndarray) -> None:
    of_arm, color = at.sel(each_arm=arm, metric=metrics), figures.arm_color(arm)
    for name, width in (("arm_rho_mean_run_ci", 1.0), ("arm_rho_mean_ci", 3.2)):
        low, high = of_arm[name].transpose("ci_bound", "metric").values
        ax.hlines(where, low, high, color=color, lw=width, alpha=1.0 if width < 2 else 0.35)
    runs = at["run_rho_mean"].sel(metric=metrics, run=at["arm"].values.astype(str) == arm)
    for of_run in runs.transpose("run", "metric").values:
        ax.plot(of_run, where, "|", color=color, markersize=5, mew=0.9)
    ax.plot(of_arm["arm_rho_mean"], where, "o", color=color, markersize=5)


def plot_best(at: xr.Dataset, best: dict[str, str], names: dict[str, str]) -> "Figure":
    """Importance of every expert against the metric that predicts best in its arm.

    Parameters
    ----------
    at : result at one step.
    best : {arm: metric}, of the arms that have one.
    names : of the metrics.
    """
    layers = shown_layers(at)
    with figures.style():
        figure = figures.new_figure(
            width=max(5.6, 1.2 + 2.9 * len(layers)), height=0.6 + 2.3 * len(best)
        )
        axes = figure.subplots(len(best), len(layers), squeeze=False)
        for (arm, metric), of_arm in zip(best.items(), axes, strict=True):
            runs = at.sel({"run": at["arm"].values.astype(str) == arm, **PRIMARY})
            for layer, ax in zip(layers, of_arm, strict=True):
                of_layer = runs.sel(layer=layer)
                for run in range(of_layer.sizes["run"]):
                    _draw_experts(ax, of_layer.isel(run=run), metric, figures.arm_color(arm), run)
                ax.axhline(0, color=figures.NULL, lw=1, ls="--")
                ax.set_xlabel(figures.label(names[metric]))
                ax.locator_params(axis="x", nbins=5)
                rho = float(of_layer["rho"].sel(metric=metric).mean())
                figures.panel_title(ax, f"{arm}, layer {layer}", f"mean rho {rho:.2f}")
            of_arm[0].set_ylabel("mean change of loss (nat)")
    return figure


def _draw_experts(ax: "Axes", of_run: xr.Dataset, metric: str, color: str, index: int) -> None:
    value, x = of_run["importance"].values, of_run["metric_value"].sel(metric=metric).values
    low, high = of_run["importance_ci"].transpose("ci_bound", "expert").values
    ax.vlines(x, low, high, color=color, lw=0.8, alpha=0.5)
    ax.plot(x, value, "osD^vPX*"[index % 8], color=color, markersize=4.2, alpha=0.85, lw=0)


def plot_domains(of_run: xr.Dataset) -> "Figure":
    """What a domain loses without each expert, beside the share of it that the expert serves.

    Parameters
    ----------
    of_run : result of one run at one step.
    """
    from matplotlib.colors import TwoSlopeNorm

    layers, columns = shown_layers(of_run), of_run["domain"].values.astype(str).tolist()
    n = of_run.sizes["expert"]
    height = 1.1 + len(layers) * (0.9 + 0.2 * min(n, 40))
    with figures.style():
        figure = figures.new_figure(width=3.0 + 0.66 * len(columns) + 1.6, height=height)
        axes = figure.subplots(len(layers), 2, squeeze=False)
        for layer, (left, right) in zip(layers, axes, strict=True):
            at = of_run.sel(layer=layer)
            share = at["share_of_domain"].transpose("expert", "domain").values
            of_mean = at["change_by_domain"].sel(replacement="mean")
            change, unit = _scaled(of_mean.transpose("expert", "domain").values)
            # experts that take most of one domain stand together
            order = np.lexsort([-share.max(axis=1), (share / share.mean(axis=0)).argmax(axis=1)])
            centre = share.sum(axis=0).mean() / n
            norm = heatmap.diverging_norm(share, centre=centre)
            rows = [str(e) for e in at["expert"].values[order]]
            kept = {"rows": rows, "columns": columns, "numbered": n <= 16}
            heatmap.draw_percent(left, [share[order]], norm, **kept)
            largest = max(float(np.nanmax(np.abs(change))), 1.0)
            # draw_percent writes 100 times the value
            diverging = TwoSlopeNorm(0, -largest / 100, largest / 100)
            heatmap.draw_percent(right, [change[order] / 100], diverging, **kept)
            left.set_ylabel("expert")
            figures.panel_title(left, f"layer {layer}: share served (%)")
            figures.panel_title(right, f"change of loss ({unit})")
    return figure


def _scaled(change: np.ndarray) -> tuple[np.ndarray, str]:
    """Whole numbers of at most two digits, and the unit that makes them so."""
    largest = float(np.nanmax(np.abs(change), initial=1e-8)) * 1.005  # 99.6 would round to 100
    power = int(np.floor(2 - np.log10(largest)))
    return np.round(change * 10.0**power) + 0.0, f"1e{-power} nat"


def _handles(at: xr.Dataset, arms: list[str]) -> list:
    from matplotlib.lines import Line2D

    unit = at["unit"].attrs["long_name"]
    ink = figures.INK
    return [
        *figures.arm_handles(arms),
        Line2D([], [], color=ink, lw=3.2, alpha=0.35, label=f"95% over {unit}s"),
        Line2D([], [], color=ink, lw=1, label="95% over runs"),
        Line2D([], [], color=ink, marker="|", lw=0, label="a run"),
    ]
