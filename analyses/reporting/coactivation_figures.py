"""Figures of `expert_coactivation`: lift of every pair, and distance from chance over training."""

from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from analyses.reporting import figures, heatmap
from analyses.reporting.coactivation_tables import SIGNIFICANT, shown_runs
from analyses.reporting.layer_panels import arm_handles, arm_line, shown_layers, step_grid
from analyses.statistics.coactivation import partners_side_by_side, square

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colors import TwoSlopeNorm
    from matplotlib.figure import Figure

_NUMBERED = 10
_NAMED = 20


def plot_lifts(result: xr.Dataset) -> "Figure":
    """Lift of every pair at the last step: a row a run, one of each arm, a column a layer."""
    at, runs, layers = result.isel(step=-1), shown_runs(result), shown_layers(result)
    shown = at[["lift", "lift_within"]].sel(run=runs, layer=layers).to_array().values
    # one pair of rare experts must not make all others white
    top = np.nanquantile(shown, 0.99) if np.isfinite(shown).any() else 2.0
    norm = heatmap.diverging_norm(np.array([top]), centre=1.0)
    side = min(4.2, 0.9 + 0.3 * result.sizes["expert"])
    with figures.style():
        figure = figures.new_figure(
            width=max(6.4, 1.6 + side * len(layers)), height=0.8 + (side + 0.3) * len(runs)
        )
        axes = figure.subplots(len(runs), len(layers), squeeze=False)
        for run, row in zip(runs, axes, strict=True):
            for layer, ax in zip(layers, row, strict=True):
                _draw_lifts(ax, at.sel(run=run, layer=layer), norm)
                figures.panel_title(ax, run, f"layer {layer}")
            row[0].set_ylabel("expert")
        title = f"lift\n(below the diagonal: within {at['unit'].attrs['long_name']}s)"
        heatmap.colorbar(figure, norm, centre="1", title=title)
    return figure


def _draw_lifts(ax: "Axes", at: xr.Dataset, norm: "TwoSlopeNorm") -> None:
    """Beyond the loads above the diagonal, beyond those within units below it."""
    order = partners_side_by_side(at["lift"].values)
    upper = np.triu(np.ones((len(order), len(order)), dtype=bool), k=1)

    def arranged(name: str) -> np.ndarray:
        whole, within = (
            square(at[f"{name}{suffix}"].values)[np.ix_(order, order)] for suffix in ("", "_within")
        )
        return np.where(upper, whole, within)

    lifts, p, names = arranged("lift"), arranged("p"), [str(expert) for expert in order]
    if len(order) > _NAMED:
        names = [""] * len(order)
    heatmap.draw_percent(ax, [lifts], norm, rows=names, columns=names, numbered=False)
    ax.tick_params(labelsize=7, labelrotation=0)
    for i, j in np.ndindex(lifts.shape) if len(order) <= _NUMBERED else ():
        if np.isfinite(lifts[i, j]):
            ink = "white" if abs(norm(lifts[i, j]) - 0.5) > 0.3 else figures.INK
            weight = "bold" if p[i, j] <= SIGNIFICANT else "normal"
            ax.text(j + 0.5, i + 0.5, f"{100 * lifts[i, j]:.0f}", ha="center", va="center",
                    fontsize=6.5, color=ink, fontweight=weight)  # fmt: skip


def plot_spread(result: xr.Dataset) -> "Figure":
    """Typical |lift - 1| beside both nulls, and agreement with the last step, over training."""
    from matplotlib.lines import Line2D

    unit = result["unit"].attrs["long_name"]

    def draw(ax: "Axes", of_layer: xr.Dataset, name: str) -> None:
        ax.axhline(0, color=figures.NULL, lw=1)
        for arm in of_layer["each_arm"].values:
            of_arm = of_layer.sel(each_arm=arm)
            if name == "spread":
                ax.plot(of_arm["step"], of_arm["arm_noise"], color=figures.NULL, lw=1, ls="--")
                arm_line(ax, of_arm, "spread_within", ls="--", lw=1, marker=None)
            arm_line(ax, of_arm, name)

    line: dict[str, Any] = {"color": figures.INK, "lw": 1}
    null: dict[str, Any] = {"color": figures.NULL, "lw": 1}
    return step_grid(
        result,
        ("spread", "agreement"),
        draw,
        row_labels=("typical |lift - 1|", "agreement, last step"),
        handles=[
            *arm_handles(result),
            Line2D([], [], ls="--", label=f"loads kept within {unit}s", **line),
            Line2D([], [], label="chance", **null),
            Line2D([], [], ls="--", label="noise alone", **null),
        ],
        row_height=2.7,
    )
