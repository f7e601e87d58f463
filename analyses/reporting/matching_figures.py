"""Figures of `expert_matching`: kappa over training, matched experts, routing and hidden states."""

from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from analyses.reporting import figures, heatmap
from analyses.reporting.layer_panels import shown_layers, step_grid

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_NUMBERED = 16


def arms_of(result: xr.Dataset) -> dict[str, tuple[str, str]]:
    """The two arms of each pair of arms, by its name."""
    names = (result[name].values.astype(str) for name in ("pair_arms", "arm_a", "arm_b"))
    return {arms: (a, b) for arms, a, b in zip(*names, strict=True)}


def plot_agreement(result: xr.Dataset) -> "Figure":
    """Kappa over steps, a column a layer; pairs of one arm above, pairs of two arms below."""
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    arms = arms_of(result)
    rows = {
        "same arm": [name for name, (a, b) in arms.items() if a == b],
        "two arms": [name for name, (a, b) in arms.items() if a != b],
    }
    rows = {row: names for row, names in rows.items() if names}

    def draw(ax: "Axes", of_layer: xr.Dataset, row: str) -> None:
        ax.axhline(0, color=figures.NULL, lw=1)
        for name in rows[row]:
            _line(ax, of_layer.sel(arms=name), *arms[name])

    unit = result["unit"].attrs["long_name"]
    dashed: dict[str, Any] = {"color": figures.INK, "lw": 0.9, "ls": "--"}
    return step_grid(
        result,
        tuple(rows),
        draw,
        row_labels=[f"kappa, {row}" for row in rows],
        handles=[
            *figures.arm_handles(dict.fromkeys(result["arm"].values.astype(str))),
            Patch(color=figures.INK, alpha=0.16, lw=0, label=f"95% interval over {unit}s"),
            *([Line2D([], [], color=figures.INK, lw=0.8, ls=":", label="95% interval over runs")]
              if result["arms_kappa_run_ci"].notnull().any() else []),
            Line2D([], [], label="if token ids alone tied them", **dashed),
            Line2D([], [], color=figures.NULL, lw=1, label="chance"),
        ],
    )  # fmt: skip


def _line(ax: "Axes", of_arms: xr.Dataset, first: str, second: str) -> None:
    """Kappa of one pair of arms, its dots in the colours of both."""
    of_arms = of_arms.dropna("step", subset=["arms_kappa"])
    a, b = figures.arm_color(first), figures.arm_color(second)
    line, step = a if first == second else "#9A9A9A", of_arms["step"]
    low, high = of_arms["arms_kappa_ci"].transpose("ci_bound", "step")
    ax.fill_between(step, low, high, color=line, alpha=0.16, lw=0)
    ax.plot(step, of_arms["arms_floor_kappa"], color=line, lw=0.9, ls="--")
    for end in of_arms["arms_kappa_run_ci"].transpose("ci_bound", "step"):
        ax.plot(step, end, color=line, lw=0.7, ls=":")
    ax.plot(step, of_arms["arms_kappa"], color=line, lw=1.2)
    ax.plot(
        step, of_arms["arms_kappa"], ls="", marker="o", markersize=4, markeredgewidth=0,
        fillstyle="left", markerfacecolor=a, markerfacecoloralt=b,
    )  # fmt: skip


def plot_matched(table: xr.DataArray, runs: tuple[str, str], *, uniform: float) -> "Figure":
    """Where the tokens of each expert of one run go in the other, a panel a layer.

    Parameters
    ----------
    table : (layer, expert, matched_expert) of `routing.matching.matched_table`.
    runs : names of the two.
    uniform : k/N.
    """
    layers, n_experts = shown_layers(table.to_dataset(name="share")), table.sizes["expert"]
    norm = heatmap.diverging_norm(table.values, centre=min(uniform, 0.999))
    side = min(3.6, 1.2 + 0.26 * n_experts)
    with figures.style():
        figure = figures.new_figure(width=1.6 + (side + 0.4) * len(layers), height=1.0 + side)
        axes = figure.subplots(1, len(layers), squeeze=False)[0]
        for layer, ax in zip(layers, axes, strict=True):
            shares = table.sel(layer=layer)
            few = n_experts <= 40
            heatmap.draw_percent(
                ax, [shares.values], norm,
                rows=[str(i) for i in range(n_experts)],
                columns=[str(j) if few else "" for j in shares["partner"].values],
                numbered=n_experts <= _NUMBERED,
            )  # fmt: skip
            figures.panel_title(ax, f"layer {layer}")
            ax.set_xlabel(figures.label(f"matched expert of {runs[1]}"))
        axes[0].set_ylabel(figures.label(f"expert of {runs[0]}"))
        heatmap.colorbar(
            figure, norm, centre=f"k/N = {uniform:.3g}", title=figures.axis_label(table)
        )
    return figure


def plot_cka(result: xr.Dataset) -> "Figure":
    """Routing CKA against hidden-state CKA, a panel a layer: pairs at the end, means on the way."""
    from matplotlib.lines import Line2D

    layers, arms = shown_layers(result), arms_of(result)
    where = int(np.flatnonzero(result["pair_hidden_cka"].notnull().any(["pair", "layer"]))[-1])
    with figures.style():
        figure = figures.new_figure(width=max(6.4, 1.2 + 3.0 * len(layers)), height=3.9)
        axes = figure.subplots(1, len(layers), sharex=True, sharey=True, squeeze=False)[0]
        for layer, ax in zip(layers, axes, strict=True):
            of_layer = result.sel(layer=layer)
            ax.axhline(0, color=figures.NULL, lw=1)
            ax.axvline(0, color=figures.NULL, lw=1)
            for name, (a, b) in arms.items():
                line = figures.arm_color(a) if a == b else "#9A9A9A"
                mean = of_layer.sel(arms=name)
                ax.plot(mean["arms_hidden_cka"], mean["arms_routing_cka"], color=line, lw=0.9)
                pairs = of_layer.isel(
                    step=where, pair=np.flatnonzero(of_layer["pair_arms"] == name)
                )
                ax.plot(
                    pairs["pair_hidden_cka"], pairs["pair_routing_cka"], ls="", marker="o",
                    markersize=4.5, markeredgewidth=0, fillstyle="left",
                    markerfacecolor=figures.arm_color(a), markerfacecoloralt=figures.arm_color(b),
                )  # fmt: skip
            figures.panel_title(ax, f"layer {layer}")
            ax.set_xlabel("hidden-state CKA")
        axes[0].set_ylabel("routing CKA")
        figure.legend(
            handles=[
                *figures.arm_handles(dict.fromkeys(result["arm"].values.astype(str))),
                Line2D([], [], color=figures.INK, lw=0.9, label="mean of two arms over training"),
            ],
            loc="outside lower center",
            ncols=4,
        )
    return figure
