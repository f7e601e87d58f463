"""Train the runs of a study, watch each on the probe set while it trains, and store what was seen.

    python -m models.train quick                            # five small runs, minutes on two cores
    python -m models.train quick --run dense-seed0          # only that run
    python -m models.train quick --part 2/4                 # only every fourth, from the second on
    python -m models.train seeds --set train.n_steps=900 --set name=longer
    torchrun --nproc-per-node 2 -m -- models.train quick    # each run by two processes
    torchrun --nproc-per-node 8 -m -- models.train reference --shard    # which share the model

A study is a folder: `studies/quick/` holds the prepared text (`data/`), one store a run
(`dense-seed0.zarr`), and, while a run is unfinished, what it resumes from
(`dense-seed0.resume.pt`).
Interrupt it at any moment and give the same command again: finished runs are skipped, an
unfinished one goes on from its last observation; on a CPU its arrays come out bit-identical.
Give it on several machines that share the folder, and each takes the runs that no other has.
"""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # read once, when torch is first imported

import argparse
import dataclasses
import functools
import json
import re
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from rich.console import Console

from models.claims import claimed
from models.config import PRESETS, Precision, RunConfig, StudyConfig, as_json
from models.data import prepare
from models.distributed import from_first, joined_ranks, launched, own_device
from models.optimization import training_precision
from models.progress import TrainingProgress
from models.settings import override
from models.side_by_side import train_side_by_side
from models.training import Job, replaced, train_run
from store.schema import ACTIVATION_SITES


def train_study(
    study: StudyConfig,
    out: Path,
    *,
    run_name: str | None = None,
    part: tuple[int, int] = (1, 1),
    device: torch.device,
    n_workers: int | None = None,
    keep_weights: bool = False,
    sharded: bool = False,
    compiled: bool = False,
    console: Console,
) -> Path:
    """Train the runs of a study that are not finished; return the study's folder.

    Runs that another command is training are left to it.

    Parameters
    ----------
    run_name : the only run to train.
    part : (i, n), to train only every n-th run, from the i-th on, counted from 1.

    Raises
    ------
    ValueError
        For a run name or a part that the study does not have, too little text, or a folder made by
        another configuration.
    OSError
        If something cannot be written, or if a process that takes part ends.
    """
    runs = _chosen(study, run_name, part)
    if launched() and n_workers not in (None, 1):
        raise ValueError(f"--jobs {n_workers}: under torchrun, runs are trained one after another")
    if sharded and not launched():
        raise ValueError("--shard: a model is shared among ranks, which torchrun starts")
    if unknown := sorted(set(study.train.activation_sites) - set(ACTIVATION_SITES)):
        raise ValueError(
            f"train.activation_sites {', '.join(unknown)}: known are {', '.join(ACTIVATION_SITES)}"
        )
    folder = out / study.name
    with console.status("preparing the text") as status:
        study = ready(folder, study, device, status.update)
    in_float32 = device.type == "cpu" and study.train.precision == "float32"
    if compiled and in_float32 and any(run.model.router for run in runs):
        raise ValueError(
            "--compile: torch does not compile the products of experts in float32 on a CPU; leave "
            "it out, or train in bfloat16 (--set train.precision=bfloat16)"
        )

    with (
        joined_ranks(device),
        TrainingProgress(console, study.train, n_ctx=study.data.n_ctx, n_runs=len(runs)) as shown,
    ):
        study = from_first(study)
        jobs = [
            Job(folder, study, run, str(device), keep_weights, sharded, compiled) for run in runs
        ]
        for job in jobs:
            if keep_weights and job.store_path.exists() and not job.weights_path.exists():
                shown.say(
                    f"{job.run.name} was begun without --keep-weights, and keeps weights from here "
                    f"on only; remove {job.store_path} to train it anew"
                )
        n_workers = n_workers or default_workers(study, device)
        _train(jobs, shown, min(n_workers, sum(not job.finished for job in jobs)))
    return folder


def _chosen(
    study: StudyConfig, run_name: str | None, part: tuple[int, int]
) -> tuple[RunConfig, ...]:
    """The runs that a command is to train."""
    if run_name is not None:
        runs = tuple(run for run in study.runs if run.name == run_name)
        if not runs:
            names = ", ".join(run.name for run in study.runs)
            raise ValueError(f"study {study.name!r} has no run {run_name!r}; its runs: {names}")
        return runs
    i, n = part
    if not 1 <= i <= min(n, len(study.runs)):
        raise ValueError(
            f"--part {i}/{n} is none of {n} parts of {len(study.runs)} runs; give --part 1/N to "
            f"N/N, and an N of at most {len(study.runs)}"
        )
    return study.runs[i - 1 :: n]


