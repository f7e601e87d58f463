"""Figures and tables of what `comparison.summary` made of pairs: pairs, kinds, two intervals.

One panel a kind of pair. A dot is a pair, its halves in the colours of the two arms. The line is
the mean of the kind, the band its interval over units of text, the bars its interval over runs.
"""

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from analyses.reporting import figures
from analyses.reporting.report import Table
from analyses.reporting.text import interval, listed, number

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def place_dim(result: xr.Dataset) -> str:
    """The dimension along which runs were compared: `step` or `loss_level`."""
    return "loss_level" if "loss_level" in result.dims else "step"


def place_text(result: xr.Dataset) -> str:
    """A single place in words: `step 400`, or `mean loss 4.75`."""
    if "loss_level" in result.coords:
        return f"mean loss {float(result['loss_level']):.2f}"
    return f"step {int(result['step']):,}"


def places_with_values(result: xr.Dataset, name: str) -> np.ndarray:
    """Indices of the places at which as many kinds of pair have a value as anywhere.

    Raises
    ------
    ValueError
        If there is none.
    """
    n_kinds = result[f"kind_{name}"].notnull().sum("kind").values
    if not n_kinds.any():
        raise ValueError(
            "there is no step that all runs of a kind of pair observed with finite losses; wait "
            "until the runs got further, or give the paths of runs that have steps in common"
        )
    return np.flatnonzero(n_kinds == n_kinds.max())


def draw(result: xr.Dataset, name: str, *, ceiling: bool = False, fisher: bool = False) -> "Figure":
    """One panel a kind of pair, over training.

    Parameters
    ----------
    result : with the variables of `summarize` for the measure `name` along one dimension of places.
    ceiling : whether to draw `ceiling` into the panel of dense-MoE.
    fisher : whether values are r², to be drawn on an axis even in Fisher's z.
    """
    from matplotlib.lines import Line2D

    kinds = result["kind"].values
    unit = result["unit"].attrs["long_name"]
    with figures.style():
        figure = figures.new_figure(width=1.0 + 2.9 * len(kinds), height=3.9)
        axes = figure.subplots(1, len(kinds), sharey=True, squeeze=False)[0]
        for ax, kind in zip(axes, kinds, strict=True):
            _panel(ax, result, name, str(kind))
            if ceiling and kind == "dense-MoE" and "ceiling" in result:
                at = result["ceiling"].dropna(place_dim(result))
                ax.plot(
                    at[place_dim(result)], at,
                    color=figures.CEILING, lw=1.2, ls=(0, (4, 2)), zorder=2.8,
                )  # fmt: skip
        if fisher:
            figures.fisher_axis(axes[0], largest=float(result[f"pair_{name}"].max()))
        axes[0].set_ylabel(figures.axis_label(result[f"kind_{name}"]))
        handles = [
            *figures.arm_handles(dict.fromkeys(result["arm"].values.astype(str))),
            Line2D([], [], color=figures.INK, lw=1.2, label="mean of the kind"),
            *interval_handles(unit, runs=bool(result[f"kind_{name}_run_ci"].notnull().any())),
        ]
        if ceiling and "ceiling" in result:
            label = "if noise of single runs were all"
            handles.append(
                Line2D([], [], color=figures.CEILING, lw=1.2, ls=(0, (4, 2)), label=label)
            )
        figure.legend(handles=handles, loc="outside lower center", ncols=5)
    return figure


def interval_handles(unit: str, *, runs: bool) -> list[Any]:
    """Legend entries of the band over units of text and, if wanted, of the bars over runs."""
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    handles: list[Any] = [
        Patch(color=figures.INK, alpha=0.15, lw=0, label=f"95% interval over {unit}s")
    ]
    if runs:
        bar: dict[str, Any] = {"lw": 0, "marker": "|", "markersize": 9, "markeredgewidth": 0.8}
        handles.append(Line2D([], [], color=figures.INK, label="95% interval over runs", **bar))
    return handles


