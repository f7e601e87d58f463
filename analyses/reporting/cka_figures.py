"""Figures of `cka_over_time`: a panel a depth, a row a site of the block and a column a layer."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from analyses.reporting import figures, heatmap, pairs
from analyses.reporting.cohort import ENOUGH_SEEDS
from analyses.reporting.layer_panels import arm_handles, arm_line, shown_layers
from analyses.representation.cka import HEADLINE, PREPARATIONS

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SITE_TITLES = {
    "resid_pre": "before attention",
    "resid_mid": "after attention",
    "resid_post": "after MLP",
}
PREPARATION_TITLES = {"rows": "row-normalised", "raw": "raw", "z": "features z-scored"}
_DASHED, _SPARSE, _DOTTED = (0, (4, 2)), (0, (2, 5)), (0, (1, 1.5))
_LOWEST_DRAWN = 0.1


def plot_kinds(result: xr.Dataset) -> "Figure":
    """CKA of each kind of pair over training, at each depth, with its baselines."""
    from matplotlib.lines import Line2D

    def draw(ax: "Axes", at: xr.Dataset) -> None:
        at = at.sel(preparation=HEADLINE)
        for kind in at["kind"].values:
            of_kind, color = at.sel(kind=kind), figures.KIND_COLORS[str(kind)]
            _kind_line(ax, of_kind, "step", color)
            start = float(of_kind["kind_cka"].sel(step=of_kind["step"].min()))
            ax.axhline(start, color=color, lw=0.8, ls=_DOTTED)
            ax.plot(of_kind["step"], of_kind["shuffled"], color=figures.NULL, lw=0.8)
        if "depth_ceiling" in at:
            ceiling = at["depth_ceiling"].dropna("step")
            ax.plot(ceiling["step"], ceiling, color=figures.INK, lw=1.1, ls=_SPARSE)

    handles = [
        *_kind_handles(result),
        Line2D([], [], color=figures.INK, lw=0.8, ls=_DOTTED, label="at step 0"),
        Line2D([], [], color=figures.NULL, lw=0.8, label="units of text exchanged"),
    ]
    if "depth_ceiling" in result:
        label = "dense-MoE if single runs were all"
        handles.append(Line2D([], [], color=figures.INK, lw=1.1, ls=_SPARSE, label=label))
    return _depth_grid(result, draw, label="CKA", handles=handles)


def plot_pairs(result: xr.Dataset) -> "Figure":
    """CKA of every pair over training, averaged over depths."""
    return pairs.draw(result, "cka_mean", ceiling=True)


def plot_ratios(result: xr.Dataset) -> "Figure":
    """rho2 of each two arms over training, with both intervals."""
    from matplotlib.lines import Line2D

    contrasts, unit = result["contrast"].values, result["unit"].attrs["long_name"]
    # a ratio of values near 0 is noise, which would set the scale for all the rest
    told = (result["arms_cka_mean"] >= _LOWEST_DRAWN).all("arms")
    drawn = result.isel(step=np.flatnonzero(told))
    with figures.style():
        n_columns = min(4, len(contrasts))
        n_rows = -(-len(contrasts) // n_columns)
        figure = figures.new_figure(width=1.0 + 2.5 * n_columns, height=0.7 + 1.9 * n_rows)
        axes = figure.subplots(n_rows, n_columns, sharex=True, sharey=True, squeeze=False).ravel()
        for ax in axes[len(contrasts) :]:
            ax.set_visible(False)
        for i, (ax, contrast) in enumerate(zip(axes, contrasts, strict=False)):
            at = drawn.sel(contrast=contrast).dropna("step", subset=["rho2_mean"])
            ax.axhline(1, color=figures.CEILING, lw=1.2, ls=_DASHED)
            _band(ax, at, "rho2_mean", "step", figures.INK)
            figures.panel_title(ax, str(contrast))
            figures.step_axis(ax, result["step"].values.tolist())
            # only the last panel of each column has nothing below it
            below = i + n_columns < len(contrasts)
            ax.tick_params(labelbottom=not below)
            ax.set_xlabel("" if below else "step")
        figure.supylabel("rho2", fontsize=9)
        figure.legend(
            handles=[
                Line2D([], [], color=figures.CEILING, lw=1.2, ls=_DASHED,
                       label="arms differ as their seeds do"),
                *pairs.interval_handles(unit, runs=True),
            ],
            loc="outside lower center",
            ncols=3,
        )  # fmt: skip
    return figure


def plot_depths(result: xr.Dataset) -> "Figure":
    """CKA of every two depths of two runs, one pair a kind."""
    kinds, names = result["heat_kind"].values, result["depth"].values.astype(str).tolist()
    norm = heatmap.diverging_norm(np.ones(1), centre=0.5)
    side = 1.2 + 0.3 * len(names)
    with figures.style():
        figure = figures.new_figure(width=1.6 + side * max(1, len(kinds)), height=0.4 + side)
        axes = figure.subplots(1, max(1, len(kinds)), squeeze=False)[0]
        for ax, kind in zip(axes, kinds, strict=False):
            at = result.sel(heat_kind=kind)
            shares = at["heat"].transpose("depth", "other_depth").values
            heatmap.draw_percent(
                ax, [np.maximum(shares, 0)], norm, rows=names, columns=names,
                numbered=len(names) <= 12,
            )  # fmt: skip
            ax.set_aspect("equal")
            ax.set_ylabel(figures.label(f"{at['heat_a'].item()} (layer and site)"))
            ax.set_xlabel(figures.label(at["heat_b"].item()))
            figures.panel_title(ax, str(kind))
        heatmap.colorbar(figure, norm, centre="0.5", title="CKA")
    return figure


def plot_steps(result: xr.Dataset) -> "Figure":
    """CKA of every two steps of a run: a column for each run, a row for three of the depths."""
    runs, n = result["within_run"].values.astype(str), result.sizes["depth"]
    depths, steps = np.unique([0, n // 2, n - 1]), [f"{at:,}" for at in result["at_step"].values]
    norm = heatmap.diverging_norm(np.ones(1), centre=0.5)
    side = max(1.9, 0.2 * len(steps))
    with figures.style():
        figure = figures.new_figure(
            width=1.6 + side * len(runs), height=0.6 + (0.25 + side) * len(depths)
        )
        axes = figure.subplots(len(depths), len(runs), squeeze=False, sharex=True, sharey=True)
        for depth, of_row in zip(depths, axes, strict=True):
            for run, ax in zip(runs, of_row, strict=True):
                at = result["within"].sel(within_run=run).isel(depth=depth)
                heatmap.draw_percent(
                    ax, [np.maximum(at.transpose("at_step", "other_step").values, 0)], norm,
                    rows=steps, columns=steps, numbered=len(steps) <= 6,
                )  # fmt: skip
                ax.set_aspect("equal")
                ax.tick_params(labelsize=6)
                figures.panel_title(ax, figures.label(run), f"depth {at['depth'].item()}")
                ax.label_outer()
        for ax in axes[-1]:
            ax.set_xlabel("step")
        for ax in axes[:, 0]:
            ax.set_ylabel("step")
        heatmap.colorbar(figure, norm, centre="0.5", title="CKA")
    return figure


def plot_with_last(result: xr.Dataset) -> "Figure":
    """CKA of each arm's runs with their own last step, at each depth."""
    return _arm_grid(result, "with_last", "CKA with the last step")


