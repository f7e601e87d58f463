"""Figures and a table of how far arms are apart beyond the noise of their seeds.

For what `comparison.summary` and `comparison.excess` made of a distance between runs.
"""

from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from analyses.reporting import figures, pairs
from analyses.reporting.report import Table
from analyses.reporting.text import interval, number

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def draw_arms(at: xr.Dataset, name: str) -> "Figure":
    """Distance within each arm and between each two, at one place; the dash is what seeds leave.

    Parameters
    ----------
    at : with the variables of `summarize` and `arm_excess` for the distance `name`, at one place.
    """
    from matplotlib.lines import Line2D

    arms = [str(a) for a in at["arms"].values if np.isfinite(at[f"arms_{name}"].sel(arms=a))]
    of_arms = {
        str(label): (str(a), str(b))
        for label, a, b in zip(
            *(at[n].values for n in ("pair_arms", "arm_a", "arm_b")), strict=True
        )
    }
    arms.sort(key=lambda label: of_arms[label][0] != of_arms[label][1])
    noise = _noise(at, name)
    n_within = sum(a == b for a, b in (of_arms[label] for label in arms))
    with figures.style():
        figure = figures.new_figure(width=7.2, height=1.3 + 0.24 * len(arms))
        ax = figure.subplots()
        for row, label in enumerate(arms):
            y = -row - (0.7 if row >= n_within else 0)
            _row(ax, at.sel(arms=label), name, y, of_arms[label])
            if of_arms[label] in noise:
                x = noise[of_arms[label]]
                ax.plot([x, x], [y - 0.38, y + 0.38], color=figures.CEILING, lw=1.6, zorder=2.1)
        ticks = [-row - (0.7 if row >= n_within else 0) for row in range(len(arms))]
        ax.set_yticks(ticks, [figures.label(label) for label in arms])
        ax.set_xlabel(figures.axis_label(at[f"arms_{name}"]))
        ax.grid(axis="y", visible=False)
        dash: dict[str, Any] = {"marker": "|", "markersize": 11, "markeredgewidth": 1.6, "lw": 0}
        seeds = Line2D([], [], color=figures.CEILING, label="from the noise of seeds alone", **dash)
        text, *_ = pairs.interval_handles(at["unit"].attrs["long_name"], runs=False)
        handles = [seeds, text]
        if at[f"arms_{name}_run_ci"].notnull().any():
            handles.append(
                Line2D([], [], color=figures.INK, lw=0.8, label="95% interval over runs")
            )
        figure.legend(handles=handles, loc="outside lower center", ncols=3)
    return figure


def _noise(at: xr.Dataset, name: str) -> dict[tuple[str, str], float]:
    """What seeds alone leave between each two arms, both ways round."""
    found = {}
    for contrast in at["contrast"].values:
        of_arms = at.sel(contrast=contrast)
        a, b = str(of_arms["contrast_a"].item()), str(of_arms["contrast_b"].item())
        found[a, b] = found[b, a] = float(of_arms[f"seed_{name}"])
    return found


def _row(ax: "Axes", of_arms: xr.Dataset, name: str, y: float, arms: tuple[str, str]) -> None:
    value = float(of_arms[f"arms_{name}"])
    ax.hlines(y, *of_arms[f"arms_{name}_ci"].values, color=figures.INK, lw=5, alpha=0.15)
    low, high = of_arms[f"arms_{name}_run_ci"].values
    if np.isfinite(low):
        ax.hlines(y, low, high, color=figures.INK, lw=0.8)
        ax.plot([low, high], [y, y], ls="", marker="|", ms=5, color=figures.INK)
    a, b = map(figures.arm_color, arms)
    ax.plot(
        value, y, ls="", marker="o", markersize=6, markeredgewidth=0, zorder=2.5,
        fillstyle="left", markerfacecolor=a, markerfacecoloralt=b,
    )  # fmt: skip


