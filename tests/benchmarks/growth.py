"""How time and memory of analyses grow with tokens, steps and runs, up to a hundred times.

    python tests/benchmarks/growth.py [FOLDER] [--analyses NAME ...] [--figure FILE]

Writes synthetic studies with the real store into FOLDER (default: a temporary folder, removed
again): one of 4 runs x 5 steps x 10,000 tokens, and larger ones in one direction each. For analyses
that ask for more, in detail: two experts a token, activations at a tenth of all tokens, predictions
at one token a sequence. Each command runs whole, with page and figures, on the sizes of a direction
in turn; where that takes less than 45 s three times, and medians count.

Size is tokens, steps, and runs or, where all are compared with all, pairs. Two measures, neither of
which divides by a small difference of times. For growth with the square of the size they go to the
ratio of the last two sizes, 2 for tokens and steps and 1.4 for runs:

    time     at the largest size, over that of a line through the first and the last but one
    memory   at the largest size, over that of the last but one times the ratio of their sizes

The second allows for a start that is hidden under the peak of something else, such as drawing.
Prints each command as it ends, and a table, draws it, and exits with 1 if one of them is above 1.2,
or if a command needs 4 GB or more.
"""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import argparse
import sys
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from typing import NamedTuple

import numpy as np
import xarray as xr
from large_study import D_VOCAB, LIMIT, N_POS, Measured, kept_or_temporary, measured, probe_set
from rich.console import Console
from rich.table import Table

from store.run import Run

N_EXPERTS, LAYERS = 8, (1, 3)
BASE = {"tokens": 10_000, "steps": 5, "runs": 4}
GROWN = {
    "tokens": (100_000, 500_000, 1_000_000),
    "steps": (50, 250, 500),
    "runs": (12, 28, 40),
}
COMPARES_PAIRS = {
    "r2_over_time": True,
    "loss_differences": False,
    "learning_order": True,
    "expert_specialization": False,
    "routing_entropy": False,
    "router_saturation": False,
    "ensemble_gain": True,
    "significance": True,
    "expert_matching": True,
    "expert_paths": False,
    "routing_locality": False,
    "expert_coactivation": False,
    "distribution_divergence": True,
    "linear_probe": False,
}
IN_DETAIL = {"expert_coactivation", "distribution_divergence", "linear_probe"}
D_MODEL = 32
TOLERANCE = 1.2
SHORT = 45  # processor seconds
COLORS = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9"


