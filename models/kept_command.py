"""The command line of everything that measures a finished run with the weights it kept.

Runs, steps, device and part of the probe set are asked for alike, and a command that was stopped
goes on with the next step.
"""

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from models.kept import (
    Measurement,
    listed,
    measure,
    missing_steps,
    model_config,
    text_of,
    weights_file,
)
from models.train import named_device
from store.run import Run


def parser_of(prog: str, doc: str) -> argparse.ArgumentParser:
    """The options that every such command has."""
    parser = argparse.ArgumentParser(
        prog=f"python -m {prog}",
        description=doc,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("runs", nargs="+", metavar="RUN", help="store of a run, NAME.zarr")
    parser.add_argument(
        "--steps", type=_steps, default="last", metavar="last|all|N,N",
        help="last, all whose weights were kept, or steps by number (default: last)",
    )  # fmt: skip
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1 (default: auto)")
    parser.add_argument(
        "--batch-size", type=int, default=32, metavar="N", help="sequences at a time (default: 32)"
    )
    parser.add_argument(
        "--documents", type=int, metavar="N",
        help="only the first N documents of the probe set (default: all)",
    )  # fmt: skip
    return parser


def parsed(parser: argparse.ArgumentParser, argv: Sequence[str] | None) -> argparse.Namespace:
    """What was asked for; sizes below 1 are refused."""
    args = parser.parse_args(argv)
    for name in ("batch_size", "documents", "positions"):
        if (value := getattr(args, name, None)) is not None and value < 1:
            parser.error(f"--{name.replace('_', '-')} {value}: give 1 or more")
    return args


def run_command(args: argparse.Namespace, what: Measurement, *, question: str) -> int:
    """Measure all runs that the command line names; return its exit code.

    Parameters
    ----------
    question : the analysis that reads the group.
    """
    console = Console()
    try:
        _measure_all(args, what, named_device(args.device), console)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"error: {error}\nCommitted steps are safe; mend that and give the same command "
              "again to go on from them.", file=sys.stderr)  # fmt: skip
        return 1
    except KeyboardInterrupt:
        print("stopped; give the same command again to go on", file=sys.stderr)
        return 130
    folder = Path(args.runs[0]).parent
    console.print(f"ask it: python -m analyses.{question} {folder}", highlight=False)
    return 0


def _steps(text: str) -> str | list[int]:
    """ "last", "all", or steps, for argparse."""
    return text if text in ("last", "all") else [int(step) for step in text.split(",")]


def _asked_steps(run: Run, steps: str | list[int]) -> list[int]:
    committed = run.committed.tolist()
    if not committed:
        raise ValueError(f"run {run.name!r} has no committed step yet; train it first")
    if steps == "all":
        kept = [step for step in committed if weights_file(run, step).is_file()]
        return kept or committed
    return committed[-1:] if steps == "last" else [int(step) for step in steps]


def _measure_all(
    args: argparse.Namespace, what: Measurement, device: torch.device, console: Console
) -> None:
    """Measure the runs in order, with a bar over all parts that are left."""
    todo = [(run, _asked_steps(run, args.steps)) for run in map(Run.open, args.runs)]
    total = 0
    for run, steps in todo:
        missing, text = missing_steps(run, steps, what), text_of(run, args.documents)
        total += len(missing) * what.n_parts(model_config(run), text, args.batch_size)
    columns = (
        TextColumn("run {task.fields[i]} of {task.fields[n]}  [bold]{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn(f"{{task.fields[rate]}} {what.parts}/s "),
        TimeRemainingColumn(),
    )
    with Progress(
        *columns, console=console, transient=True, disable=not console.is_terminal
    ) as bar:
        task = bar.add_task("", total=total, i=0, n=len(todo), rate="-")

        def advance(n: int) -> None:
            bar.advance(task, n)
            speed = bar.tasks[task].speed
            bar.update(task, rate=f"{speed:.1f}" if speed else "-")

        for i, (run, steps) in enumerate(todo, 1):
            bar.update(task, description=run.name, i=i)
            began = time.perf_counter()
            sizes = {"batch_size": args.batch_size, "n_documents": args.documents}
            done = measure(run, steps, what, device=device, advance=advance, **sizes)
            seconds = time.perf_counter() - began
            said = f"{what.done} at step {listed(done)}, {seconds:.0f} s" if done else (
                f"already {what.done} at step {listed(steps)}"
            )  # fmt: skip
            console.print(f"{run.name}: {said}", highlight=False, soft_wrap=True)