def _train(jobs: Sequence[Job], shown: TrainingProgress, n_workers: int) -> None:
    """Train all runs that no other command does, and look again at what others then left."""
    taken, n_before = jobs, 0
    while len(taken) != n_before:
        waiting, n_before = taken, len(taken)
        if n_workers > 1:
            taken = train_side_by_side(waiting, shown, n_workers=min(n_workers, n_before))
        else:
            taken = [job for job in waiting if not _trained(job, shown)]
    for job in taken:
        shown.say(f"{job.run.name}: another command is training it")


def _trained(job: Job, shown: TrainingProgress) -> bool:
    """Whether a run is trained now, and not by another command."""
    shown.start(job.run.name)
    loss = train_run(job, functools.partial(shown.update, job.run.name))
    if loss is None:
        shown.leave(job.run.name)
    else:
        shown.end(job.run.name, loss)
    return loss is not None


def default_workers(study: StudyConfig, device: torch.device) -> int:
    """Runs at a time: as many as have a core for each of their threads; else one."""
    if launched() or device.type != "cpu" or study.train.threads is None:
        return 1
    return max(1, torch.get_num_threads() // study.train.threads)


def ready(
    folder: Path, study: StudyConfig, device: torch.device, progress: Callable[[str], None]
) -> StudyConfig:
    """The study, settled, with its text prepared; by one command at a time, others wait.

    Raises
    ------
    ValueError
        If there is too little text, or the folder was made by another configuration.
    """
    n_sequences = study.train.n_sequences
    if (folder / "study.json").exists() and (folder / "data").exists():
        study = settled(folder, study, device)
        prepare(study.data, folder / "data", n_sequences=n_sequences)
        return study
    folder.mkdir(parents=True, exist_ok=True)
    with claimed(folder / "study.claim", wait=True):
        for left_behind in folder.glob("data.*.partial"):  # by a command killed right here
            shutil.rmtree(left_behind)
        study = settled(folder, study, device)
        prepare(study.data, folder / "data", n_sequences=n_sequences, progress=progress)
        if not (folder / "study.json").exists():
            with replaced(folder / "study.json") as file:
                file.write(as_json(study).encode())
    return study


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


def _part(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"(\d+)/(\d+)", text)
    if match is None:
        raise argparse.ArgumentTypeError(f"{text!r} is not of the form I/N, as in 1/4")
    return int(match[1]), int(match[2])


def _folder(text: str) -> Path:
    if "://" in text:
        raise argparse.ArgumentTypeError(
            f"{text} is a URL, and training writes to a folder; train into one, then copy it there"
        )
    return Path(text)


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m models.train",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    presets = "; ".join(f"{name}: {(make.__doc__ or '').strip()}" for name, make in PRESETS.items())
    parser.add_argument("study", choices=PRESETS, metavar="STUDY", help=presets)
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--run", metavar="NAME", help="train only this run")
    which.add_argument(
        "--part", type=_part, default=(1, 1), metavar="I/N",
        help="train only every N-th run, from the I-th on, as in 1/4 to 4/4 on four machines",
    )  # fmt: skip
    parser.add_argument(
        "--out", type=_folder, default=Path("studies"), metavar="DIR",
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
    parser.add_argument(
        "--shard", action="store_true",
        help="under torchrun: each process holds a share of the model, for those that do not fit",
    )  # fmt: skip
    parser.add_argument(
        "--compile", action="store_true",
        help="train through torch.compile: for a GPU; the first step then takes minutes",
    )  # fmt: skip
    args = parser.parse_args(argv)
    if args.jobs is not None and args.jobs < 1:
        parser.error(f"--jobs {args.jobs}: give 1 or more")
    console = Console(quiet=launched() and os.environ["RANK"] != "0")
    try:
        folder = train_study(
            override(PRESETS[args.study](), args.settings),
            args.out,
            run_name=args.run,
            part=args.part,
            device=own_device(named_device(args.device)),
            n_workers=args.jobs,
            keep_weights=args.keep_weights,
            sharded=args.shard,
            compiled=args.compile,
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
