"""Two small runs side by side on one thread each, beside one after the other on two threads.

    python tests/benchmarks/side_by_side.py [--arm dense] [--steps 20] [--rounds 7]

The study `quick` on two cores. In each round two processes take the steps at once, each on one
thread, and then a third takes as many as both together, on two threads. Tokens a second by the
clock, which is what a user waits for: run it on a quiet machine. The median ratio over rounds tells
how much a study gains by `--jobs 2`.
"""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import argparse
import multiprocessing
import statistics
import time
from concurrent.futures import ProcessPoolExecutor, wait

import torch
from rich.console import Console
from rich.table import Table
from sizes import trainer_of

from models.config import quick
from models.memory import keep_freed_memory
from models.optimization import Trainer

trainer: Trainer


def begin(arm: str, n_threads: int) -> None:
    """Make the run that this process trains, and let it take its first steps."""
    global trainer
    torch.set_num_threads(n_threads)
    keep_freed_memory()
    study = quick()
    run = next(run for run in study.runs if run.arm == arm)
    trainer = trainer_of(run, batch_size=study.train.batch_size)
    advance(3)


def advance(n_steps: int) -> None:
    for _ in range(n_steps):
        trainer.advance()


def process(arm: str, n_threads: int) -> ProcessPoolExecutor:
    spawn = multiprocessing.get_context("spawn")
    return ProcessPoolExecutor(1, mp_context=spawn, initializer=begin, initargs=(arm, n_threads))


def seconds(processes: list[ProcessPoolExecutor], n_steps: int) -> float:
    """Until all of these processes have taken their steps, at once."""
    start = time.perf_counter()
    for taken in wait([p.submit(advance, n_steps) for p in processes]).done:
        taken.result()
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--arm", choices=sorted({run.arm for run in quick().runs}), default="dense")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=7)
    args = parser.parse_args()
    both, alone = [process(args.arm, 1), process(args.arm, 1)], process(args.arm, 2)
    seconds([*both, alone], 1)  # all have begun
    beside, after = [], []
    for _ in range(args.rounds):
        beside.append(seconds(both, args.steps))
        after.append(seconds([alone], 2 * args.steps))
    for one in (*both, alone):
        one.shutdown()
    n_tokens = 2 * args.steps * quick().train.batch_size * quick().data.n_ctx
    table = Table(title=f"two runs of quick, {args.arm}, two cores")
    table.add_column("")
    table.add_column("tokens a second", justify="right")
    for name, taken in (("side by side", beside), ("one after the other", after)):
        table.add_row(name, f"{n_tokens / statistics.median(taken):,.0f}")
    Console().print(table)
    gain = statistics.median(b / a for a, b in zip(beside, after, strict=True))
    print(f"side by side is {gain:.2f} times as fast")


if __name__ == "__main__":
    main()