def _panel(ax: "Axes", result: xr.Dataset, name: str, kind: str) -> None:
    dim = place_dim(result)
    pairs = result[[f"pair_{name}"]].isel(pair=np.flatnonzero(result["pair_kind"] == kind))
    n_pairs = pairs.sizes["pair"]
    for i in range(n_pairs):
        pair = pairs.isel(pair=i).dropna(dim, subset=[f"pair_{name}"])
        a, b = (figures.arm_color(str(pair[arm].item())) for arm in ("arm_a", "arm_b"))
        ax.plot(pair[dim], pair[f"pair_{name}"], color="#B5B5B5", lw=0.6, zorder=2.0)
        ax.plot(
            pair[dim], pair[f"pair_{name}"], ls="", marker="o", markeredgewidth=0, zorder=2.4,
            markersize=max(2.4, 4.8 / max(1, n_pairs / 8) ** 0.5), fillstyle="left",
            markerfacecolor=a, markerfacecoloralt=b,
        )  # fmt: skip
    names = [f"kind_{name}{suffix}" for suffix in ("", "_ci", "_run_ci")]
    mean = result[names].sel(kind=kind).dropna(dim, subset=names[:1])
    low, high = mean[names[1]].transpose("ci_bound", dim)
    ax.fill_between(mean[dim], low, high, color=figures.INK, alpha=0.15, lw=0)
    # many pairs would bury their mean, and a mean on top would bury few
    front = 2.6 if n_pairs > 12 else 2.2
    ax.plot(mean[dim], mean[names[0]], color="white", lw=2.6, zorder=front)
    ax.plot(mean[dim], mean[names[0]], color=figures.INK, lw=1.2, zorder=front)
    low, high = mean[names[2]].transpose("ci_bound", dim)
    ax.vlines(mean[dim], low, high, color=figures.INK, lw=0.8, zorder=front)
    ends = np.concatenate([low, high])
    ax.plot(np.tile(mean[dim], 2), ends, ls="", marker="_", ms=4, c=figures.INK, zorder=front)
    if mean.sizes[dim]:
        end = mean.isel({dim: -1})
        figures.end_label(ax, float(end[dim]), float(end[names[0]]), number(end[names[0]]))
    figures.panel_title(ax, kind, f"{n_pairs} pair{'s' if n_pairs > 1 else ''}")
    figures.place_axis(ax, result[dim])


def table(result: xr.Dataset, name: str, group: str, *, places: Iterable[int], title: str) -> Table:
    """A measure of each kind of pair, or pair of arms, at some places, with both intervals.

    Parameters
    ----------
    group : "kind" or "arms".
    places : indices of the places.
    """
    dim, unit = place_dim(result), result["unit"].attrs["long_name"]
    rows = []
    for label in result[group].values:
        for place in places:
            at = result.sel({group: label}).isel({dim: int(place)})
            rows.append(
                (
                    str(label),
                    place_text(at).split()[-1],
                    str(int(at[f"{group}_n_pairs"])),
                    number(at[f"{group}_{name}"]),
                    interval(*at[f"{group}_{name}_ci"].values),
                    interval(*at[f"{group}_{name}_run_ci"].values),
                )
            )
    measure = result[f"{group}_{name}"].attrs["long_name"]
    place_name = "mean loss" if dim == "loss_level" else "step"
    head = (group, place_name, "pairs", measure, f"95% over {unit}s", "95% over runs")
    return Table(title, head, tuple(rows))


def told_over_runs(at: xr.Dataset, name: str) -> xr.Dataset:
    """The contrasts of two arms whose measure has an interval over runs."""
    return at.isel(contrast=np.flatnonzero(at[f"{name}_run_ci"].notnull().all("ci_bound")))


def estimates(at: xr.Dataset, name: str) -> str:
    """What a measure is for each kind of pair at one place, in words, with both intervals."""
    texts = []
    for kind in at["kind"].values:
        of_kind = at.sel(kind=kind)
        over_text, over_runs = (
            interval(*of_kind[f"kind_{name}{suffix}"].values) for suffix in ("_ci", "_run_ci")
        )
        texts.append(f"{number(of_kind[f'kind_{name}'])} for {kind} ({over_text}; {over_runs})")
    return listed(texts)
