"""Analyses of a study side by side, each in a process of its own.

No analysis reads what another wrote, so they may run in any order; one that fails stops no other.
A process has its share of the cores, as two that each took all of them would get in each other's
way.
"""

import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from analyses.reporting.cli import UNANSWERABLE
from analyses.reporting.code import ROOT

_THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "VECLIB_MAXIMUM_THREADS")
_PATIENCE = 5.0


@dataclass(frozen=True)
class Outcome:
    """How an analysis ended.

    Attributes
    ----------
    analysis : its name.
    status : exit status; negative is the signal that ended it.
    seconds : that it took.
    said : what it wrote on standard error.
    """

    analysis: str
    status: int
    seconds: float
    said: str

    @property
    def state(self) -> str:
        """The status in words."""
        return {0: "done", UNANSWERABLE: "not recorded for it"}.get(self.status, "failed")

    @property
    def reason(self) -> str:
        """Why there is no report."""
        if self.status < 0:
            return f"ended by signal {-self.status}; if memory ran out, try --jobs 1"
        line = (self.said.splitlines() or [f"exit status {self.status}"])[-1]
        return line.removeprefix(f"{self.analysis}: ")


class Shown(Protocol):
    """What shows to a person how far the work is."""

    def start(self, analysis: str) -> None: ...

    def end(self, outcome: Outcome) -> None: ...


@dataclass(frozen=True)
class _Child:
    analysis: str
    process: subprocess.Popen[bytes]
    errors: Path
    began: float


def run_side_by_side(
    names: Sequence[str], arguments: Sequence[str], shown: Shown, *, jobs: int
) -> list[Outcome]:
    """Run analyses with the same arguments, at most `jobs` at a time, in this order.

    Returns
    -------
    list of Outcome
        In the order in which they ended.

    Raises
    ------
    KeyboardInterrupt
        After Ctrl-C or SIGTERM, once no process is left.
    """
    waiting, running, outcomes = deque(names), list[_Child](), []
    with tempfile.TemporaryDirectory() as errors, _interruptions() as interrupted:
        try:
            while (waiting or running) and not interrupted.is_set():
                while waiting and len(running) < jobs:
                    shown.start(waiting[0])
                    running.append(_start(waiting.popleft(), arguments, Path(errors), jobs=jobs))
                interrupted.wait(0.05)
                ended = [child for child in running if child.process.poll() is not None]
                for child in ended if not interrupted.is_set() else ():
                    running.remove(child)
                    outcomes.append(_ended(child))
                    shown.end(outcomes[-1])
        finally:
            _stop(running)
    if interrupted.is_set():
        raise KeyboardInterrupt
    return outcomes


@contextmanager
def _interruptions() -> Iterator[threading.Event]:
    """An event instead of an exception, which might come just as a process is started."""
    interrupted = threading.Event()
    signals = (signal.SIGINT, signal.SIGTERM)
    before = [signal.signal(number, lambda *_: interrupted.set()) for number in signals]
    try:
        yield interrupted
    finally:
        for number, handler in zip(signals, before, strict=True):
            signal.signal(number, handler)


def n_cores() -> int:
    """Processor cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _environment(jobs: int) -> dict[str, str]:
    share = str(max(1, n_cores() // jobs))
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    return dict.fromkeys(_THREADS, share) | os.environ | {"PYTHONPATH": path}


def _start(analysis: str, arguments: Sequence[str], folder: Path, *, jobs: int) -> _Child:
    path = folder / analysis
    with path.open("wb") as errors:
        process = subprocess.Popen(
            [sys.executable, "-m", f"analyses.{analysis}", *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=errors,
            env=_environment(jobs),
        )
    return _Child(analysis, process, path, time.perf_counter())


def _ended(child: _Child) -> Outcome:
    seconds = time.perf_counter() - child.began
    said = child.errors.read_text("utf-8", "replace").strip()
    return Outcome(child.analysis, child.process.returncode, seconds, said)


def _stop(children: Sequence[_Child]) -> None:
    for child in children:
        child.process.terminate()
    for child in children:
        try:
            child.process.wait(_PATIENCE)
        except subprocess.TimeoutExpired:
            child.process.kill()
            child.process.wait()
