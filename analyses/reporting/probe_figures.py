"""Figures of `linear_probe`: a panel a target, over training and over depth."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from analyses.reporting import figures
from analyses.reporting.cohort import ENOUGH_SEEDS
from analyses.reporting.layer_panels import arm_handles, arm_line

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_COLUMNS, _LEAST = 4, 0.02
_LABELS = {"accuracy": "accuracy", "selectivity": "selectivity (accuracy - control)"}
_DOTTED, _DASHED = (0, (1, 1.5)), (0, (4, 2))


def plot_training(result: xr.Dataset, name: str) -> "Figure":
    """A measure over steps, at the last site of the first and of the last layer.

    Parameters
    ----------
    name : "accuracy" or "selectivity".
    """

    def draw(ax: "Axes", of_target: xr.Dataset) -> str:
        at = of_target.isel(site=-1)
        known = at[f"arm_{name}"].notnull().any(("each_arm", "step"))
        layers = at["layer"].values[known.values]
        ends = list(dict.fromkeys([int(layers[-1]), int(layers[0])]))
        _baselines(ax, at.sel(layer=ends[0]), name, "step")
        for arm in _arms_with(at, name):
            arm_line(ax, at.sel(layer=ends[0], each_arm=arm), name)
            for layer in ends[1:]:
                of_arm, color = at.sel(layer=layer, each_arm=arm), figures.arm_color(arm)
                ax.plot(of_arm["step"], of_arm[f"arm_{name}"], color=color, lw=0.8)
        figures.step_axis(ax, at["step"].values.tolist())
        return f"layers {ends[-1]} (thin) and {ends[0]}" if len(ends) > 1 else f"layer {ends[0]}"

    return _panels(result, name, draw)


def plot_depth(at: xr.Dataset, name: str) -> "Figure":
    """A measure at one step, over the sites of all layers in the order of computation.

    Parameters
    ----------
    at : the result at one step.
    name : "accuracy" or "selectivity".
    """
    along = at.stack(place=("layer", "site"))
    places = [f"{layer} {site.removeprefix('resid_')}" for layer, site in along["place"].values]
    along = along.drop_vars(["place", "layer", "site"])
    along = along.assign_coords(place=np.arange(len(places)))

    def draw(ax: "Axes", of_target: xr.Dataset) -> str:
        _baselines(ax, of_target, name, "place")
        for arm in _arms_with(of_target, name):
            of_arm, color = of_target.sel(each_arm=arm), figures.arm_color(arm)
            low, high = of_arm[f"arm_{name}_ci"].transpose("ci_bound", "place")
            ax.fill_between(of_arm["place"], low, high, color=color, alpha=0.16, lw=0)
            if of_arm["arm_n_runs"] >= ENOUGH_SEEDS:
                for end in of_arm[f"arm_{name}_run_ci"].transpose("ci_bound", "place"):
                    ax.plot(of_arm["place"], end, color=color, lw=0.6, ls=":")
            ax.plot(of_arm["place"], of_arm[f"arm_{name}"], color=color, lw=1.3, marker="o",
                    markersize=2.6)  # fmt: skip
        shown = np.unique(np.linspace(0, len(places) - 1, min(12, len(places))).round().astype(int))
        ax.set_xticks(shown, [places[i] for i in shown], rotation=60, ha="right", fontsize=7.5)
        return f"{int(of_target['n_classes'])} classes, {int(of_target['target_tokens']):,} tokens"

    return _panels(along, name, draw)


def _panels(result: xr.Dataset, name: str, draw: Callable[["Axes", xr.Dataset], str]) -> "Figure":
    from matplotlib.lines import Line2D

    targets = result["target"].values.astype(str)
    n_columns = min(_COLUMNS, len(targets))
    n_rows = -(-len(targets) // n_columns)
    handles: list[Any] = arm_handles(result)
    if name == "accuracy":
        handles += [
            Line2D([], [], color=figures.NULL, lw=1.2, ls=_DASHED, label="lookup by token id"),
            Line2D([], [], color=figures.NULL, lw=1.2, ls=_DOTTED, label="commonest class"),
        ]
    with figures.style():
        figure = figures.new_figure(width=max(6.4, 3.0 * n_columns), height=0.9 + 2.5 * n_rows)
        grid = figure.subplots(n_rows, n_columns, squeeze=False)
        axes = grid.ravel()
        for target, ax in zip(targets, axes, strict=False):
            detail = draw(ax, result.sel(target=target))
            ax.set_title(figures.label(target), pad=16)
            ax.text(0.0, 1.01, figures.label(detail), transform=ax.transAxes, fontsize=7.5,
                    color="#666666", va="bottom")  # fmt: skip
        for ax in axes[len(targets) :]:
            ax.set_visible(False)
        for row in grid:
            row[0].set_ylabel(_LABELS[name])
        figure.legend(handles=handles, loc="outside lower center", ncols=5)
    return figure


def _arms_with(of_target: xr.Dataset, name: str) -> list[str]:
    """The arms that have the target."""
    values = of_target[f"arm_{name}"]
    known = values.notnull().any([dim for dim in values.dims if dim != "each_arm"])
    return [str(arm) for arm in of_target["each_arm"].values[known.values]]


def _baselines(ax: "Axes", at: xr.Dataset, name: str, along: str) -> None:
    """The commonest class and the lookup: one line for all arms, where they have the same."""
    if name == "selectivity":
        ax.axhline(0, color=figures.NULL, lw=1)
        # differences of a token or two are not blown up to fill the panel
        ax.update_datalim([(0, -_LEAST), (0, _LEAST)], updatex=False)
        return
    for baseline, dashes in (("lookup", _DASHED), ("majority", _DOTTED)):
        values = at[f"arm_{baseline}"].transpose("each_arm", along)
        shared = np.allclose(values, values[0], equal_nan=True)
        for arm in at["each_arm"].values[: 1 if shared else None]:
            color = figures.NULL if shared else figures.arm_color(str(arm))
            ax.plot(at[along], values.sel(each_arm=arm), color=color, lw=1.1, ls=dashes)