def plot_change(result: xr.Dataset) -> "Figure":
    """1 - CKA across each attention and each MLP or experts, by arm."""
    return _arm_grid(result, "change", "1 - CKA with the depth before")


def plot_preparations(result: xr.Dataset) -> "Figure":
    """CKA of each kind of pair at the last step along depth, a panel a preparation."""
    last, names = result.isel(step=-1), result["depth"].values.astype(str).tolist()
    last = last.drop_vars(["layer", "site"]).assign_coords(depth=np.arange(len(names)))
    with figures.style():
        figure = figures.new_figure(width=10.0, height=3.4)
        axes = figure.subplots(1, len(PREPARATIONS), sharey=True)
        for ax, name in zip(axes, PREPARATIONS, strict=True):
            at = last.sel(preparation=name)
            for kind in at["kind"].values:
                color = figures.KIND_COLORS[str(kind)]
                _kind_line(ax, at.sel(kind=kind), "depth", color)
            ax.axhline(0, color=figures.NULL, lw=0.8)
            ax.set_xticks(range(len(names)), names, rotation=40, ha="right",
                          rotation_mode="anchor")  # fmt: skip
            figures.panel_title(ax, PREPARATION_TITLES[name])
            ax.set_xlabel("depth (layer and site)")
        axes[0].set_ylabel("CKA")
        figure.legend(handles=_kind_handles(result), loc="outside lower center", ncols=5)
    return figure


