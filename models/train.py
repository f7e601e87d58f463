"""Train the runs of a study, watch each on the probe set while it trains, and store what was seen.

    python -m models.train quick                            # five small runs, minutes on two cores
    python -m models.train quick --run dense-seed0          # only that run
    python -m models.train seeds --set train.n_steps=900 --set name=longer

A study is a folder: `studies/quick/` holds the prepared text (`data/`), one store a run
(`dense-seed0.zarr`), and, while a run is unfinished, what it resumes from
(`dense-seed0.resume.pt`).
Interrupt it at any moment and give the same command again: finished runs are skipped, an
unfinished one goes on from its last observation; on a CPU its arrays come out bit-identical.
"""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # read once, when torch is first imported

import argparse
import dataclasses
import functools
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from rich.console import Console

from models.config import PRESETS, Precision, StudyConfig, as_json
from models.data import prepare
from models.optimization import training_precision
from models.progress import TrainingProgress
from models.settings import override
from models.side_by_side import train_side_by_side
from models.training import Job, replace_file, train_run
from store.schema import ACTIVATION_SITES


def train_study(
    study: StudyConfig,
    out: Path,
    *,
    run_name: str | None = None,
    device: torch.device,
    n_workers: int | None = None,
    keep_weights: bool = False,
    console: Console,
) -> Path:
    """Train the runs of a study that are not finished; return the study's folder.

    Raises
    ------
    ValueError
        For a run name the study does not have, too little text, or a folder made by another
        configuration.
    OSError
        If something cannot be written.
    """
    runs = [run for run in study.runs if run_name in (None, run.name)]
    if not runs:
        names = ", ".join(run.name for run in study.runs)
        raise ValueError(f"study {study.name!r} has no run {run_name!r}; its runs: {names}")
    if unknown := sorted(set(study.train.activation_sites) - set(ACTIVATION_SITES)):
        raise ValueError(
            f"train.activation_sites {', '.join(unknown)}: known are {', '.join(ACTIVATION_SITES)}"
        )
    folder = out / study.name
    study = settled(folder, study, device)
    with console.status("preparing the text") as status:
        prepare(
            study.data,
            folder / "data",
            n_sequences=study.train.n_sequences,
            progress=status.update,
        )
    if not (folder / "study.json").exists():
        replace_file(folder / "study.json", as_json(study).encode())

    jobs = [Job(folder, study, run, str(device), keep_weights) for run in runs]
    for job in jobs:
        if keep_weights and job.store_path.exists() and not job.weights_path.exists():
            console.print(
                f"{job.run.name} was begun without --keep-weights, and keeps weights from here on "
                f"only; remove {job.store_path} to train it anew",
                style="yellow",
            )
    n_workers = n_workers or default_workers(study, device)
    n_workers = min(n_workers, sum(not job.finished for job in jobs))
    with TrainingProgress(console, study.train, n_ctx=study.data.n_ctx, n_runs=len(runs)) as shown:
        if n_workers > 1:
            train_side_by_side(jobs, shown, n_workers=n_workers)
            return folder
        for job in jobs:
            shown.start(job.run.name)
            loss = train_run(job, functools.partial(shown.update, job.run.name))
            shown.end(job.run.name, loss)
    return folder


def default_workers(study: StudyConfig, device: torch.device) -> int:
    """Runs at a time: as many as have a core for each of their threads; one on a GPU."""
    if device.type != "cpu" or study.train.threads is None:
        return 1
    return max(1, torch.get_num_threads() // study.train.threads)


def settled(folder: Path, study: StudyConfig, device: torch.device) -> StudyConfig:
    """The study with what its first call decides for all runs fixed.

    "auto" precision becomes the device's, or what the folder's study already settled on.

    Raises
    ------
    ValueError
        If the folder holds a study with another configuration.
    """
    path = folder / "study.json"
    try:
        known = json.loads(path.read_text()) if path.exists() else None
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is damaged ({error}); remove it, the study goes on") from None
    if study.train.precision == "auto":
        precision: Precision = known["train"]["precision"] if known else training_precision(device)
        train = dataclasses.replace(study.train, precision=precision)
        study = dataclasses.replace(study, train=train)
    wanted = json.loads(as_json(study))
    if known not in (None, wanted):
        raise ValueError(
            f"{folder} holds a study with another configuration ({_difference(known, wanted)}); "
            "give this one another name (--set name=...) or another --out"
        )
    return study


def _difference(known: dict, wanted: dict) -> str:
    """The settings in which two configurations differ, for a message."""
    parts = [
        f"{section}.{name} {known[section].get(name)!r}, now {wanted[section][name]!r}"
        for section in ("data", "train")
        for name in wanted[section]
        if known[section].get(name) != wanted[section][name]
    ]
    return "; ".join(parts) or "its runs or models differ"


def named_device(name: str) -> torch.device:
    """The device that a command line names; "auto" is a GPU where there is one.

    Raises
    ------
    ValueError
        If it cannot be used here.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(
            f"--device {name!r} cannot be used here ({reason}); use auto or cpu"
        ) from None
    return device


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m models.train",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    presets = "; ".join(f"{name}: {(make.__doc__ or '').strip()}" for name, make in PRESETS.items())
    parser.add_argument("study", choices=PRESETS, metavar="STUDY", help=presets)
    parser.add_argument("--run", metavar="NAME", help="train only this run")
    parser.add_argument(
        "--out", type=Path, default=Path("studies"), metavar="DIR",
        help="folder of studies (default: studies)",
    )  # fmt: skip
    parser.add_argument(
        "--jobs", type=int, metavar="N",
        help="runs trained at a time (default: as many as the cores allow for train.threads)",
    )  # fmt: skip
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1 (default: auto)")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", dest="settings",
        help="change a setting, as in train.n_steps=100; may be repeated",
    )  # fmt: skip
    parser.add_argument(
        "--keep-weights", action="store_true",
        help="keep the weights of every observation, as safetensors",
    )  # fmt: skip
    args = parser.parse_args(argv)
    if args.jobs is not None and args.jobs < 1:
        parser.error(f"--jobs {args.jobs}: give 1 or more")
    console = Console()
    try:
        folder = train_study(
            override(PRESETS[args.study](), args.settings),
            args.out,
            run_name=args.run,
            device=named_device(args.device),
            n_workers=args.jobs,
            keep_weights=args.keep_weights,
            console=console,
        )
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
    console.print(
        f"study: {folder}\nask it: python -m analyses.r2_over_time {folder}", highlight=False
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
