"""Figures of claims: each beside what it allows, and the curves that they are about.

A claim is a row: the shaded part is what it says, the dot the estimate, the wide bar its interval
over units of text, the thin one that over runs; the verdict stands on the right.
"""

from typing import TYPE_CHECKING

import numpy as np
import xarray as xr

from analyses.comparison.claims.hypotheses import OTHER
from analyses.reporting import figures, pairs

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_LINEAR = 0.01
_SHADE = "#DCE9F2"
_TIMES = "\N{MULTIPLICATION SIGN}"


def draw_claims(result: xr.Dataset) -> "Figure":
    """A row for each claim.

    Parameters
    ----------
    result : what `significance` returns, or some of its hypotheses.
    """
    from matplotlib.lines import Line2D

    n = result.sizes["hypothesis"]
    with figures.style():
        figure = figures.new_figure(width=11.5, height=1.1 + 0.27 * n)
        ax = figure.subplots()
        ends = np.concatenate([result[x].values.ravel() for x in ("ci", "run_ci")])
        reach = 1.3 * float(np.nanmax(np.abs([*ends, _LINEAR * 3])))
        ax.set_xscale("symlog", linthresh=_LINEAR, linscale=0.6)
        for i in range(n):
            _claim(ax, result.isel(hypothesis=i), y=i, reach=reach)
        families = result["family"].values
        for last in np.flatnonzero(families[1:] != families[:-1]):
            ax.axhline(last + 0.5, color="#999999", lw=0.8)
        ax.axvline(0, color=figures.NULL, lw=0.8)
        names = zip(result["hypothesis"].values, result["scale"].values, strict=True)
        ax.set_yticks(range(n), [figures.label(f"{claim} ({scale})") for claim, scale in names])
        powers = [p for p in (0.01, 0.1, 1.0, 10.0) if p <= reach]
        ticks = [*(-p for p in reversed(powers)), 0.0, *powers]
        ax.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        ax.set_xticks([], minor=True)
        ax.set_xlim(-reach, reach)
        ax.set_ylim(n - 0.5, -0.5)
        ax.grid(visible=False, axis="y")
        ax.set_xlabel("estimate on the scale in brackets; linear within ±0.01, then logarithmic")
        unit = result["unit"].attrs["long_name"]
        handles = [
            Line2D([], [], color=figures.INK, lw=6, alpha=0.3, label=f"95% interval over {unit}s"),
            Line2D([], [], color=figures.INK, lw=1, label="95% interval over runs"),
        ]
        figure.legend(handles=handles, loc="outside lower center", ncols=2)
    return figure


def _claim(ax: "Axes", row: xr.Dataset, *, y: int, reach: float) -> None:
    low, high = float(row["low"]), float(row["high"])
    ax.fill_between(
        [max(low, -reach), min(high, reach)], y - 0.42, y + 0.42, color=_SHADE, lw=0, zorder=0.5
    )
    ax.hlines(y, *row["ci"].values, color=figures.INK, lw=6, alpha=0.3)
    ax.hlines(y, *row["run_ci"].values, color=figures.INK, lw=1)
    ax.plot(float(row["estimate"]), y, marker="o", markersize=4.5, color=figures.INK)
    word = str(row["verdict"].item())
    told = word in ("supported", "refuted")
    ax.annotate(
        word, (1, y), xytext=(6, 0), xycoords=("axes fraction", "data"),
        textcoords="offset points", va="center", fontsize=8.5, annotation_clip=False,
        fontweight="bold" if told else "normal", color=figures.INK if told else "#666666",
    )  # fmt: skip


