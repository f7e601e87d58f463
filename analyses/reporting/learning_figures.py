"""Figures of `learning_order`: how alike orders are, when tokens are learned, what tells, kinds."""

from typing import TYPE_CHECKING

import numpy as np
import xarray as xr

from analyses.reporting import figures
from analyses.reporting.cohort import ENOUGH_SEEDS
from analyses.reporting.text import number
from analyses.statistics.pairs import KINDS

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def plot_similarity(result: xr.Dataset) -> "Figure":
    """Correlation of ages: a dot a pair of runs, a column a kind of pair, with both intervals."""
    from matplotlib.lines import Line2D

    unit = result["unit"].attrs["long_name"]
    controls = result["control"].values.tolist()
    with figures.style():
        figure = figures.new_figure(width=1.0 + 3.9 * len(controls), height=4.2)
        axes = figure.subplots(1, len(controls), squeeze=False)[0]
        for ax, control in zip(axes, controls, strict=True):
            at = result.sel(control=control)
            for column, kind in enumerate(result["kind"].values):
                _column(ax, at, str(kind), column)
            _mark_ceiling(ax, at)
            ax.set_xticks(range(result.sizes["kind"]), result["kind"].values.tolist())
            ax.set_xlim(-0.45, result.sizes["kind"] - 0.4)
            ax.grid(axis="x", visible=False)
            figures.panel_title(ax, f"{control} held fixed")
        axes[0].set_ylabel(figures.axis_label(result["kind_rho"]))
        handles = [
            *figures.arm_handles(dict.fromkeys(result["arm"].values.astype(str))),
            Line2D([], [], color=figures.INK, lw=3.5, label=f"95% interval over {unit}s"),
            Line2D([], [], color=figures.INK, lw=0.9, marker="_", label="95% interval over runs"),
            Line2D([], [], color=figures.CEILING, lw=1.2, ls=(0, (4, 2)),
                   label="if noise of single runs were all"),
        ]  # fmt: skip
        figure.legend(handles=handles, loc="outside lower center", ncols=4)
    return figure


def _column(ax: "Axes", at: xr.Dataset, kind: str, column: int) -> None:
    """The pairs of a kind side by side in the order of their arms, and their mean on the right."""
    pairs = at.isel(pair=np.flatnonzero(at["pair_kind"] == kind))
    places = column + np.linspace(-0.38, 0.1, pairs.sizes["pair"] + 2)[1:-1]
    for i, x in enumerate(places):
        pair = pairs.isel(pair=i)
        a, b = (figures.arm_color(str(pair[arm].item())) for arm in ("arm_a", "arm_b"))
        ax.plot(
            x, pair["pair_rho"], ls="", marker="o", markeredgewidth=0, markersize=4.2,
            fillstyle="left", markerfacecolor=a, markerfacecoloralt=b,
        )  # fmt: skip
    mean, x = at.sel(kind=kind), column + 0.2
    ax.vlines(x, *mean["kind_rho_ci"].values, color=figures.INK, lw=3.5)
    ax.vlines(x, *mean["kind_rho_run_ci"].values, color=figures.INK, lw=0.9)
    ends = mean["kind_rho_run_ci"].values
    ax.plot([x, x], ends, ls="", marker="_", ms=6, c=figures.INK)
    ax.plot(x, mean["kind_rho"], marker="o", ms=4.5, c="white", mec=figures.INK, mew=1.2)
    figures.end_label(ax, x, float(mean["kind_rho"]), number(mean["kind_rho"]))


def _mark_ceiling(ax: "Axes", at: xr.Dataset) -> None:
    if not set(KINDS) <= set(at["kind"].values):
        return
    column = at["kind"].values.tolist().index("dense-MoE")
    dense, moe = (float(at["kind_rho"].sel(kind=kind)) for kind in (KINDS[0], KINDS[2]))
    if min(dense, moe) > 0:
        ax.hlines(
            (dense * moe) ** 0.5, column - 0.38, column + 0.26,
            color=figures.CEILING, lw=1.2, ls=(0, (4, 2)), zorder=3,
        )  # fmt: skip


def plot_ages(result: xr.Dataset) -> "Figure":
    """Share of tokens acquired by each step: a line an arm, with its interval over runs."""
    with figures.style():
        figure = figures.new_figure(width=5.4, height=3.8)
        ax = figure.subplots()
        for arm in result["each_arm"].values:
            _line(ax, result.sel(each_arm=arm), "acquired", "age_step", str(arm))
        figures.step_axis(ax, result["common_step"].values.tolist())
        ax.set_ylim(0, None)
        ax.set_ylabel(figures.axis_label(result["arm_acquired"]))
        handles = figures.arm_handles(result["each_arm"].values.tolist())
        figure.legend(handles=handles, loc="outside lower center", ncols=5)
    return figure


