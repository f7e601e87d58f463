"""Activations far larger than memory, compared layer by layer: time and peak memory over steps.

    python tests/benchmarks/large_activations.py [FOLDER] [--runs 12] [--layers 9]
        [--tokens 20000] [--features 792] [--steps 2 10]

Writes synthetic runs with the real store into FOLDER (default: a temporary folder, removed again).
Two steps of each run are written; the others are links to their files, since what a step takes to
read and compare does not depend on its values. Then runs `python -m analyses.cka_over_time` whole,
page included, once for each number of steps, and once here and once with `--dask local` on a small
study. Resident memory is that of the command and all its children, as /proc tells it (Linux). Exits
with 1 if dask changes a number, or if 50 steps would take 4 GB or more: where fewer were analysed,
at what the last ones of them added to the peak, step by step.
"""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import argparse
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import xarray as xr
from large_study import ARMS, LIMIT, Measured, kept_or_temporary, measured, same_numbers
from rich.console import Console
from rich.table import Table

from store.run import Run

N_POS = 16
SEQUENCES_A_WORK = 5
PROMISED_STEPS = 50
SMALL = {"n_layers": 2, "n_tokens": 1600, "n_features": 24}


def probe_set(n_tokens: int) -> xr.Dataset:
    """Works of five documents of one sequence each."""
    shape = (n_tokens // N_POS, N_POS)
    token = np.random.default_rng(0).integers(0, 64, shape, dtype="int32")
    document = np.arange(shape[0])

    def names(what: str, numbers: np.ndarray) -> tuple[str, np.ndarray]:
        return "sequence", np.array([f"{what} {i:05d}" for i in numbers], dtype=object)

    return xr.Dataset(
        {
            "token": (("sequence", "pos"), token),
            "target": (("sequence", "pos"), np.roll(token, -1, axis=1)),
            "document": names("document", document),
            "work": names("work", document // SEQUENCES_A_WORK),
            "domain": names("domain", document // SEQUENCES_A_WORK % 4),
        },
        {"sequence": document, "pos": np.arange(N_POS)},
    )


def activations(
    i: int, step: int, *, n_layers: int, n_tokens: int, n_features: int
) -> dict[str, xr.Dataset]:
    """Of run i: a stream to which each layer adds what all runs share, and as much of its own."""
    shape = n_tokens // N_POS, N_POS, n_features
    stream = np.zeros(shape, dtype=np.float32)
    layers = np.empty((n_layers, *shape), dtype=np.float16)
    for layer in range(n_layers):
        for seed in ([step, layer], [step, layer, i + 1]):
            stream += np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)
        layers[layer] = stream
    dims = ("layer", "sequence", "pos", "d_model")
    labels = {
        "layer": np.arange(n_layers),
        "sequence": np.arange(shape[0]),
        "pos": np.arange(N_POS),
    }
    return {"activations": xr.Dataset({"resid_post": (dims, layers)}, labels)}


def write_study(folder: Path, *, n_runs: int, n_steps: int, **sizes: int) -> None:
    """Runs of four arms, of which the first two steps are written and committed."""
    folder.mkdir(parents=True)
    shown = probe_set(sizes["n_tokens"])
    for i in range(n_runs):
        number, (arm, architecture) = i // len(ARMS), list(ARMS.items())[i % len(ARMS)]
        seen = activations(i, 0, **sizes)
        run = Run.create(
            folder / f"{arm}-seed{number}.zarr", shown, seen, steps=np.arange(n_steps),
            training_steps=n_steps, attrs={},
            coordinates={"arm": arm, "architecture": architecture, "seed": number},
        )  # fmt: skip
        for step in range(2):
            run.write(step, activations(i, step, **sizes))
            run.commit(step)


def commit_first(study: Path, n_steps: int) -> None:
    """Commit that many steps of each run; those not written link to the first two by turns."""
    for path in sorted(study.glob("*.zarr")):
        run, chunks = Run.open(path), path / "activations" / "resid_post" / "c"
        for step in range(len(run.committed), n_steps):
            shutil.copytree(chunks / str(step % 2), chunks / str(step), copy_function=os.link)
            run.commit(step)


def analysed(study: Path, report: Path, *flags: str) -> Measured:
    """Run the analysis whole."""
    command = [sys.executable, "-m", "analyses.cka_over_time", str(study), "--report", str(report)]
    return measured([*command, *flags])


def dask_changes_nothing(folder: Path) -> bool:
    """Whether a small study gives the same numbers on a local cluster."""
    shutil.rmtree(folder, ignore_errors=True)
    write_study(folder / "study", n_runs=8, n_steps=3, **SMALL)
    analysed(folder / "study", folder / "here")
    analysed(folder / "study", folder / "dask", "--dask", "local")
    return same_numbers(*(folder / name / "cka_over_time" for name in ("here", "dask")))


def peak_at(n_steps: int, steps: Sequence[int], peaks: Sequence[int]) -> float:
    """Peak memory at more steps, if each adds what the last ones added; steps ascend."""
    if len(steps) < 2 or n_steps <= steps[-1]:
        return max(peaks)
    a_step = (peaks[-1] - peaks[-2]) / (steps[-1] - steps[-2])
    return max(*peaks, peaks[-1] + a_step * (n_steps - steps[-1]))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", nargs="?", type=Path, help="keep the study and reports there")
    parser.add_argument("--runs", type=int, default=12)
    parser.add_argument("--layers", type=int, default=9)
    parser.add_argument("--tokens", type=int, default=20_000)
    parser.add_argument("--features", type=int, default=792)
    parser.add_argument("--steps", type=int, nargs="+", default=[2, 10])
    args = parser.parse_args()
    args.steps = sorted(set(args.steps))
    if args.tokens % N_POS or args.steps[0] < 2:
        parser.error(f"give a multiple of {N_POS} tokens, and numbers of steps of at least 2")
    if len(args.steps) < 2 and args.steps[0] < PROMISED_STEPS:
        parser.error(f"give two numbers of steps, or {PROMISED_STEPS}: one tells no growth")

    with kept_or_temporary(args.folder, "large-activations") as folder:
        return benchmark(folder, args)


def benchmark(folder: Path, args: argparse.Namespace) -> int:
    console, study, peaks = Console(width=110), folder / "study", []
    bytes_a_step = 2 * args.runs * args.layers * args.tokens * args.features
    folder.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(folder).free
    if not study.exists():
        if free < 2.2 * bytes_a_step:
            needed = 2.2 * bytes_a_step / 1e9
            console.print(f"{folder} has {free / 1e9:.1f} GB free, {needed:.1f} are needed")
            return 1
        write_study(
            study, n_runs=args.runs, n_steps=max(args.steps), n_layers=args.layers,
            n_tokens=args.tokens, n_features=args.features,
        )  # fmt: skip
    table = Table(
        title=f"cka_over_time: {args.runs} runs x {args.layers} layers x {args.tokens:,} tokens x "
        f"{args.features} features in float16, {os.cpu_count()} cores"
    )
    for column in ("steps", "activations, GB", "seconds", "processor seconds", "peak GB"):
        table.add_column(column, justify="right")
    for n_steps in args.steps:
        commit_first(study, n_steps)
        found = analysed(study, folder / f"steps-{n_steps}")
        peaks.append(found.peak)
        table.add_row(
            f"{n_steps}", f"{n_steps * bytes_a_step / 1e9:.1f}", f"{found.seconds:.0f}",
            f"{found.processor_seconds:.0f}", f"{found.peak / 1e9:.2f}",
        )  # fmt: skip
    console.print(table)
    same = dask_changes_nothing(folder / "small")
    console.print(f"dask gives the same numbers: {'yes' if same else 'NO'}")
    expected = peak_at(PROMISED_STEPS, args.steps, peaks)
    told = "measured" if args.steps[-1] >= PROMISED_STEPS else "at this growth"
    console.print(f"peak at {PROMISED_STEPS} steps, {told}: {expected / 1e9:.2f} GB")
    if expected >= LIMIT:
        console.print(f"that is not below {LIMIT / 1e9:.0f} GB")
    return int(not same or expected >= LIMIT)


if __name__ == "__main__":
    raise SystemExit(main())
