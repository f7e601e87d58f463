"""Figures of the page."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from simulation.cells import Cell

from analyses.reporting import figures

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LEVEL = 0.95
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#222222")
MARKERS = "os^Dv<>"
SHIFT = (-0.24, -0.08, 0.08, 0.24)
OF_R = {
    "jackknife, r": "jackknife on z (offered by default)",
    "bootstrap t, r": "bootstrap-t",
    "bootstrap percentile, r": "bootstrap, percentile",
    "bootstrap bca, r": "bootstrap, BCa",
    "Fisher's z, n = tokens": "Fisher's z, n = tokens (wrong)",
}
JACKKNIVES = (
    "mean of pairs", "delta", "partial r", "Spearman", "log ensemble gain",
    "log squared difference", "squared difference",
)  # fmt: skip


def drawings(cells: list[Cell]) -> Iterator[tuple[str, "Figure"]]:
    """Name and figure, one question each."""
    text = [c for c in cells if c.part == "text"]
    yield "coverage_of_r", _over_text(text, OF_R, low=0.25)
    yield (
        "coverage_of_jackknife",
        _over_text(text, {f"jackknife, {name}": name for name in JACKKNIVES}, low=0.7),
    )
    yield "coverage_over_runs", _over_runs([c for c in cells if c.part == "runs"])
    yield "coverage_of_both", _both(cells)
    yield "size_and_power", _tests([c for c in cells if c.part == "tests"])


def _line(
    ax: "Axes",
    cells: list[Cell],
    at: list[str],
    name: str,
    color: str,
    *,
    shift: float = 0.0,
    **style: str,
) -> None:
    """Rates with two Monte Carlo errors either side, at the positions of their sizes."""
    cells = [c for c in cells if c.size in at]
    x, y = [at.index(c.size) + shift for c in cells], [c.rate for c in cells]
    error = [2 * c.error for c in cells]
    ax.errorbar(x, y, error, color=color, lw=1.2, elinewidth=0.9, ms=4, label=name, **style)


def _level(ax: "Axes", sizes: list[str], *, low: float, what: str) -> None:
    ax.axhline(LEVEL, color=figures.NULL, lw=1, zorder=0)
    ax.set_xticks(range(len(sizes)), sizes)
    ax.set_ylim(low, 1.005)
    ax.set_xlabel(what)


def _over_text(cells: list[Cell], methods: dict[str, str], *, low: float) -> "Figure":
    worlds = list(dict.fromkeys(c.world for c in cells))
    sizes = list(dict.fromkeys(c.size for c in cells))
    with figures.style():
        figure = figures.new_figure(width=9.7, height=6.4)
        axes = figure.subplots(2, 2, sharex=True, sharey=True)
        for ax, world in zip(axes.flat, worlds, strict=True):
            for (method, name), color, marker in zip(
                methods.items(), COLORS, MARKERS, strict=False
            ):
                own = [c for c in cells if c.world == world and c.method == method]
                _line(ax, own, sizes, name, color, marker=marker)
            law, lengths = world.split(", ")
            figures.panel_title(ax, f"{law} losses", f"{lengths} units")
            _level(ax, sizes, low=low, what="units of text" if ax in axes[1] else "")
        for ax in axes[:, 0]:
            ax.set_ylabel("coverage of 95% intervals")
        handles, shown = axes[0, 0].get_legend_handles_labels()
        figure.legend(handles, shown, loc="outside lower center", ncols=3)
    return figure


def _over_runs(cells: list[Cell]) -> "Figure":
    worlds = list(dict.fromkeys(c.world for c in cells))
    rules = ("as offered", "Satterthwaite", "smaller - 1", "sum - 2")
    with figures.style():
        figure = figures.new_figure(width=9.7, height=7.6)
        axes = figure.subplots(3, 3, sharex="col", sharey=True, width_ratios=[1, 2, 1.6])
        for place, (row, world) in enumerate(zip(axes, worlds, strict=True)):
            own = [c for c in cells if c.world == world]
            for ax, target in zip(row, ("within an arm", "between", "delta"), strict=True):
                shown = [c for c in own if c.method.startswith(target)]
                sizes = list(dict.fromkeys(c.size for c in shown))
                for i, (rule, color, marker) in enumerate(
                    zip(rules, COLORS, MARKERS, strict=False)
                ):
                    of_rule = [c for c in shown if c.method in (target, f"{target}, {rule}")]
                    if target != "within an arm" or rule == rules[0]:
                        alone = target == "within an arm"
                        _line(
                            ax,
                            of_rule,
                            sizes,
                            rule,
                            color,
                            shift=0.0 if alone else SHIFT[i],
                            marker=marker,
                            ls="-" if alone else "",
                        )
                what = "runs" if target == "within an arm" else "runs, dense + MoE"
                _level(ax, sizes, low=0.75, what=what if place == len(worlds) - 1 else "")
                ax.tick_params(axis="x", rotation=60 if target != "within an arm" else 0)
            row[0].set_ylabel("coverage")
            for ax, detail in zip(row, ("", "mean z between arms", "delta"), strict=True):
                figures.panel_title(ax, world if ax is row[0] else "", detail)
        handles, labels = axes[0, 1].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=4,
                      title="degrees of freedom")  # fmt: skip
    return figure


def _both(cells: list[Cell]) -> "Figure":
    """Simultaneous bands, and the multi-bootstrap."""
    bands = [c for c in cells if c.part == "bands"]
    means = [c for c in cells if c.part == "means" and "this text" not in c.method]
    with figures.style():
        figure = figures.new_figure(width=9.7, height=3.4)
        left, right = figure.subplots(1, 2, width_ratios=[1, 1.5])
        sizes = list(dict.fromkeys(c.size for c in bands))
        for method, color in zip(dict.fromkeys(c.method for c in bands), COLORS, strict=False):
            _line(left, [c for c in bands if c.method == method], sizes, method, color, marker="o")
        _level(left, sizes, low=0.3, what="units of text")
        left.set_ylabel("coverage")
        figures.panel_title(left, "whole curve of 18 places")
        left.legend()
        sizes = list(dict.fromkeys(c.size for c in means))
        worlds = dict.fromkeys(c.world for c in means)
        for world, color in zip(worlds, COLORS, strict=False):
            for method, marker in (
                ("multi-bootstrap", "o"),
                ("jackknife over runs, other text", "s"),
            ):
                own = [c for c in means if c.world == world and c.method == method]
                ls = "-" if marker == "o" else ":"
                _line(right, own, sizes, f"{method.partition(',')[0]}, {world}", color,
                      marker=marker, ls=ls)  # fmt: skip
        _level(right, sizes, low=0.3, what="runs an arm")
        figures.panel_title(right, "difference of means, other seeds and other text")
        right.legend(fontsize=7, loc="lower left")
    return figure


def _tests(cells: list[Cell]) -> "Figure":
    noises = list(dict.fromkeys(c.world.partition(",")[0] for c in cells))
    effects = list(dict.fromkeys(c.world.rpartition(" ")[2] for c in cells))
    tests = {
        "delta, labels": "delta, arms dealt out anew",
        "delta, interval over runs below 0": "delta, interval over runs below 0",
        "raw contrast, labels": "MoE-dense above MoE-MoE, arms dealt out anew",
        "raw contrast, t-test": "the same, t-test over pairs (wrong)",
    }
    runs = list(dict.fromkeys(c.size for c in cells))
    with figures.style():
        figure = figures.new_figure(width=9.7, height=5.6)
        axes = figure.subplots(len(noises), len(runs), sharex=True, sharey=True)
        for place, (row, noise) in enumerate(zip(axes, noises, strict=True)):
            for ax, size in zip(row, runs, strict=True):
                own = [c for c in cells if c.size == size and c.world.startswith(noise)]
                for (start, name), color, marker in zip(
                    tests.items(), COLORS, MARKERS, strict=False
                ):
                    shown = [
                        c._replace(size=c.world.rpartition(" ")[2])
                        for c in own if c.method.startswith(start)
                    ]  # fmt: skip
                    _line(ax, shown, effects, name, color, marker=marker)
                nominal = 0.1 if size == "3+3" else 0.05
                ax.axhline(nominal, color=figures.NULL, lw=1, ls="--", zorder=0)
                ax.set_xticks(range(len(effects)), effects)
                figures.panel_title(ax, noise if ax is row[0] else "", f"{size} runs")
                if place == len(noises) - 1:
                    ax.set_xlabel("arm effect")
            row[0].set_ylabel("share that rejects")
        handles, labels = axes[0, 0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=2)
    return figure