def draw_excess(result: xr.Dataset, name: str) -> "Figure":
    """Excess of each two arms over training, with both intervals."""
    from matplotlib.lines import Line2D

    dim, unit = pairs.place_dim(result), result["unit"].attrs["long_name"]
    contrasts = result["contrast"].values
    n_columns = min(4, len(contrasts))
    n_rows = -(-len(contrasts) // n_columns)
    with figures.style():
        figure = figures.new_figure(width=1.0 + 2.3 * n_columns, height=0.8 + 1.8 * n_rows)
        axes = figure.subplots(n_rows, n_columns, sharex=True, sharey=True, squeeze=False).ravel()
        for ax in axes[len(contrasts) :]:
            ax.set_visible(False)
        for i, (ax, contrast) in enumerate(zip(axes, contrasts, strict=False)):
            at = result.sel(contrast=contrast).dropna(dim, subset=[f"excess_{name}"])
            ax.axhline(0, color=figures.CEILING, lw=1.2, ls=(0, (4, 2)))
            low, high = at[f"excess_{name}_ci"].transpose("ci_bound", dim)
            ax.fill_between(at[dim], low, high, color=figures.INK, alpha=0.15, lw=0)
            low, high = at[f"excess_{name}_run_ci"].transpose("ci_bound", dim)
            ax.vlines(at[dim], low, high, color=figures.INK, lw=0.8)
            ax.plot(at[dim], at[f"excess_{name}"], color=figures.INK, lw=1.2, marker="o", ms=2.6)
            figures.panel_title(ax, str(contrast))
            figures.place_axis(ax, result[dim])
            # only the last panel of each column has nothing below it
            below = i + n_columns < len(contrasts)
            ax.tick_params(labelbottom=not below)
            ax.set_xlabel("" if below else "step" if dim == "step" else "mean loss (nat)")
        figure.supylabel(figures.axis_label(result[f"excess_{name}"]), fontsize=9)
        dashed: dict[str, Any] = {"color": figures.CEILING, "lw": 1.2, "ls": (0, (4, 2))}
        figure.legend(
            handles=[Line2D([], [], label="no more than seeds", **dashed),
                     *pairs.interval_handles(unit, runs=True)],
            loc="outside lower center", ncols=3,
        )  # fmt: skip
    return figure


def table(at: xr.Dataset, name: str, *, digits: int = 4) -> Table:
    """Excess of each two arms at one place, with both intervals."""
    unit, measure = at["unit"].attrs["long_name"], figures.axis_label(at[f"arms_{name}"])
    rows = []
    for contrast in at["contrast"].values:
        of_arms = at.sel(contrast=contrast)
        within, excess = of_arms[f"seed_{name}"], of_arms[f"excess_{name}"]
        rows.append(
            (
                str(contrast),
                number(within + excess, digits=digits),
                number(within, digits=digits),
                number(excess, digits=digits),
                interval(*of_arms[f"excess_{name}_ci"].values, digits=digits),
                interval(*of_arms[f"excess_{name}_run_ci"].values, digits=digits),
            )
        )
    head = ("arms", "between", "within", "excess", f"95% of excess over {unit}s", "over runs")
    return Table(f"{measure} beyond the noise of seeds, {pairs.place_text(at)}", head, tuple(rows))


def sentences(at: xr.Dataset, name: str, *, digits: int = 4) -> list[str]:
    """How many arms are further apart than their seeds, of those with an interval over runs."""
    ends = f"excess_{name}_run_ci"
    known = pairs.told_over_runs(at, f"excess_{name}")
    if not known.sizes["contrast"]:
        return []
    most = known.isel(contrast=int(known[f"excess_{name}"].values.argmax()))
    n_apart = int((known[ends].sel(ci_bound="lower") > 0).sum())
    return [
        f"{n_apart} of {known.sizes['contrast']} pairs of arms are further apart than their seeds; "
        f"the excess is largest for {most['contrast'].item()}, "
        f"{number(most[f'excess_{name}'], digits=digits)} "
        f"({interval(*most[ends].values, digits=digits)} over runs)."
    ]