def _arm_grid(result: xr.Dataset, name: str, label: str) -> "Figure":
    def draw(ax: "Axes", at: xr.Dataset) -> None:
        for arm in at["each_arm"].values:
            of_arm = at.sel(each_arm=arm)
            if bool(of_arm[f"arm_{name}"].notnull().any()):
                arm_line(ax, of_arm, name)

    at = result.isel(
        depth=np.flatnonzero(result[f"arm_{name}"].notnull().any(("each_arm", "step")))
    )
    return _depth_grid(at, draw, label=label, handles=arm_handles(result))


def _depth_grid(
    result: xr.Dataset,
    draw: Callable[["Axes", xr.Dataset], None],
    *,
    label: str,
    handles: Sequence[Any],
) -> "Figure":
    """A figure whose panels `draw(ax, result at a depth)` fills, a row a site, a column a layer."""
    layers = list(dict.fromkeys(shown_layers(result)))
    sites = [s for s in SITE_TITLES if s in result["site"].values]
    with figures.style():
        figure = figures.new_figure(
            width=max(6.4, 1.2 + 2.6 * len(layers)), height=1.0 + 2.2 * len(sites)
        )
        axes = figure.subplots(len(sites), len(layers), sharex=True, sharey=True, squeeze=False)
        for site, of_row in zip(sites, axes, strict=True):
            for layer, ax in zip(layers, of_row, strict=True):
                at = np.flatnonzero((result["layer"] == layer) & (result["site"] == site))
                if len(at):
                    draw(ax, result.isel(depth=int(at[0])))
                    experts = site == "resid_post" and layer in result.attrs.get("moe_layers", ())
                    title = SITE_TITLES[site] + " or experts" * experts
                    figures.panel_title(ax, f"layer {layer}", title)
                figures.step_axis(ax, result["step"].values.tolist())
                ax.set_visible(bool(len(at)))
                ax.label_outer()
            # a depth may have no panel, as the first has none before it
            leftmost = next(ax for ax in of_row if ax.get_visible())
            leftmost.tick_params(labelleft=True)
            leftmost.set_ylabel(label)
        figure.legend(handles=list(handles), loc="outside lower center", ncols=4)
    return figure


def _kind_line(ax: "Axes", of_kind: xr.Dataset, dim: str, color: str) -> None:
    of_kind = of_kind.dropna(dim, subset=["kind_cka"])
    _band(ax, of_kind, "kind_cka", dim, color)


def _band(ax: "Axes", at: xr.Dataset, name: str, dim: str, color: str) -> None:
    """A curve with its band over units of text and its bars over runs."""
    low, high = at[f"{name}_ci"].transpose("ci_bound", dim)
    ax.fill_between(at[dim], low, high, color=color, alpha=0.15, lw=0)
    low, high = at[f"{name}_run_ci"].transpose("ci_bound", dim)
    ax.vlines(at[dim], low, high, color=color, lw=0.8)
    ax.plot(at[dim], at[name], color=color, lw=1.2, marker="o", markersize=2.6)


def _kind_handles(result: xr.Dataset) -> list[Any]:
    from matplotlib.lines import Line2D

    kinds = result["kind"].values.astype(str)
    n_runs = [int(n) for n in result["arm_n_runs"].values]
    return [
        *(Line2D([], [], color=figures.KIND_COLORS[kind], lw=1.4, label=kind) for kind in kinds),
        *pairs.interval_handles(
            result["unit"].attrs["long_name"], runs=max(n_runs) >= ENOUGH_SEEDS
        ),
    ]
