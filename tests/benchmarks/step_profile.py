"""Where the time of a training step goes, now and in an earlier checkout of this project.

    python tests/benchmarks/step_profile.py [--before FOLDER] [--figure FILE] [--rounds 5]

The sizes are those of `training.py`. Each model trains in a process of its own, which imports the
project from its checkout, in the precision that training takes here by default, on one thread. In
each round every process takes one step under torch's profiler; medians over rounds. What the
profiler counts is time spent in an operation itself, without those that it calls.
"""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import argparse
import contextlib
import json
import re
import statistics
import subprocess
import sys
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from sizes import WARM_UP, sizes, trainer_of
from torch.profiler import ProfilerActivity, profile

from models.config import RunConfig

HERE = Path(__file__).resolve().parents[2]
KINDS = {  # the first that matches the name of an operation
    "products": r"mm|bmm|addmm_?|baddbmm_?|_grouped_mm|addmv_?",
    "attention kernels": r"_scaled_dot_product.*",
    "softmax and loss": r".*softmax.*|nll_loss.*|amax|exp|log|logsumexp|gather|scatter_add_?",
    "norms": r"native_layer_norm.*",
    "copies and casts": r"copy_|cat|fill_|zero_|index_.*|_index_put_impl_|constant_pad_nd|sort",
    "optimizer": r"_fused_adamw_|_foreach.*|lerp_",
    "other": r".*",
}
COLORS = "#0072B2", "#56B4E9", "#E69F00", "#009E73", "#CC79A7", "#F0E442", "#999999"


def kind_of(operation: str) -> str:
    name = operation.removeprefix("aten::")
    return next(kind for kind, pattern in KINDS.items() if re.fullmatch(pattern, name))


def serve(size: str, arm: str) -> None:
    """Take a profiled step for each line read, and write seconds by kind as a line of JSON."""
    torch.set_num_threads(1)
    with contextlib.suppress(ModuleNotFoundError):  # earlier checkouts have none
        from models.memory import keep_freed_memory

        keep_freed_memory()
    dense, moe, batch = sizes(size)
    run = RunConfig(arm, 0, dense if arm == "dense" else moe)
    trainer = trainer_of(run, batch_size=batch)
    for _ in range(WARM_UP):
        trainer.advance()
    for _ in sys.stdin:
        with profile(activities=[ProfilerActivity.CPU]) as seen:
            trainer.advance()
        seconds = dict.fromkeys(KINDS, 0.0)
        for operation in seen.key_averages():
            seconds[kind_of(operation.key)] += operation.self_cpu_time_total / 1e6
        print(json.dumps(seconds), flush=True)


Profiles = dict[str, dict[str, float]]  # of a model and checkout: seconds of each kind


def measured(size: str, arm: str, checkouts: dict[str, Path], rounds: int) -> Profiles:
    """Medians over rounds, in each of which the model of every checkout takes a step."""
    processes = {
        f"{arm}, {name}": subprocess.Popen(
            [sys.executable, __file__, "--serve", size, arm],
            env=os.environ | {"PYTHONPATH": str(folder)}, text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
        )
        for name, folder in checkouts.items()
    }  # fmt: skip
    taken: dict[str, list[dict[str, float]]] = {name: [] for name in processes}
    for _ in range(rounds):
        for name, process in processes.items():
            print(file=process.stdin, flush=True)
            taken[name].append(json.loads(process.stdout.readline()))
    for process in processes.values():
        process.communicate()
    return {
        name: {kind: statistics.median(step[kind] for step in steps) for kind in KINDS}
        for name, steps in taken.items()
    }


def table(size: str, profiles: Profiles) -> Table:
    shown = Table(title=f"{size}: milliseconds of a training step in operations")
    shown.add_column("model")
    for column in (*KINDS, "all"):
        shown.add_column(column, justify="right")
    for name, seconds in profiles.items():
        values = (*seconds.values(), sum(seconds.values()))
        shown.add_row(name, *(f"{1e3 * value:,.0f}" for value in values))
    return shown


def draw(found: dict[str, Profiles], file: Path) -> None:
    """A bar a model and checkout, a panel a size."""
    from analyses.reporting import figures

    with figures.style():
        figure = figures.new_figure(width=9, height=3.4)
        for ax, (size, profiles) in zip(
            figure.subplots(1, len(found), squeeze=False)[0], found.items(), strict=True
        ):
            start = np.zeros(len(profiles))
            for kind, color in zip(KINDS, COLORS, strict=True):
                seconds = np.array([one[kind] for one in profiles.values()])
                ax.barh(list(profiles), seconds, left=start, color=color, label=kind)
                start += seconds
            ax.invert_yaxis()
            ax.set_title(size)
            ax.set_xlabel("seconds of a training step")
        figure.legend(*ax.get_legend_handles_labels(), loc="outside lower center", ncols=4)
        file.write_bytes(figures.rendered(figure, suffix=file.suffix[1:]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--before", type=Path, metavar="FOLDER", help="an earlier checkout")
    parser.add_argument("--figure", type=Path, metavar="FILE", help="draw it there, svg or png")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--serve", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.serve:
        return serve(*args.serve)
    checkouts = ({"before": args.before.resolve()} if args.before else {}) | {"now": HERE}
    found: dict[str, Profiles] = {}
    for size in ("quick", "wide"):
        found[size] = {}
        for arm in ("dense", "switch"):
            found[size] |= measured(size, arm, checkouts, args.rounds)
        Console(width=140).print(table(size, found[size]))
    if args.figure:
        draw(found, args.figure)


if __name__ == "__main__":
    main()