def _line(ax: "Axes", of_arm: xr.Dataset, name: str, dim: str, arm: str) -> None:
    """A measure of one arm with the band over units of text and the ends of that over runs."""
    color = figures.arm_color(arm)
    low, high = of_arm[f"arm_{name}_ci"].transpose("ci_bound", dim)
    ax.fill_between(of_arm[dim], low, high, color=color, alpha=0.16, lw=0)
    if of_arm["arm_n_runs"] >= ENOUGH_SEEDS:
        for end in of_arm[f"arm_{name}_run_ci"].transpose("ci_bound", dim):
            ax.plot(of_arm[dim], end, color=color, lw=0.6, ls=":")
    ax.plot(of_arm[dim], of_arm[f"arm_{name}"], color=color, lw=1.3)


def plot_predictors(result: xr.Dataset) -> "Figure":
    """What goes with age: mean age by unigram surprisal, and correlations with token statistics."""
    has_surprisal = "arm_age_by_surprisal" in result
    with figures.style():
        figure = figures.new_figure(width=9.2 if has_surprisal else 5.4, height=4.2)
        axes = figure.subplots(1, 1 + has_surprisal, squeeze=False)[0]
        if has_surprisal:
            for arm in result["each_arm"].values:
                of_arm = result.sel(each_arm=arm)
                _line(axes[0], of_arm, "age_by_surprisal", "surprisal", str(arm))
            axes[0].set_yscale("log", base=2)
            axes[0].yaxis.set_major_formatter("{x:g}")
            axes[0].set_xlabel("unigram surprisal of the token (nat)")
            axes[0].set_ylabel(figures.axis_label(result["arm_age_by_surprisal"]))
        _predictor_dots(axes[-1], result)
        handles = figures.arm_handles(result["each_arm"].values.tolist())
        figure.legend(handles=handles, loc="outside lower center", ncols=5)
    return figure


def _predictor_dots(ax: "Axes", result: xr.Dataset) -> None:
    arms, names = result["each_arm"].values.tolist(), result["predictor"].values.tolist()
    rows = np.arange(len(names), dtype=float)
    for arm, shift in zip(arms, np.linspace(-0.25, 0.25, len(arms) + 2)[1:-1], strict=True):
        of_arm, color = result.sel(each_arm=arm), figures.arm_color(arm)
        low, high = of_arm["arm_predictor_rho_ci"].transpose("ci_bound", "predictor").values
        ax.hlines(rows + shift, low, high, color=color, lw=2.2)
        if of_arm["arm_n_runs"] >= ENOUGH_SEEDS:
            ends = of_arm["arm_predictor_rho_run_ci"].transpose("ci_bound", "predictor").values
            ax.hlines(rows + shift, *ends, color=color, lw=0.6)
        ax.plot(of_arm["arm_predictor_rho"], rows + shift, ls="", marker="o", ms=3.4, c=color)
    ax.axvline(0, color=figures.NULL, lw=0.8)
    ax.set_xlim(-1, 1)
    ax.set_yticks(rows, names)
    ax.invert_yaxis()
    ax.set_xlabel(figures.axis_label(result["arm_predictor_rho"]))


def plot_kinds(result: xr.Dataset) -> "Figure":
    """One panel a kind of curve: its mean loss over training, a line an arm, beside chance."""
    kinds = result["curve_kind"].values
    n_columns = min(3, len(kinds))
    n_rows = -(-len(kinds) // n_columns)
    with figures.style():
        figure = figures.new_figure(width=0.8 + 2.9 * n_columns, height=0.9 + 2.5 * n_rows)
        axes = figure.subplots(n_rows, n_columns, sharex=True, sharey=True, squeeze=False).ravel()
        for ax, kind in zip(axes, kinds, strict=False):
            at = result.sel(curve_kind=kind)
            ax.axhline(result.attrs["chance"], color=figures.NULL, lw=0.9, ls="--")
            for arm in result["each_arm"].values:
                curve = at["curve_mean"].sel(each_arm=arm)
                ax.plot(curve["curve_step"], curve, color=figures.arm_color(str(arm)), lw=1.3)
            share = 100 * float(at["curve_share"].mean())
            figures.panel_title(ax, f"kind {kind}", f"{share:.0f}% of tokens")
            figures.step_axis(ax, result["common_step"].values.tolist())
            ax.set_ylabel(figures.axis_label(result["curve_mean"]))
            ax.label_outer()
        for ax in axes[len(kinds) - n_columns : len(kinds)]:
            ax.tick_params(labelbottom=True)
            ax.set_xlabel("step")
        for ax in axes[len(kinds) :]:
            ax.set_visible(False)
        handles = figures.arm_handles(result["each_arm"].values.tolist())
        figure.legend(handles=handles, loc="outside lower center", ncols=5)
    return figure
