"""How time and memory of analyses grow with tokens, steps and runs, up to a hundred times.

    python tests/benchmarks/growth.py [FOLDER] [--figures DIR]

Writes synthetic studies with the real store into FOLDER (default: a temporary folder, removed
again): one of 4 runs x 5 steps x 10,000 tokens, and larger ones in one direction each. Each command
runs whole, with page and figures. Linear growth means that what is added to the time of the small
study is proportional to what is added to the study: tokens, steps, and runs or, where all are
compared with all, pairs. Prints a table, draws it into DIR, and exits with 1 if the processor time
of a command grows more than 1.3 times as fast as that, or if it needs 4 GB or more.
"""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import argparse
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
import xarray as xr
from large_study import LIMIT, Measured, kept_or_temporary, measured, probe_set
from rich.console import Console
from rich.table import Table

from store.run import Run

N_EXPERTS, LAYERS = 8, (1, 3)
BASE = {"tokens": 10_000, "steps": 5, "runs": 4}
GROWN = {"tokens": (100_000, 1_000_000), "steps": (50, 500), "runs": (12, 40)}
COMPARES_PAIRS = {
    "r2_over_time": True,
    "loss_differences": False,
    "learning_order": True,
    "expert_specialization": False,
    "routing_entropy": False,
    "router_saturation": False,
}
TOLERANCE = 1.3


class Grown(NamedTuple):
    """An analysis along one direction of growth, from the smallest study to the largest."""

    analysis: str
    direction: str
    size: list[int]
    measured: list[Measured]

    @property
    def against_linear(self) -> float:
        """Time added by the last enlargement over what linear growth from the first would add."""
        amount = np.array(self.size)
        if self.direction == "runs" and COMPARES_PAIRS[self.analysis]:
            amount = amount * (amount - 1) // 2
        seconds = [found.processor_seconds for found in self.measured]
        rate = [np.subtract(seconds[i], seconds[0]) / (amount[i] - amount[0]) for i in (1, 2)]
        # what a small enlargement adds may be lost in the noise of starting up
        return float(rate[1] / rate[0]) if seconds[1] - seconds[0] > 0.5 else float("nan")


