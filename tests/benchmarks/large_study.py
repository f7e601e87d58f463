"""A study larger than memory should hold, analysed for all pairs of runs: time and peak memory.

    python tests/benchmarks/large_study.py [FOLDER] [--runs 12] [--steps 50] [--tokens 1000000]

Writes a synthetic study with the real store into FOLDER (default: a temporary folder, removed
again), unless one is there. Then runs `python -m analyses.r2_over_time` on it, here and with
`--dask local`, and adds up the resident memory of the command and all its children while it runs,
as /proc tells it (Linux). Exits with 1 if the command without dask needs 4 GB or more, or if dask
changes a number.
"""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
import xarray as xr
from rich.console import Console
from rich.table import Table

from store.run import Run

ARMS = {"dense": "dense", "dense_20": "dense", "switch": "moe", "hash": "moe"}
N_POS = 250
SEQUENCES_A_DOCUMENT, DOCUMENTS_A_WORK, N_DOMAINS = 2, 2, 4
N_ORDERS, D_VOCAB = 5, 4096
LIMIT = 4e9


class Measured(NamedTuple):
    """One run of the command: seconds by the clock and of all processors, peak memory in bytes."""

    seconds: float
    processor_seconds: float
    peak: int


def probe_set(n_tokens: int, rng: np.random.Generator) -> xr.Dataset:
    """Documents of two sequences, works of two documents, with n-gram surprisal of five orders."""
    shape = (n_tokens // N_POS, N_POS)
    token = rng.integers(0, D_VOCAB, shape, dtype="int32")
    document = np.arange(shape[0]) // SEQUENCES_A_DOCUMENT
    work = document // DOCUMENTS_A_WORK
    hardness = rng.gamma(2.0, 1.0, shape).astype("float32")
    surprisal = [hardness + order / 2 * rng.standard_normal(shape) for order in range(N_ORDERS)]

    def names(what: str, numbers: np.ndarray) -> tuple[str, np.ndarray]:
        return "sequence", np.array([f"{what} {i:04d}" for i in numbers], dtype=object)

    return xr.Dataset(
        {
            "token": (("sequence", "pos"), token),
            "target": (("sequence", "pos"), np.roll(token, -1, axis=1)),
            "document": names("document", document),
            "work": names("work", work),
            "domain": names("domain", work % N_DOMAINS),
            "ngram_surprisal": (("order", "sequence", "pos"), np.stack(surprisal).astype("f4")),
            "token_frequency": ("d_vocab", rng.integers(1, 10**6, D_VOCAB)),
        },
        {"order": np.arange(1, N_ORDERS + 1)},
    )


def write_study(folder: Path, *, n_runs: int, steps: np.ndarray, n_tokens: int) -> None:
    """Losses of runs of four arms: n-gram surprisal, a part of the arm, and noise of the run."""
    shown = probe_set(n_tokens, np.random.default_rng(0))
    shape = shown["token"].shape
    shared = shown["ngram_surprisal"].values[0]
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(n_runs):
        number, (arm, architecture) = i // len(ARMS), list(ARMS.items())[i % len(ARMS)]
        of_arm = np.random.default_rng([1, i % len(ARMS)]).standard_normal(shape, dtype="float32")
        rng = np.random.default_rng([2, i])

        def losses(at: int) -> dict[str, xr.Dataset]:
            noise = rng.standard_normal(shape, dtype="float32")  # noqa: B023
            values = 3 + shared * (1 + at / len(steps)) + (of_arm / 2 + noise) / 2  # noqa: B023
            return {"losses": xr.Dataset({"loss": (("sequence", "pos"), values)})}

        run = Run.create(
            folder / f"{arm}-seed{number}.zarr", shown, losses(0), steps=steps,
            training_steps=int(steps[-1]), attrs={},
            coordinates={"arm": arm, "architecture": architecture, "seed": number},
        )  # fmt: skip
        for at, step in enumerate(steps.tolist()):
            run.write(step, losses(at))
            run.commit(step)


def measured(command: list[str], *, interval: float = 0.25) -> Measured:
    """Run a command to its end and watch the resident memory of it and its descendants.

    Raises
    ------
    RuntimeError
        If it fails.
    """
    start, peak, ended = time.perf_counter(), 0, 0
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    while not ended:
        peak = max(peak, resident_bytes(process.pid))
        time.sleep(interval)
        ended, status, used = os.wait4(process.pid, os.WNOHANG)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise RuntimeError(f"{' '.join(command)} exited with {process.returncode}")
    # of a single process the kernel knows the peak that falls between two looks
    peak = max(peak, 1024 * used.ru_maxrss)
    return Measured(time.perf_counter() - start, used.ru_utime + used.ru_stime, peak)


def resident_bytes(root: int) -> int:
    """Resident memory of a process and all its descendants; pages they share count for each."""
    parent, pages = {}, {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            # what follows the command's name, which may hold spaces: state, parent, ...
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):  # it has ended since
            continue
        parent[int(folder.name)], pages[int(folder.name)] = int(fields[1]), int(fields[21])
    total, family = 0, [root]
    while family:
        member = family.pop()
        total += pages.get(member, 0)
        family += [child for child, of in parent.items() if of == member]
    return total * os.sysconf("SC_PAGE_SIZE")


def same_numbers(a: Path, b: Path) -> bool:
    """Whether two reports hold the same results, and draws if there are many, bit by bit."""
    here, there = (json.loads((report / "results.json").read_text()) for report in (a, b))
    if any(here[part] != there[part] for part in ("finding", "coords", "data_vars", "draws")):
        return False
    if not here["draws"]:
        return True
    with np.load(a / "draws.npz") as x, np.load(b / "draws.npz") as y:
        return x.files == y.files and all(
            np.array_equal(x[name], y[name], equal_nan=x[name].dtype.kind == "f")
            for name in x.files
        )


@contextmanager
def kept_or_temporary(folder: Path | None, name: str) -> Iterator[Path]:
    """The folder that was asked for, or a temporary one, removed again."""
    if folder is not None:
        yield folder
        return
    with tempfile.TemporaryDirectory(prefix=f"{name}-") as temporary:
        yield Path(temporary)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", nargs="?", type=Path, help="keep the study and reports there")
    parser.add_argument("--runs", type=int, default=12)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--tokens", type=int, default=1_000_000)
    parser.add_argument("--unit", choices=("work", "document"), default="work")
    args = parser.parse_args()

    with kept_or_temporary(args.folder, "large-study") as folder:
        return benchmark(folder, args)


def benchmark(folder: Path, args: argparse.Namespace) -> int:
    console, study = Console(width=110), folder / "study"
    n_bytes = 4 * args.runs * args.steps * args.tokens
    if not study.exists():
        free = shutil.disk_usage(folder.parent).free
        if free < 2 * n_bytes:
            console.print(f"{folder} has {free / 1e9:.1f} GB free, {2 * n_bytes / 1e9:.1f} needed")
            return 1
        start = time.perf_counter()
        steps = np.unique(np.r_[0, 2 ** np.arange(10), 512 * np.arange(2, args.steps)])
        write_study(study, n_runs=args.runs, steps=steps[: args.steps], n_tokens=args.tokens)
        console.print(f"written in {time.perf_counter() - start:.0f} s: {n_bytes / 1e9:.2f} GB")

    table = Table(
        title=f"r2_over_time: {args.runs} runs x {args.steps} steps x {args.tokens:,} tokens, "
        f"{args.runs * (args.runs - 1) // 2} pairs, {os.cpu_count()} cores"
    )
    for column in ("command", "seconds", "processor seconds", "peak GB", "draws.npz, MB"):
        table.add_column(column, justify="left" if column == "command" else "right")
    reports, peaks = [], []
    for flags in ([], ["--dask", "local"]):
        root = folder / ("dask" if flags else "here")
        command = ["-m", "analyses.r2_over_time", "--unit", args.unit, *flags]
        found = measured([sys.executable, *command, str(study), "--report", str(root)])
        reports.append(root / "r2_over_time")
        peaks.append(found.peak)
        size = (reports[-1] / "draws.npz").stat().st_size
        table.add_row(
            f"python {' '.join(command)}", f"{found.seconds:.0f}",
            f"{found.processor_seconds:.0f}", f"{found.peak / 1e9:.2f}", f"{size / 1e6:.0f}",
        )  # fmt: skip
    console.print(table)
    same = same_numbers(*reports)
    console.print(f"dask gives the same numbers: {'yes' if same else 'NO'}")
    if peaks[0] >= LIMIT:
        console.print(f"without dask it took {peaks[0] / 1e9:.2f} GB, not under {LIMIT / 1e9:.0f}")
    return int(not same or peaks[0] >= LIMIT)


if __name__ == "__main__":
    raise SystemExit(main())
