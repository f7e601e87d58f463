"""Panels in a grid, a row a measure and a column a layer, steps along the axis below."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from analyses.reporting import figures
from analyses.reporting.cohort import ENOUGH_SEEDS

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_MOST = 6


def shown_layers(result: xr.Dataset) -> list[int]:
    """At most six layers, evenly spaced from the first to the last."""
    layers = result["layer"].values
    chosen = np.linspace(0, len(layers) - 1, min(_MOST, len(layers))).round().astype(int)
    return [int(layer) for layer in layers[chosen]]


def step_grid(
    result: xr.Dataset,
    rows: Sequence[str],
    draw: Callable[["Axes", xr.Dataset, str], None],
    *,
    row_labels: Sequence[str],
    handles: Sequence[Any],
    row_height: float = 2.3,
) -> "Figure":
    """A figure whose panels `draw(ax, result of a layer, row)` fills.

    Parameters
    ----------
    rows : what each row shows, given to `draw`.
    row_labels : of the vertical axes.
    handles : of the legend.
    """
    layers = shown_layers(result)
    with figures.style():
        figure = figures.new_figure(
            width=max(6.4, 1.4 + 2.9 * len(layers)), height=0.9 + row_height * len(rows)
        )
        axes = figure.subplots(len(rows), len(layers), sharex=True, sharey="row", squeeze=False)
        for row, label, of_row in zip(rows, row_labels, axes, strict=True):
            for layer, ax in zip(layers, of_row, strict=True):
                draw(ax, result.sel(layer=layer), row)
                figures.step_axis(ax, result["step"].values.tolist())
                ax.label_outer()
            of_row[0].set_ylabel(figures.label(label))
        for layer, ax in zip(layers, axes[0], strict=True):
            figures.panel_title(ax, f"layer {layer}")
        figure.legend(handles=list(handles), loc="outside lower center", ncols=4)
    return figure


def arm_line(ax: "Axes", of_arm: xr.Dataset, name: str, **style: Any) -> None:
    """A measure of one arm over steps, with its band over units and, dotted, its ends over runs."""
    of_arm = of_arm.dropna("step", subset=[f"arm_{name}"])
    color = figures.arm_color(str(of_arm["each_arm"].item()))
    low, high = of_arm[f"arm_{name}_ci"].transpose("ci_bound", "step")
    ax.fill_between(of_arm["step"], low, high, color=color, alpha=0.16, lw=0)
    if of_arm["arm_n_runs"] >= ENOUGH_SEEDS:
        for end in of_arm[f"arm_{name}_run_ci"].transpose("ci_bound", "step"):
            ax.plot(of_arm["step"], end, color=color, lw=0.6, ls=":")
    shown: dict[str, Any] = {"lw": 1.3, "marker": "o", "markersize": 2.6} | style
    ax.plot(of_arm["step"], of_arm[f"arm_{name}"], color=color, **shown)


def arm_handles(result: xr.Dataset, *, runs: bool = True) -> list[Any]:
    """Legend entries of the arms and of both intervals."""
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    unit = result["unit"].attrs["long_name"]
    handles: list[Any] = [
        *figures.arm_handles(result["each_arm"].values.astype(str)),
        Patch(color=figures.INK, alpha=0.16, lw=0, label=f"95% interval over {unit}s"),
    ]
    if runs and int(result["arm_n_runs"].max()) >= ENOUGH_SEEDS:
        label = "95% interval over runs"
        handles.append(Line2D([], [], color=figures.INK, lw=0.8, ls=":", label=label))
    return handles
