"""Runs of a study trained at the same time, each in a process of its own.

Small models do not fill a machine: on two cores, two runs of one thread each take less time than
one after the other on two threads. What a run computes does not depend on who trains beside it.
"""

import multiprocessing
import os
import queue
import signal
from collections.abc import Sequence
from multiprocessing.process import BaseProcess
from typing import Any

from models.progress import TrainingProgress
from models.training import Job, train_run


def train_side_by_side(
    jobs: Sequence[Job], shown: TrainingProgress, *, n_workers: int
) -> list[Job]:
    """Train the runs in `n_workers` processes, in order; all stop with the first that fails.

    Returns
    -------
    list[Job]
        Those that other commands are training.

    Raises
    ------
    ValueError, OSError
        As `train_run` does; OSError too if a process dies.
    """
    context = multiprocessing.get_context("spawn")  # threads of torch do not survive a fork
    pending: Any = context.Queue()
    events: Any = context.Queue()
    for item in (*jobs, *[None] * n_workers):
        pending.put(item)
    workers = [
        context.Process(target=_work, args=(pending, events), daemon=True) for _ in range(n_workers)
    ]
    for worker in workers:
        worker.start()
    try:
        n_waiting, left = len(jobs), set()
        while n_waiting:
            what, *values = _next_event(events, workers)
            if what == "failed":
                raise values[0]
            getattr(shown, what)(*values)
            n_waiting -= what in ("end", "leave")
            left |= {*values} if what == "leave" else set()
        return [job for job in jobs if job.run.name in left]
    finally:
        for worker in workers:
            worker.terminate()
            worker.join()


def _next_event(events: Any, workers: Sequence[BaseProcess]) -> tuple[Any, ...]:
    while True:
        try:
            return events.get(timeout=1)
        except queue.Empty:
            for worker in workers:
                if worker.exitcode:
                    raise OSError(
                        f"a training process ended with exit code {worker.exitcode}; if memory "
                        "ran out, train fewer runs at a time (--jobs 1)"
                    ) from None


def _work(pending: Any, events: Any) -> None:
    """Train one run after the other until there is none, or the parent is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends the workers
    parent = multiprocessing.parent_process()
    assert parent is not None

    for job in iter(pending.get, None):
        name = job.run.name

        def update(step: int, loss: float, name: str = name) -> None:
            if not parent.is_alive():
                os._exit(1)
            events.put(("update", name, step, loss))

        events.put(("start", name))
        try:
            loss = train_run(job, update)
        except (ValueError, OSError) as error:
            events.put(("failed", error))
            return
        events.put(("leave", name) if loss is None else ("end", name, loss))
