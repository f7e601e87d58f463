"""Figures of `loss_differences`: classes of tokens, over training, and token ids on two halves."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import xarray as xr

from analyses.reporting import figures
from analyses.reporting.cohort import ENOUGH_SEEDS
from analyses.reporting.pairs import place_dim

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MOST_PANELS = 6
_ORDERED = ("#0B2A4A", "#2F6B9A", "#E07B39", "#C9A227", "#7A7A7A")


def shown_pairs(result: xr.Dataset) -> list[str]:
    """Pairs that get a panel: each arm against the first one, and one arm against itself."""
    reference = result["arm_b"].values[0]
    against = (result["arm_b"] == reference) & (result["pair_kind"] != "same arm")
    itself = result["pair_kind"] == "same arm"
    names = result["arm_pair"].values
    return [*map(str, names[against][: MOST_PANELS - 1]), *map(str, names[itself])]


def plot_classes(at: xr.Dataset, shown: Sequence[str], *, rate: float) -> "Figure":
    """A row a class, a panel a pair of arms: the relative difference with both intervals.

    Parameters
    ----------
    at : the result at one place.
    shown : names of the pairs.
    rate : false discovery rate at which dots are filled.
    """
    at = at.isel(token_class=slice(None, -1))
    y = _rows(at["division"].values.astype(str))
    limit = _limit(at.sel(arm_pair=list(shown)))
    with figures.style():
        figure = figures.new_figure(width=2.9 + 2.15 * len(shown), height=1.1 + 0.2 * y.max())
        axes = figure.subplots(1, len(shown), sharex=True, sharey=True, squeeze=False)[0]
        for ax, name in zip(axes, shown, strict=True):
            _panel(ax, at.sel(arm_pair=name), y, limit, rate)
        rows = zip(at["token_class"].values, at["n_tokens"].values, strict=True)
        axes[0].set_yticks(y, [figures.label(f"{name} ({n:,})") for name, n in rows], fontsize=8)
        axes[0].set_ylim(y.max() + 0.9, -0.9)
        axes[len(shown) // 2].set_xlabel("difference of mean losses, less that of all tokens (nat)")
        figure.legend(handles=_handles(at, rate), loc="outside lower center", ncols=4)
    return figure


def _rows(division: np.ndarray) -> np.ndarray:
    """Heights of the rows, with a gap between divisions."""
    new = np.concatenate([[False], division[1:] != division[:-1]])
    return np.arange(len(division)) + 0.7 * np.cumsum(new)


def _limit(at: xr.Dataset) -> float:
    """Half the width of the axis: all dots and most bars, but not the few that would hide them."""
    dots = float(np.abs(at["relative"]).max())
    bars = np.abs(np.stack([at["relative_ci"].values, at["relative_run_ci"].values]))
    finite = bars[np.isfinite(bars)]
    return max(1.15 * dots, float(np.quantile(finite, 0.9)) if finite.size else 0.0, 1e-6)


def _panel(ax: "Axes", pair: xr.Dataset, y: np.ndarray, limit: float, rate: float) -> None:
    color = figures.arm_color(str(pair["arm_a"].item()))
    ax.axvline(0, color=figures.INK, lw=0.8)
    low, high = np.clip(pair["relative_ci"].transpose("ci_bound", ...).values, -limit, limit)
    ax.hlines(y, low, high, color=figures.NULL, lw=5, alpha=0.4)
    ends = pair["relative_run_ci"].transpose("ci_bound", ...).values
    ax.hlines(y, *np.clip(ends, -limit, limit), color=color, lw=1.1)
    for end, marker, at_end in zip(ends, "<>", (-limit, limit), strict=True):
        beyond = np.abs(end) > limit
        ax.plot(np.full(beyond.sum(), at_end), y[beyond], ls="", marker=marker, ms=4, color=color)
        ax.plot(end[~beyond], y[~beyond], ls="", marker="|", ms=5, color=color)
    reliable = pair["p_adjusted"].values <= rate
    for filled, face in ((False, "white"), (True, color)):
        of = reliable == filled
        ax.plot(
            pair["relative"].values[of], y[of], ls="", marker="o", ms=4.6, mec=color, mfc=face,
        )  # fmt: skip
    runs = f"{int(pair['n_runs_a'])} and {int(pair['n_runs_b'])} runs"
    ax.set_title(figures.label(pair["arm_pair"].item()), fontsize=9, pad=15)
    ax.text(0, 1.004, runs, transform=ax.transAxes, va="bottom", fontsize=8, color="#666666")
    ax.set_xlim(-1.04 * limit, 1.04 * limit)
    ax.grid(axis="y", visible=False)
    ax.tick_params(axis="y", length=0)


def _handles(at: xr.Dataset, rate: float) -> list:
    from matplotlib.lines import Line2D

    unit = at["unit"].attrs["long_name"]
    dots = {
        figures.INK: f"false discovery rate {rate:.0%}",
        "white": "not told from noise of seeds",
    }
    return [
        Line2D([], [], color=figures.NULL, lw=5, alpha=0.4, label=f"95% interval over {unit}s"),
        Line2D([], [], color=figures.INK, lw=1.1, marker="|", label="95% interval over runs"),
        *(
            Line2D([], [], lw=0, marker="o", ms=4.6, mec=figures.INK, mfc=face, label=text)
            for face, text in dots.items()
        ),
    ]


def plot_training(result: xr.Dataset, shown: Sequence[str]) -> "Figure":
    """Relative difference over training: a row a division, a panel a pair, a line a class."""
    dim = place_dim(result)
    present = list(dict.fromkeys(result["division"].values.astype(str)))
    wanted = [name for name in ("copying", "frequency", "token", "domain") if name in present]
    rows = (wanted or present[:-1])[:3]
    with figures.style():
        figure = figures.new_figure(width=2.6 + 2.3 * len(shown), height=0.6 + 2.1 * len(rows))
        axes = figure.subplots(len(rows), len(shown), sharex=True, sharey="row", squeeze=False)
        for division, row in zip(rows, axes, strict=True):
            of_row = result.isel(token_class=np.flatnonzero(result["division"] == division))
            largest = float(np.abs(of_row["relative"].sel(arm_pair=list(shown))).max())
            row[0].set_ylim(-1.15 * largest, 1.15 * largest)
            for ax, name in zip(row, shown, strict=True):
                _curves(ax, of_row.sel(arm_pair=name), dim)
                figures.place_axis(ax, result[dim])
                ax.label_outer()
            row[0].set_ylabel(division)
            handles, names = row[-1].get_legend_handles_labels()
            row[-1].legend(
                handles, names, loc="center left", bbox_to_anchor=(1.02, 0.5), fontsize=7.5
            )
        for ax, name in zip(axes[0], shown, strict=True):
            ax.set_title(figures.label(name), fontsize=9)
        for column, ax in enumerate(axes[-1]):
            if column != len(shown) // 2:
                ax.set_xlabel("")
        figure.supylabel("difference less that of all tokens (nat)", fontsize=9)
    return figure


def _curves(ax: "Axes", pair: xr.Dataset, dim: str) -> None:
    ax.axhline(0, color=figures.INK, lw=0.8)
    enough = min(int(pair["n_runs_a"]), int(pair["n_runs_b"])) >= ENOUGH_SEEDS
    for i, name in enumerate(pair["token_class"].values):
        of_class = pair.isel(token_class=i).dropna(dim, subset=["relative"])
        color = _ORDERED[i % len(_ORDERED)]
        if enough:
            low, high = of_class["relative_run_ci"].transpose("ci_bound", dim)
            ax.fill_between(of_class[dim], low, high, color=color, alpha=0.12, lw=0)
        shown = figures.label(str(name).partition(": ")[2])
        ax.plot(
            of_class[dim],
            of_class["relative"],
            color=color,
            lw=1.3,
            marker="o",
            ms=2.2,
            label=shown,
        )


def plot_types(at: xr.Dataset, shown: Sequence[str]) -> "Figure":
    """Difference in frequent token ids on the half they were chosen on, and on the other."""
    names = [name for name in shown if name in at["choice"].values]
    with figures.style():
        columns = min(3, len(names))
        rows = -(-len(names) // columns)
        figure = figures.new_figure(width=0.6 + 2.9 * columns, height=0.5 + 2.9 * rows)
        axes = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).ravel()
        for ax, name in zip(axes, names, strict=False):
            _scatter(ax, at.sel(choice=name), at.sel(arm_pair=name))
        for ax in axes[len(names) :]:
            ax.set_visible(False)
        figure.supxlabel("half that ids were chosen on (nat)", fontsize=9)
        figure.supylabel("other half (nat)", fontsize=9)
    return figure


def _scatter(ax: "Axes", choice: xr.Dataset, pair: xr.Dataset) -> None:
    color = figures.arm_color(str(pair["arm_a"].item()))
    ax.axline((0, 0), slope=1, color=figures.INK, lw=0.8, ls=(0, (4, 2)))
    ax.axhline(0, color=figures.INK, lw=0.8)
    ax.plot(*choice["type_difference"].transpose("half", ...).values, ls="", marker="o", ms=2.4,
            mew=0, color=figures.NULL, alpha=0.6)  # fmt: skip
    ax.plot(*choice["chosen_difference"].transpose("half", ...).values, ls="", marker="o", ms=4.6,
            mew=0, color=color)  # fmt: skip
    for before, after, text in zip(
        *choice["chosen_difference"].values, choice["chosen_text"].values, strict=True
    ):
        ax.annotate(figures.label(text), (before, after), xytext=(4, 3), textcoords="offset points",
                    fontsize=7)  # fmt: skip
    ax.set_title(figures.label(pair["arm_pair"].item()), fontsize=9)