class Grown(NamedTuple):
    """An analysis along one direction of growth, from the smallest study to the largest."""

    analysis: str
    direction: str
    size: list[int]
    measured: list[Measured]

    @property
    def amount(self) -> list[int]:
        """What linear growth is linear in: the size, or how many pairs of runs there are."""
        if self.direction == "runs" and COMPARES_PAIRS[self.analysis]:
            return [size * (size - 1) // 2 for size in self.size]
        return self.size

    @property
    def seconds(self) -> list[float]:
        return [found.processor_seconds for found in self.measured]

    @property
    def time_against_linear(self) -> float:
        """Time of the largest size over that of a line through the first and the last but one."""
        (n, *_, almost, most), (start, *_, before, last) = self.amount, self.seconds
        return last / (start + (before - start) * (most - n) / (almost - n))

    @property
    def memory_against_proportional(self) -> float:
        """Peak of the largest size over one in proportion to that before; at most 1 if linear."""
        (*_, almost, most), (*_, before, last) = self.amount, self.measured
        return last.peak / (before.peak * most / almost)


def write_study(folder: Path, *, tokens: int, steps: int, runs: int, in_detail: bool) -> None:
    """Dense and Switch runs in equal number; experts go by token id, more so later."""
    top_k = 2 if in_detail else 1
    shown = probe_set(tokens, np.random.default_rng(0))
    shape = shown["token"].shape
    schedule = np.arange(steps)
    by_id = shown["token"].values % N_EXPERTS
    folder.mkdir(parents=True)
    for i in range(runs):
        arm, rng = ("dense", "switch")[i % 2], np.random.default_rng([1, i])
        coordinates = {"arm": arm, "architecture": ("dense", "moe")[i % 2], "seed": i // 2}
        if arm == "switch":
            coordinates |= {"router": "switch", "n_experts": N_EXPERTS, "experts_per_token": top_k}

        def observed(step: int) -> dict[str, xr.Dataset]:
            noise = rng.standard_normal(shape, dtype="float32")  # noqa: B023
            loss = 4 - step / steps + shown["ngram_surprisal"].values[0] + noise / 2
            seen = {"losses": xr.Dataset({"loss": (("sequence", "pos"), loss)})}
            if arm == "switch":  # noqa: B023
                seen["routing"] = routing(step)
            return seen | (details(shape[0], rng) if in_detail else {})  # noqa: B023

        def routing(step: int) -> xr.Dataset:
            size = (len(LAYERS), *shape)
            moved = rng.random(size) < 1 - step / (2 * steps)  # noqa: B023
            first = np.where(moved, rng.integers(0, N_EXPERTS, size), by_id)  # noqa: B023
            index = (first[..., None] + np.arange(top_k)) % N_EXPERTS
            dims = ("layer", "sequence", "pos")
            prob = 0.3 / N_EXPERTS + 0.7 * np.eye(N_EXPERTS)[first]
            weight = np.take_along_axis(prob, index, axis=-1)
            return xr.Dataset(
                {
                    "expert_index": ((*dims, "top_k"), index.astype("int16")),
                    "expert_weight": ((*dims, "top_k"), weight.astype("f2")),
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


def details(n_sequences: int, rng: np.random.Generator) -> dict[str, xr.Dataset]:
    """Activations of all layers with experts, and predictions: noise."""
    activations, predictions = np.arange(0, N_POS, 10), np.array([N_POS // 2])
    stream = rng.standard_normal((len(LAYERS), n_sequences, len(activations), D_MODEL))
    logits = rng.standard_normal((n_sequences, len(predictions), D_VOCAB), dtype="float32")
    log_prob = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    dims = ("sequence", "pos")
    return {
        "activations": xr.Dataset(
            {"resid_post": (("layer", *dims, "d_model"), stream.astype("f2"))},
            {"layer": list(LAYERS), "pos": activations},
        ),
        "predictions": xr.Dataset(
            {"log_prob": ((*dims, "d_vocab"), log_prob.astype("f2"))}, {"pos": predictions}
        ),
    }


def grown(folder: Path, analyses: list[str], console: Console) -> list[Grown]:
    """Each analysis in every direction."""
    found = []
    for direction, larger in GROWN.items():
        sizes = [BASE[direction], *larger]
        for analysis in analyses:
            studies = written(folder, direction, sizes, in_detail=analysis in IN_DETAIL)
            one = Grown(analysis, direction, sizes, in_turn(analysis, studies, folder / "reports"))
            seconds = ", ".join(f"{value:.1f}" for value in one.seconds)
            console.print(f"{analysis}, {direction}: {seconds} s")
            found.append(one)
    return sorted(found, key=lambda one: analyses.index(one.analysis))


def written(folder: Path, direction: str, sizes: list[int], *, in_detail: bool) -> list[Path]:
    """A study of each size; those that are there already are taken as they are."""
    kind = "-in-detail" if in_detail else ""
    studies = [folder / f"{direction}-{size}{kind}" for size in sizes]
    for study, size in zip(studies, sizes, strict=True):
        if not study.exists():
            # by another process: the peak of a command is never below what this one holds
            with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as writer:
                shape = {**BASE, direction: size}
                writer.submit(write_study, study, **shape, in_detail=in_detail).result()
    return studies


def in_turn(analysis: str, studies: list[Path], reports: Path) -> list[Measured]:
    """Medians over rounds, in each of which the studies follow each other."""
    command, rounds = [sys.executable, "-m", f"analyses.{analysis}"], []
    while not rounds or (
        len(rounds) < 3 and sum(found.processor_seconds for found in rounds[0]) < SHORT
    ):
        rounds.append(
            [measured([*command, str(study), "--report", str(reports)]) for study in studies]
        )
    return [
        Measured(*map(median, zip(*of_study, strict=True)))
        for of_study in zip(*rounds, strict=True)
    ]


def table(found: list[Grown]) -> Table:
    shown = Table(title="4 runs x 5 steps x 10,000 tokens, and more in one direction")
    columns = ("analysis", "direction", "size", "processor seconds", "of linear", "peak GB",
               "of proportional")  # fmt: skip
    for column in columns:
        shown.add_column(column, justify="left" if column in columns[:2] else "right")
    for one in found:
        shown.add_row(
            one.analysis, one.direction,
            " / ".join(f"{size:,}" for size in one.size),
            " / ".join(f"{seconds:.1f}" for seconds in one.seconds),
            f"{one.time_against_linear:.2f}",
            " / ".join(f"{m.peak / 1e9:.2f}" for m in one.measured),
            f"{one.memory_against_proportional:.2f}",
        )  # fmt: skip
    return shown


def draw(found: list[Grown], file: Path) -> None:
    """Time and memory over the growth of the study, both logarithmic, a panel a direction."""
    from analyses.reporting import figures

    with figures.style():
        figure = figures.new_figure(width=9, height=5)
        axes = figure.subplots(2, len(GROWN), sharex="col", sharey="row")
        for column, direction in enumerate(GROWN):
            along = [one for one in found if one.direction == direction]
            for one, color in zip(along, COLORS, strict=False):
                memory = [m.peak / 1e9 for m in one.measured]
                for ax, values in zip(axes[:, column], (one.seconds, memory), strict=True):
                    ax.loglog(one.size, values, "o-", color=color, ms=4, label=one.analysis)
            ends = np.array([BASE[direction], GROWN[direction][-1]])
            axes[0, column].loglog(
                ends, 5 * ends / ends[0], "--", color=figures.NULL, label="proportional"
            )
            axes[0, column].set_title(direction)
            sizes = [BASE[direction], *GROWN[direction]]
            axes[1, column].set_xticks(sizes, [f"{size:,}" for size in sizes], rotation=30)
            axes[1, column].set_xticks([], minor=True)
            axes[1, column].set_xlabel(direction)
        for ax, label, ticks in (
            (axes[0, 0], "processor seconds", (3, 10, 30, 100, 300)),
            (axes[1, 0], "peak memory (GB)", (0.2, 0.5, 1, 2)),
        ):
            ax.set_yticks(ticks, [f"{tick:g}" for tick in ticks])
            ax.set_yticks([], minor=True)
            ax.set_ylabel(label)
        figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=4)
        file.write_bytes(figures.rendered(figure, suffix=file.suffix[1:]))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", nargs="?", type=Path, help="keep the studies and reports there")
    parser.add_argument("--analyses", nargs="+", choices=COMPARES_PAIRS, metavar="NAME",
                        default=list(COMPARES_PAIRS), help="measure these alone")  # fmt: skip
    parser.add_argument("--figure", type=Path, metavar="FILE", help="draw up to six of them there")
    args = parser.parse_args()
    console = Console(width=150)
    with kept_or_temporary(args.folder, "growth") as folder:
        found = grown(folder, args.analyses, console)
    console.print(table(found))
    if args.figure:
        draw(found, args.figure)
    broken = [
        one
        for one in found
        if max(one.time_against_linear, one.memory_against_proportional) > TOLERANCE
        or max(m.peak for m in one.measured) >= LIMIT
    ]
    for one in broken:
        console.print(f"{one.analysis} breaks a promise when {one.direction} grow")
    return int(bool(broken))


if __name__ == "__main__":
    raise SystemExit(main())
