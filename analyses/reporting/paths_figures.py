"""Figures of `expert_paths`: ties over training, transitions, and every two layers."""

from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from analyses.reporting import figures, heatmap
from analyses.reporting.layer_panels import arm_handles, arm_line, shown_layers, step_grid
from analyses.reporting.paths_tables import first_runs, pair_names

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_NUMBERED = 10


def plot_ties(result: xr.Dataset) -> "Figure":
    """Information in nats, and the shares that it is of what there is: a column a layer."""
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    def draw(ax: "Axes", of_layer: xr.Dataset, name: str) -> None:
        ax.axhline(0, color=figures.NULL, lw=1)
        for kind, style in (("", {}), ("_given_token", {"ls": "--", "marker": None})):
            if name == "tie":
                width = of_layer[f"null_band{kind}"] - of_layer[f"null_mean{kind}"]
                low, high = (width.sel(ci_bound=end) for end in ("lower", "upper"))
                ax.fill_between(
                    of_layer["step"], low.min("run"), high.max("run"), color=figures.NULL,
                    alpha=0.3, lw=0,
                )  # fmt: skip
            for arm in of_layer["each_arm"].values:
                arm_line(ax, of_layer.sel(each_arm=arm), f"{name}{kind}", **style)

    line: dict[str, Any] = {"color": figures.INK, "lw": 1.3}
    figure = step_grid(
        result,
        ("tie", "tie_share"),
        draw,
        row_labels=("beyond chance (nat)", "share beyond chance"),
        handles=[
            *arm_handles(result),
            Line2D([], [], label="all", **line),
            Line2D([], [], ls="--", label="given the token id", **line),
            Patch(color=figures.NULL, alpha=0.3, lw=0, label="95% of the null"),
        ],
    )
    shown = result.sel(layer=shown_layers(result))
    with figures.style():
        for name, ax in zip(pair_names(shown), figure.axes, strict=False):
            figures.panel_title(ax, f"layers {name}")
    return figure


def plot_transitions(result: xr.Dataset) -> "Figure":
    """Where tokens of each expert go next: a row two layers, a column a run."""
    runs, layers = first_runs(result), shown_layers(result)
    n = result.sizes["from_rank"]
    side = 0.9 + 0.26 * n if n <= _NUMBERED else 3.0
    even = 1 / n
    norm = heatmap.diverging_norm(result["transition"].sel(run=runs).values, centre=even)
    with figures.style():
        figure = figures.new_figure(
            width=1.6 + side * len(runs), height=0.7 + (side + 0.3) * len(layers)
        )
        axes = figure.subplots(len(layers), len(runs), squeeze=False)
        for run, row in zip(runs, axes.T, strict=True):
            shown = result.sel(run=run, layer=layers)
            for i, (name, ax) in enumerate(zip(pair_names(shown), row, strict=True)):
                at = shown.isel(layer=i)
                given = at["transition"].transpose("from_rank", "to_rank").values
                heatmap.draw_percent(
                    ax, [np.vstack([given, at["next_load"].values])], norm,
                    rows=[*map(str, at["from_expert"].values), "all"],
                    columns=[*map(str, at["to_expert"].values)], numbered=n <= _NUMBERED,
                )  # fmt: skip
                ax.tick_params(labelsize=7)
                if n > _NUMBERED:
                    ax.set_xticks([])
                figures.panel_title(ax, str(run), f"layers {name}")
                ax.set_xlabel(f"expert of layer {int(at['next_layer'])}")
                ax.set_ylabel(f"expert of layer {int(at['layer'])}")
        heatmap.colorbar(figure, norm, centre=f"1/N = {even:.3g}", title="P(next expert | expert)")
    return figure


def plot_between(result: xr.Dataset) -> "Figure":
    """Share of a later layer's choice that each earlier one settles: a panel a run."""
    from matplotlib.colors import TwoSlopeNorm

    runs, layers = first_runs(result), [str(layer) for layer in result["moe_layer"].values]
    side = min(4.6, 1.0 + 0.3 * len(layers))
    shares = result["between"].sel(run=runs)
    largest = max(float(np.nanmax(shares.values, initial=0.0)), 1e-3)
    # the correction may take a share below 0
    norm = TwoSlopeNorm(0, -largest, largest)
    with figures.style():
        figure = figures.new_figure(width=1.6 + side * len(runs), height=1.0 + side)
        axes = figure.subplots(1, len(runs), squeeze=False)[0]
        for run, ax in zip(runs, axes, strict=True):
            values = shares.sel(run=run).transpose("moe_layer", "later_layer").values
            heatmap.draw_percent(
                ax, [values[:-1, 1:]], norm, rows=layers[:-1], columns=layers[1:], numbered=False
            )
            figures.panel_title(ax, str(run))
            ax.set_xlabel("later layer")
        axes[0].set_ylabel("earlier layer")
        heatmap.colorbar(figure, norm, centre="0", title="share settled")
    return figure