def draw_curves(result: xr.Dataset, similarity: xr.Dataset) -> "Figure":
    """r² within and between dense and each MoE arm, and rho2, with the places claims speak of.

    Parameters
    ----------
    result : what `significance` returns.
    similarity : what it was made from.
    """
    dense = str(result["family"].values[0])
    moes = [str(f) for f in dict.fromkeys(result["family"].values[1:]) if f not in (dense, OTHER)]
    trough = (result["test"] == "trough") & (result["family"] == dense)
    lowest = float(result["lowest"].values[trough.values][0])
    with figures.style():
        figure = figures.new_figure(width=1.4 + 3.1 * len(moes), height=5.8)
        axes = figure.subplots(2, len(moes), sharey="row", squeeze=False, height_ratios=[3, 2])
        for i, moe in enumerate(moes):
            _similarities(axes[0, i], similarity, dense, moe)
            own = result.isel(hypothesis=int(np.flatnonzero(result["family"] == moe)[0]))
            _contrast(axes[1, i], similarity, f"{dense} against {moe}", float(own["early"]))
            marks = {name: float(own[name]) for name in ("early", "end")}
            _places(axes[0, i], {**marks, "lowest": lowest}, named=True)
            _places(axes[1, i], marks, named=False)
            figures.panel_title(axes[0, i], moe)
        drawn = similarity["arms_r2"]
        figures.fisher_axis(axes[0, 0], largest=float(drawn.max()))
        axes[0, 0].set_ylabel("r² of per-token losses")
        axes[1, 0].set_ylabel("rho2")
        unit = similarity["unit"].attrs["long_name"]
        handles, names = axes[0, 0].get_legend_handles_labels()
        more = pairs.interval_handles(unit, runs=True)
        figure.legend(
            [*handles, *more], [*names, *(handle.get_label() for handle in more)],
            loc="outside lower center", ncols=5,
        )  # fmt: skip
    return figure


def _similarities(ax: "Axes", similarity: xr.Dataset, dense: str, moe: str) -> None:
    dim = pairs.place_dim(similarity)
    kinds = {"dense-dense": (dense, dense), "dense-MoE": (dense, moe), "MoE-MoE": (moe, moe)}
    for kind, arms in kinds.items():
        if (name := f" {_TIMES} ".join(arms)) not in similarity["arms"]:
            continue
        names = [f"arms_r2{suffix}" for suffix in ("", "_ci", "_run_ci")]
        at = similarity[names].sel(arms=name).dropna(dim, subset=names[:1])
        color = figures.KIND_COLORS[kind]
        low, high = at["arms_r2_ci"].transpose("ci_bound", dim)
        ax.fill_between(at[dim], low, high, color=color, alpha=0.15, lw=0)
        low, high = at["arms_r2_run_ci"].transpose("ci_bound", dim)
        ax.vlines(at[dim], low, high, color=color, lw=0.8)
        ax.plot(at[dim], at["arms_r2"], color=color, lw=1.2, marker="o", markersize=2.6, label=kind)
    figures.place_axis(ax, similarity[dim])


def _contrast(ax: "Axes", similarity: xr.Dataset, contrast: str, early: float) -> None:
    """rho2 from early on; before, it is a ratio of small correlations."""
    dim = pairs.place_dim(similarity)
    ax.axhline(1, color=figures.CEILING, lw=1.2, ls=(0, (4, 2)))
    ax.axhspan(0.99, 1.01, color=_SHADE, lw=0, zorder=0.5)
    if contrast in similarity["contrast"]:
        reached = similarity[dim] >= early if dim == "step" else similarity[dim] <= early
        names = [f"rho2{suffix}" for suffix in ("", "_ci", "_run_ci")]
        at = similarity[names].sel(contrast=contrast).isel({dim: np.flatnonzero(reached)})
        at = at.dropna(dim, subset=names[:1])
        low, high = at["rho2_ci"].transpose("ci_bound", dim)
        ax.fill_between(at[dim], low, high, color=figures.INK, alpha=0.15, lw=0)
        low, high = at["rho2_run_ci"].transpose("ci_bound", dim)
        ax.vlines(at[dim], low, high, color=figures.INK, lw=0.8)
        ax.plot(at[dim], at["rho2"], color=figures.INK, lw=1.2, marker="o", markersize=2.6)
    figures.place_axis(ax, similarity[dim])


def _places(ax: "Axes", places: dict[str, float], *, named: bool) -> None:
    for name, place in places.items():
        if not np.isfinite(place):
            continue
        ax.axvline(place, color=figures.NULL, lw=0.9, ls=":", zorder=1)
        if named:
            ax.annotate(
                name, (place, 0), xycoords=("data", "axes fraction"), xytext=(-2, 3),
                textcoords="offset points", ha="right", fontsize=7.5, color="#666666",
            )  # fmt: skip
