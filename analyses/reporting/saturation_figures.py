"""Figures of `router_saturation`: the matrix of steps, curves with their floors, ages of routes."""

from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from analyses.reporting import figures, heatmap
from analyses.reporting.cohort import ENOUGH_SEEDS
from analyses.reporting.layer_panels import arm_handles, arm_line, shown_layers, step_grid

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_NUMBERED = 10
_NAMED = 20


def plot_matrices(result: xr.Dataset) -> "Figure":
    """Saturation of every two steps: a row an arm, a column a layer."""
    arms, layers = result["each_arm"].values.astype(str), shown_layers(result)
    others = result["other_step"].values
    steps = [f"{step:,}" for step in others]
    # more names than these would cover each other
    every = -(-len(steps) // _NAMED)
    names = [step if i % every == 0 else "" for i, step in enumerate(steps)]
    chance = float(result["uniform_chance"])
    norm = heatmap.diverging_norm(np.ones(1), centre=min(chance, 0.999))
    side = min(3.6, 0.8 + 0.28 * len(steps))
    with figures.style():
        figure = figures.new_figure(
            width=1.6 + side * len(layers), height=0.6 + (side + 0.3) * len(arms)
        )
        axes = figure.subplots(len(arms), len(layers), squeeze=False)
        for arm, row in zip(arms, axes, strict=True):
            for layer, ax in zip(layers, row, strict=True):
                shares = result["arm_saturation"].sel(each_arm=arm, layer=layer, step=others)
                heatmap.draw_percent(
                    ax, [shares.transpose("step", "other_step").values], norm,
                    rows=steps, columns=names, numbered=len(steps) <= _NUMBERED,
                )  # fmt: skip
                ax.tick_params(labelsize=7)
                figures.panel_title(ax, arm, f"layer {layer}")
            row[0].set_ylabel("step")
        heatmap.colorbar(
            figure,
            norm,
            centre=f"k/N = {chance:.3g}",
            title=figures.axis_label(result["saturation"]),
        )
    return figure


def plot_stability(result: xr.Dataset) -> "Figure":
    """Saturation with the last step, with the step before, and the change rate, over training."""
    from matplotlib.lines import Line2D

    result = result.merge(_with_last(result))

    def draw(ax: "Axes", of_layer: xr.Dataset, name: str) -> None:
        for arm in of_layer["each_arm"].values:
            of_arm = of_layer.sel(each_arm=arm)
            if name != "change_rate":
                against = name.removeprefix("saturation_")
                chance = of_arm[f"arm_chance_{against}"]
                ax.plot(of_arm["step"], chance, color=figures.NULL, lw=1)
                arm_line(ax, of_arm, f"floor_{against}", ls="--", lw=1, marker=None)
            arm_line(ax, of_arm, name)

    line: dict[str, Any] = {"color": figures.INK, "lw": 1}
    return step_grid(
        result,
        ("saturation_last", "saturation_previous", "change_rate"),
        draw,
        row_labels=("saturation, last step", "saturation, step before", "change per doubling"),
        handles=[
            *arm_handles(result),
            Line2D([], [], ls="--", label="token-lookup floor", **line),
            Line2D([], [], color=figures.NULL, lw=1, label="chance given the loads"),
        ],
    )


def _with_last(result: xr.Dataset) -> xr.Dataset:
    """Saturation and chance with the last step, as curves over steps."""
    names = {
        f"arm_{name}{suffix}": f"arm_{name}_last{suffix}"
        for name in ("saturation", "chance")
        for suffix in ("", "_ci", "_run_ci")
    }
    return result[list(names)].isel(other_step=-1, drop=True).rename(names)


def plot_ages(result: xr.Dataset) -> "Figure":
    """Share of tokens with their last route for good, from each step on."""
    from matplotlib.lines import Line2D

    def draw(ax: "Axes", of_layer: xr.Dataset, name: str) -> None:
        for arm in of_layer["each_arm"].values:
            of_arm = of_layer.sel(each_arm=arm)
            chance = of_arm[f"arm_{name}_chance"]
            ax.plot(of_arm["step"], chance, color=figures.NULL, lw=1, ls="--")
            arm_line(ax, of_arm, name)

    chance = Line2D([], [], color=figures.NULL, lw=1, ls="--", label="chance given the loads")
    return step_grid(
        result,
        ("settled",),
        draw,
        row_labels=("share of tokens settled",),
        handles=[*arm_handles(result), chance],
        row_height=3.2,
    )


def plot_frequency(result: xr.Dataset) -> "Figure":
    """Mean age of routes by frequency of the token: a column a layer, a line an arm."""
    layers, name = shown_layers(result), "age_by_frequency"
    with figures.style():
        figure = figures.new_figure(width=max(6.4, 1.4 + 2.9 * len(layers)), height=3.8)
        axes = figure.subplots(1, len(layers), sharey=True, squeeze=False)[0]
        for layer, ax in zip(layers, axes, strict=True):
            for arm in result["each_arm"].values:
                at = result.sel(layer=layer, each_arm=arm)
                at = at.isel(frequency_bin=np.flatnonzero(at[f"arm_{name}"].notnull()))
                x, color = at["frequency_bin"], figures.arm_color(str(arm))
                low, high = at[f"arm_{name}_ci"].transpose("ci_bound", "frequency_bin")
                ax.fill_between(x, low, high, color=color, alpha=0.16, lw=0)
                if at["arm_n_runs"] >= ENOUGH_SEEDS:
                    for end in at[f"arm_{name}_run_ci"].transpose("ci_bound", "frequency_bin"):
                        ax.plot(x, end, color=color, lw=0.6, ls=":")
                ax.plot(x, at[f"arm_{name}"], color=color, lw=1.3, marker="o", markersize=3)
            ax.set_xscale("symlog", linthresh=1)
            ax.set_xlabel(figures.axis_label(result["frequency_bin"]))
            figures.panel_title(ax, f"layer {layer}")
        axes[0].set_ylabel("mean " + figures.axis_label(result[name]))
        axes[0].set_ylim(bottom=-0.3)
        figure.legend(handles=arm_handles(result), loc="outside lower center", ncols=4)
    return figure