def write_study(folder: Path, *, tokens: int, steps: int, runs: int) -> None:
    """Dense and Switch runs in equal number; experts go by token id, more so later."""
    shown = probe_set(tokens, np.random.default_rng(0))
    shape = shown["token"].shape
    schedule = np.arange(steps)
    by_id = shown["token"].values % N_EXPERTS
    folder.mkdir(parents=True)
    for i in range(runs):
        arm, rng = ("dense", "switch")[i % 2], np.random.default_rng([1, i])
        coordinates = {"arm": arm, "architecture": ("dense", "moe")[i % 2], "seed": i // 2}
        if arm == "switch":
            coordinates |= {"router": "switch", "n_experts": N_EXPERTS, "experts_per_token": 1}

        def observed(step: int) -> dict[str, xr.Dataset]:
            noise = rng.standard_normal(shape, dtype="float32")  # noqa: B023
            loss = 4 - step / steps + shown["ngram_surprisal"].values[0] + noise / 2
            seen = {"losses": xr.Dataset({"loss": (("sequence", "pos"), loss)})}
            return seen | ({"routing": routing(step)} if arm == "switch" else {})  # noqa: B023

        def routing(step: int) -> xr.Dataset:
            size = (len(LAYERS), *shape)
            moved = rng.random(size) < 1 - step / (2 * steps)  # noqa: B023
            index = np.where(moved, rng.integers(0, N_EXPERTS, size), by_id)  # noqa: B023
            dims = ("layer", "sequence", "pos")
            prob = 0.3 / N_EXPERTS + 0.7 * np.eye(N_EXPERTS)[index]
            return xr.Dataset(
                {
                    "expert_index": ((*dims, "top_k"), index[..., None].astype("int16")),
                    "expert_weight": ((*dims, "top_k"), prob.max(-1, keepdims=True).astype("f2")),
                    "router_prob": ((*dims, "expert"), prob.astype("f2")),
                },
                {"layer": list(LAYERS), "expert": np.arange(N_EXPERTS)},
            )

        run = Run.create(
            folder / f"{arm}-seed{i // 2}.zarr", shown, observed(0), steps=schedule,
            training_steps=steps - 1, attrs={}, coordinates=coordinates,
        )  # fmt: skip
        for step in schedule.tolist():
            run.write(step, observed(step))
            run.commit(step)


def grown(folder: Path, console: Console) -> list[Grown]:
    """Every analysis in every direction."""
    at: dict[tuple[str, str, int], Measured] = {}
    for direction, sizes in GROWN.items():
        for size in (BASE[direction], *sizes):
            study = folder / f"{direction}-{size}"
            if not study.exists():
                write_study(study, **{**BASE, direction: size})
            for analysis in COMPARES_PAIRS:
                command = [sys.executable, "-m", f"analyses.{analysis}", str(study)]
                with console.status(f"{analysis}: {size:,} {direction}"):
                    at[analysis, direction, size] = measured(
                        [*command, "--report", str(folder / "reports")]
                    )
    return [
        Grown(analysis, direction, sizes, [at[analysis, direction, size] for size in sizes])
        for analysis in COMPARES_PAIRS
        for direction, larger in GROWN.items()
        for sizes in [[BASE[direction], *larger]]
    ]


def table(found: list[Grown]) -> Table:
    shown = Table(title="4 runs x 5 steps x 10,000 tokens, and more in one direction")
    columns = ("analysis", "direction", "size", "processor seconds", "peak GB", "against linear")
    for column in columns:
        shown.add_column(column, justify="left" if column in columns[:2] else "right")
    for one in found:
        shown.add_row(
            one.analysis, one.direction,
            " / ".join(f"{size:,}" for size in one.size),
            " / ".join(f"{m.processor_seconds:.1f}" for m in one.measured),
            " / ".join(f"{m.peak / 1e9:.2f}" for m in one.measured),
            f"{one.against_linear:.2f}",
        )  # fmt: skip
    return shown


def draw(found: list[Grown], folder: Path) -> None:
    """Time and memory over the growth of the study, both logarithmic, a panel a direction."""
    from analyses.reporting import figures

    with figures.style():
        figure = figures.new_figure(width=9, height=5)
        axes = figure.subplots(2, len(GROWN), sharex="col", sharey="row")
        for column, direction in enumerate(GROWN):
            for i, analysis in enumerate(COMPARES_PAIRS):
                one = next(f for f in found if (f.analysis, f.direction) == (analysis, direction))
                seconds = [m.processor_seconds for m in one.measured]
                memory = [m.peak / 1e9 for m in one.measured]
                for ax, values in zip(axes[:, column], (seconds, memory), strict=True):
                    ax.loglog(one.size, values, "o-", color=f"C{i}", markersize=4, label=analysis)
            ends = np.array([BASE[direction], GROWN[direction][-1]])
            axes[0, column].loglog(
                ends, 5 * ends / ends[0], "--", color=figures.NULL, label="proportional"
            )
            axes[0, column].set_title(direction)
            axes[1, column].set_xlabel(direction)
        axes[0, 0].set_ylabel("processor seconds")
        axes[1, 0].set_ylabel("peak memory (GB)")
        figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=4)
        folder.mkdir(parents=True, exist_ok=True)
        for suffix in ("svg", "png"):
            picture = figures.rendered(figure, suffix=suffix)
            (folder / f"growth.{suffix}").write_bytes(picture)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", nargs="?", type=Path, help="keep the studies and reports there")
    parser.add_argument("--figures", type=Path, metavar="DIR", help="draw the table there")
    args = parser.parse_args()
    console = Console(width=130)
    with kept_or_temporary(args.folder, "growth") as folder:
        found = grown(folder, console)
    console.print(table(found))
    if args.figures:
        draw(found, args.figures)
    too_fast = [one for one in found if one.against_linear > TOLERANCE]
    too_large = [one for one in found if max(m.peak for m in one.measured) >= LIMIT]
    for one in (*too_fast, *too_large):
        console.print(f"{one.analysis} breaks a promise when {one.direction} grow")
    return int(bool(too_fast or too_large))


if __name__ == "__main__":
    raise SystemExit(main())
