"""Figures of `routing_locality`: repetition and its excess, over training and by lag."""

from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from analyses.reporting import figures
from analyses.reporting.cohort import ENOUGH_SEEDS
from analyses.reporting.layer_panels import arm_handles, shown_layers, step_grid
from analyses.routing.locality import ALL, OTHER

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Row = tuple[str, str, str]


def _rows(result: xr.Dataset) -> dict[str, Row]:
    """What rows show: label, and of it the measure, choice and pairs."""
    rows: dict[str, Row] = {}
    for choice in result["choice"].values.astype(str):
        rows[f"same {choice} choice" if choice == "first" else "any choice the same"] = (
            "repetition", choice, ALL,
        )  # fmt: skip
    choice = str(result["choice"].values[-1])
    rows["beyond the sequence,\nall pairs"] = ("beyond_text", choice, ALL)
    rows["beyond the sequence,\npairs of two ids"] = ("beyond_text", choice, OTHER)
    return rows


def plot_steps(result: xr.Dataset) -> "Figure":
    """Repetition at lag 1 and its excess over training: a row a measure, a column a layer."""
    rows = _rows(result)

    def draw(ax: "Axes", of_layer: xr.Dataset, label: str) -> None:
        _draw(ax, of_layer, rows[label], along="step")

    labels = _labels(result, rows)
    figure = step_grid(
        result, list(rows), draw, row_labels=labels, handles=_handles(result), row_height=2.1
    )
    for label, ax in zip(labels, figure.axes[:: len(shown_layers(result))], strict=True):
        ax.set_ylabel(label)  # on two lines
    return figure


def plot_lags(result: xr.Dataset) -> "Figure":
    """The same at the last step, by lag."""
    rows, layers, lag = _rows(result), shown_layers(result), result["lag"].values
    at = result.isel(step=-1)
    with figures.style():
        figure = figures.new_figure(
            width=max(6.4, 1.4 + 2.9 * len(layers)), height=0.9 + 2.1 * len(rows)
        )
        axes = figure.subplots(len(rows), len(layers), sharex=True, sharey="row", squeeze=False)
        for row, label, of_row in zip(rows.values(), _labels(result, rows), axes, strict=True):
            for layer, ax in zip(layers, of_row, strict=True):
                _draw(ax, at.sel(layer=layer), row, along="lag")
                ax.set_xscale("log", base=2)
                ax.set_xticks(lag, [str(d) for d in lag])
                ax.set_xticks([], minor=True)
                ax.set_xlabel("lag, in tokens")
                ax.label_outer()
            of_row[0].set_ylabel(label)
        for layer, ax in zip(layers, axes[0], strict=True):
            figures.panel_title(ax, f"layer {layer}")
        figure.legend(handles=_handles(result), loc="outside lower center", ncols=4)
    return figure


def _labels(result: xr.Dataset, rows: dict[str, Row]) -> list[str]:
    several = result.sizes["choice"] > 1
    return [
        f"{label} ({choice})" if several and name == "beyond_text" else label
        for label, (name, choice, _) in rows.items()
    ]


def _draw(ax: "Axes", of_layer: xr.Dataset, row: Row, *, along: str) -> None:
    """One measure of all arms over steps, or over lags; arms without values have no line."""
    name, choice, pairs = row
    at = of_layer.sel(choice=choice, pairs=pairs)
    prefix = "" if along == "step" else "lag_"
    if name == "beyond_text":
        ax.axhline(0, color=figures.NULL, lw=1)
    else:
        ax.axhline(float(at["uniform_chance"]), color=figures.NULL, lw=1, ls=":")
    for arm in at["each_arm"].values:
        of_arm, color = at.sel(each_arm=arm), figures.arm_color(str(arm))
        x, stem = of_arm[along].values, f"arm_{prefix}{name}"
        if name == "repetition":
            by_load = np.broadcast_to(of_arm["arm_load_chance"].values, x.shape)
            ax.plot(x, by_load, color=figures.NULL, lw=1)
            ax.plot(x, of_arm[f"arm_{prefix}text_chance"], color=color, lw=1, ls="--")
        low, high = of_arm[f"{stem}_ci"].transpose("ci_bound", along)
        ax.fill_between(x, low, high, color=color, alpha=0.16, lw=0)
        if of_arm["arm_n_runs"] >= ENOUGH_SEEDS:
            for end in of_arm[f"{stem}_run_ci"].transpose("ci_bound", along):
                ax.plot(x, end, color=color, lw=0.6, ls=":")
        ax.plot(x, of_arm[stem], color=color, lw=1.3, marker="o", markersize=2.6)


def _handles(result: xr.Dataset) -> list[Any]:
    from matplotlib.lines import Line2D

    line: dict[str, Any] = {"lw": 1}
    return [
        *arm_handles(result),
        Line2D([], [], color=figures.INK, ls="--", label="sequence reordered", **line),
        Line2D([], [], color=figures.NULL, label="loads alone; or 0", **line),
        Line2D([], [], color=figures.NULL, ls=":", label="even loads", **line),
    ]
