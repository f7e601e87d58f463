"""What is wrong with the runs of a study, in words, told without reading what was recorded."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from store.chunks import chunk_file, is_written, load
from store.conform import OBSERVED
from store.places import all_sizes
from store.run import Run
from store.schema import ADDED

_OF_A_STUDY = ("study.json", "data")


@dataclass(frozen=True)
class Problem:
    """Something wrong.

    Attributes
    ----------
    where : run, or file of the study's folder.
    what : what is wrong, and what to do.
    needs_action : False for what does no harm.
    """

    where: str
    what: str
    needs_action: bool = True


def problems_of(run: Run) -> Iterator[Problem]:
    """What is wrong with one run by itself."""
    if not run.finished:
        n_done, n_steps = len(run.committed), len(run.steps)
        begun = _begun(run)
        also = (
            f", and part of step {begun} is there, not yet committed" if begun is not None else ""
        )
        yield Problem(
            run.name,
            f"unfinished: {n_done} of {n_steps} steps are committed{also}. Unless it is being "
            "trained now, give the command that trained it again, which goes on from there",
        )
    known = {"zarr.json", *run.groups}
    for file in all_sizes(run.path):
        if file.endswith(".partial"):
            yield _left(f"{run.path.name}/{file}", "write")
    for path in sorted(run.path.iterdir()):
        if path.name in ADDED and path.name not in run.groups:
            yield Problem(
                run.name,
                f"group {path.name!r} was laid out in part, by a command that was stopped; give "
                "that command again",
                needs_action=False,
            )
        elif path.name not in known and path.suffix != ".partial":
            yield _foreign(f"{run.name}.zarr/{path.name}")


def problems_among(streams: Sequence[tuple[Run, np.ndarray]]) -> Iterator[Problem]:
    """In what the runs of one study differ that they should share.

    Parameters
    ----------
    streams : runs, each with its `stream_hash` from `recorded`.
    """
    runs = [run for run, _ in streams]
    for run in runs[1:]:
        if run.attrs["probe_set_hash"] != runs[0].attrs["probe_set_hash"]:
            yield Problem(
                run.name,
                f"was watched on another probe set than {runs[0].name}, so a study cannot hold "
                "both; move it to another folder, or train it again in this study",
            )
    orders = {str(run.coordinates.get("order_seed")) for run in runs}
    if len(orders) > 1:
        yield Problem(
            "study",
            f"its runs saw the tokens in {len(orders)} orders (order_seed "
            f"{', '.join(sorted(orders))}): token by token they do not compare like runs of one",
            needs_action=False,
        )
    for run, other, step in other_streams(streams):
        yield Problem(
            run.name,
            f"saw other tokens than {other.name}, or another order, from training step {step} on, "
            "though both have the same order_seed; move it to another folder, or train it again",
        )


def other_streams(
    streams: Sequence[tuple[Run, np.ndarray]],
) -> Iterator[tuple[Run, Run, int]]:
    """Runs that did not train on the same batches as the first with their order of tokens.

    Parameters
    ----------
    streams : runs, each with its `stream_hash` from `recorded`.

    Yields
    ------
    run, first, step
        The run, the one that it differs from, and the first training step at which it does.
    """
    firsts: dict[object, tuple[Run, np.ndarray]] = {}
    for run, seen in streams:
        if not seen.any():
            continue
        first, expected = firsts.setdefault(run.coordinates.get("order_seed"), (run, seen))
        n_common = min(len(seen), len(expected))
        differing = np.flatnonzero(seen[:n_common] != expected[:n_common])
        if len(differing):
            yield run, first, int(differing[0]) + 1


def recorded(run: Run, name: str) -> np.ndarray:
    """A variable of training, up to the last committed step; empty where it is not in the run."""
    array = run.arrays("training").get(name)
    last = int(run.committed.max(initial=0))
    return np.empty(0) if array is None else load(array, [np.arange(last)])


def leftovers(folder: Path, finished: Mapping[str, bool]) -> Iterator[Problem]:
    """What stands in a study's folder without need.

    Parameters
    ----------
    finished : whether each run that can be read is finished.
    """
    names = {path.stem for path in folder.glob("*.zarr")}
    for path in sorted(folder.iterdir()):
        name = path.name
        if name.startswith(".") or name in _OF_A_STUDY or path.suffix == ".zarr":
            continue
        if path.suffix == ".partial":
            yield _left(name, "training" if path.is_dir() else "write")
        elif name.endswith(".resume.pt"):
            run = name.removesuffix(".resume.pt")
            if run not in names or finished.get(run, False):
                yield Problem(
                    name,
                    "is what an unfinished run resumes from, and no run here needs it; delete it",
                    needs_action=False,
                )
        elif path.suffix == ".weights":
            if path.stem not in names:
                yield Problem(name, "has the weights of a run that is not here", needs_action=False)
        else:
            yield _foreign(name)


def _left(where: str, by: str) -> Problem:
    what = f"was left by a {by} that was stopped; delete it, unless a command is at work here now"
    return Problem(where, what, needs_action=False)


def _foreign(where: str) -> Problem:
    return Problem(where, "is no part of a study; nothing reads it", needs_action=False)


def _begun(run: Run) -> int | None:
    """The first step that is written in part, or whole, without being committed."""
    groups = [group for group in run.groups if group in OBSERVED and group not in ADDED]
    arrays = [array for group in groups for array in run.arrays(group).values()]
    for row in np.flatnonzero(~np.isin(run.steps, run.committed)):
        if any(is_written(chunk_file(array, int(row))) for array in arrays):
            return int(run.steps[row])
    return None
