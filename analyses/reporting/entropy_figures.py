"""Figures of `routing_entropy`: how even load is, what entropy is made of, its tie to the loss."""

from typing import TYPE_CHECKING

import xarray as xr

from analyses.reporting import figures
from analyses.reporting.layer_panels import arm_handles, arm_line, step_grid

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def plot_load(result: xr.Dataset) -> "Figure":
    """Fair index, MaxVio and Gini: a line a run, beside even routing of the same text."""
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    def draw(ax: "Axes", of_layer: xr.Dataset, name: str) -> None:
        for run in range(of_layer.sizes["run"]):
            _line(ax, of_layer.isel(run=run), name)

    return step_grid(
        result,
        ("fair_index", "max_violation", "gini"),
        draw,
        row_labels=("fair index of load", "MaxVio", "Gini of load"),
        handles=[
            *arm_handles(result, runs=False),
            Line2D([], [], color=figures.NULL, ls="--", lw=1, label="mean of even routing"),
            Patch(color=figures.NULL, alpha=0.25, lw=0, label="95% of even routing"),
        ],
    )


def plot_decomposition(result: xr.Dataset) -> "Figure":
    """Entropy at a token, and above it what the token tells: a row an arm, a column a layer."""
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    limit = float(result["entropy_limit"])

    def draw(ax: "Axes", of_layer: xr.Dataset, arm: str) -> None:
        at = of_layer.sel(each_arm=arm).dropna("step", subset=["arm_router_entropy"])
        step, color = at["step"], figures.arm_color(arm)
        lower, upper = at["arm_token_entropy"], at["arm_router_entropy"]
        ax.fill_between(step, 0, lower, color=color, alpha=0.25, lw=0)
        ax.fill_between(step, lower, upper, color=color, alpha=0.75, lw=0)
        for name in ("token_entropy", "router_entropy"):
            low, high = at[f"arm_{name}_ci"].transpose("ci_bound", "step")
            ax.vlines(step, low, high, color=figures.INK, lw=0.9)
            ax.plot(step, at[f"arm_{name}"], color=figures.INK, lw=0.6)
        ax.axhline(limit, color=figures.NULL, lw=1, ls="--")
        ax.set_ylim(0, 1.06 * limit)

    arms = result["each_arm"].values.astype(str).tolist()
    parts = [
        Patch(color=figures.INK, alpha=0.75, lw=0, label="I(token; expert)"),
        Patch(color=figures.INK, alpha=0.25, lw=0, label="mean H(r)"),
        Line2D([], [], color=figures.NULL, lw=1, ls="--", label="ln N"),
    ]
    return step_grid(
        result,
        arms,
        draw,
        row_labels=[f"{arm}: entropy (nat)" for arm in arms],
        handles=parts,
        row_height=2.0,
    )


def plot_relation(result: xr.Dataset) -> "Figure":
    """Correlation of router entropy with loss, plain and with difficulty held fixed."""

    def draw(ax: "Axes", of_layer: xr.Dataset, name: str) -> None:
        ax.axhline(0, color=figures.NULL, lw=1, ls="--")
        for arm in of_layer["each_arm"].values:
            arm_line(ax, of_layer.sel(each_arm=arm), name)

    return step_grid(
        result,
        ("entropy_loss_rho", "entropy_loss_partial_r"),
        draw,
        row_labels=("Spearman's rho", "partial r, difficulty fixed"),
        handles=arm_handles(result),
    )


def _line(ax: "Axes", run: xr.Dataset, name: str) -> None:
    """One run's measure over steps in its arm's colour, with interval, and null if it has one."""
    run = run.dropna("step", subset=[name])
    color = figures.arm_color(str(run["arm"].item()))
    if f"{name}_null_mean" in run:
        low, high = run[f"{name}_null_band"].transpose("ci_bound", "step")
        ax.fill_between(run["step"], low, high, color=figures.NULL, alpha=0.25, lw=0)
        ax.plot(run["step"], run[f"{name}_null_mean"], color=figures.NULL, lw=1, ls="--")
    low, high = run[f"{name}_ci"].transpose("ci_bound", "step")
    ax.fill_between(run["step"], low, high, color=color, alpha=0.18, lw=0)
    ax.plot(run["step"], run[name], color=color, lw=1.2, marker="o", markersize=2.6)
