"""Reads all that is committed in a study and names what is damaged.

A file is read a chunk at a time, so that memory is bounded by a chunk and by the probe set. Found
are: a file that is missing, cut short or not what its checksum says; metadata that are not those
in the run's root; values that are missing, out of range, or no distribution; a probe set other than
the one hashed when the run began; runs of one order of tokens that saw other batches.

A chunk does not know its step. Two steps of a variable that changed places, each file whole, are
found only where another variable tells what must stand there: `log_prob` tells `loss`, and the
reverse. What the root says of a run (arm, seed, configuration) stands nowhere else, so that a
change there cannot be found.
"""

import contextlib
import itertools
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import xarray as xr
import zarr

from store.chunks import DamagedChunk, chunk_file, load, rows_per_file
from store.layout import hash_probe_set
from store.places import all_sizes
from store.problems import other_streams, recorded
from store.run import Run
from store.schema import ADDED, Variable, variables_of
from store.values import fault

_COMMANDS = {
    "ablation": "models.ablate",
    "expert_outputs": "models.expert_outputs",
    "rerouted": "models.reroute",
}


@dataclass(frozen=True)
class Damage:
    """Something that is not as it was written.

    Attributes
    ----------
    run : its name.
    place : `group/variable`, or a group; "" for the run as a whole.
    step : of the damaged values; None where there is none.
    file : on disk.
    what : is wrong with it.
    remedy : what to do.
    """

    run: str
    place: str
    step: int | None
    file: Path
    what: str
    remedy: str


class StoredFile(NamedTuple):
    """The committed part of one file of a variable.

    Attributes
    ----------
    rows : int, of the array's first dimension.
    labels : of each dimension; of the first, those of the rows.
    n_bytes : size of the file, 0 if it is missing.
    """

    run: Run
    variable: Variable
    array: zarr.Array[Any]
    rows: np.ndarray
    labels: list[np.ndarray]
    path: Path
    n_bytes: int

    @property
    def steps(self) -> np.ndarray | None:
        return self.labels[0] if self.variable.dims[0] == "step" else None

    @property
    def step(self) -> int | None:
        """The step, of a file that holds one."""
        return None if self.steps is None or len(self.steps) > 1 else int(self.steps[0])


def stored_files(runs: Sequence[Run]) -> tuple[list[StoredFile], list[Damage]]:
    """Every file that holds something committed, and labels that hide some by being damaged."""
    files: list[StoredFile] = []
    hidden: list[Damage] = []
    for run in runs:
        on_disk = all_sizes(run.path)
        hiding: dict[Path, tuple[str, list[str]]] = {}
        for group in run.groups:
            try:
                files += _files_of(run, group, on_disk)
            except DamagedChunk as error:
                hiding.setdefault(error.file, (error.damage, []))[1].append(group)
        for path, (damage, groups) in hiding.items():
            what = f"{damage}, so that nothing can be read of {', '.join(groups)}"
            hidden.append(_damage(run, groups[0], None, path, what))
    return files, hidden


def verify(
    runs: Sequence[Run], files: Sequence[StoredFile], read: Callable[[int], object]
) -> Iterator[Damage]:
    """What is damaged.

    Parameters
    ----------
    runs : of one study.
    files : theirs.
    read : hears of so many bytes read.
    """
    for run in runs:
        yield from _metadata_damage(run)
    sizes = {run.name: _sizes(run) for run in runs}
    for file in files:
        what = _what_is_wrong(file, sizes[file.run.name])
        if what is not None:
            place = f"{file.variable.group}/{file.variable.name}"
            yield _damage(file.run, place, file.step, file.path, what)
        read(file.n_bytes)
    for run in runs:
        yield from _probe_set_damage(run)
    streams = []
    for run in runs:
        with contextlib.suppress(DamagedChunk):  # which was named above
            streams.append((run, recorded(run, "stream_hash")))
    for run, first, step in other_streams(streams):
        what = (
            f"other batches than those of {first.name} from training step {step} on, though "
            "both have the same order_seed"
        )
        place = "training/stream_hash"
        yield _damage(run, place, step, run.path / place, what)


def _files_of(run: Run, group: str, on_disk: Mapping[str, int]) -> Iterator[StoredFile]:
    part, arrays = run.part(group), run.arrays(group)
    if group in ADDED:
        arrays["committed"] = run.marks(group)
    for name, array in arrays.items():
        variable = variables_of(group)[name]
        labels = part.labels if part.steps is None else {"step": part.steps, **part.labels}
        all_rows = np.arange(array.shape[0]) if part.rows is None else part.rows
        number = all_rows // rows_per_file(array)
        for n in np.unique(number):
            first, *others = (labels[dim] for dim in variable.dims)
            path = chunk_file(array, int(all_rows[number == n][0]))
            yield StoredFile(
                run,
                variable,
                array,
                all_rows[number == n],
                [first[number == n], *others],
                path,
                on_disk.get(path.relative_to(run.path).as_posix(), 0),
            )


def _what_is_wrong(file: StoredFile, sizes: Mapping[str, int]) -> str | None:
    """The first thing that is wrong with a file, found chunk by chunk."""
    axes = [np.arange(len(file.rows)), *map(np.arange, file.array.shape[1:])]
    pieces = [
        [axis[i : i + size] for i in range(0, len(axis), size)]
        for axis, size in zip(axes, file.array.chunks, strict=True)
    ]
    for rows, *others in itertools.product(*pieces):
        labels = [label[i] for label, i in zip(file.labels, [rows, *others], strict=True)]
        steps = None if file.steps is None else labels[0]
        try:
            values = load(file.array, [file.rows[rows], *others], steps)
        except DamagedChunk as error:
            return error.damage
        except OSError as error:
            return f"not readable ({error.strerror or error})"
        what = fault(file.variable, values, labels, sizes)
        if what is None and file.variable.name == "log_prob":
            what = _contradiction(file.run, xr.DataArray(values, labels, file.variable.dims))
        if what is not None:
            return what
    return None


def _contradiction(run: Run, log_prob: xr.DataArray) -> str | None:
    """Whether the recorded losses are those that the predictions give the targets."""
    if "losses" not in run.groups or "target" not in run.arrays("probe_set"):
        return None
    at = {dim: log_prob[dim] for dim in ("sequence", "pos")}
    try:
        target = run.dataset("probe_set")["target"].sel(at).load()
        loss = run.dataset("losses")["loss"].sel(at | {"step": log_prob["step"]}).load()
    except DamagedChunk:  # which is named where it stands
        return None
    predicted = -log_prob.sel(d_vocab=target).astype("float32")
    # twice what rounding to float16 may change
    differing = np.abs(predicted - loss) > np.maximum(loss, 1) * 2.0**-10
    if not differing.any():
        return None
    return (
        f"not what losses/loss of the same step says of {int(differing.sum()):,} of "
        f"{differing.size:,} targets; one of the two belongs to another step"
    )


def _sizes(run: Run) -> dict[str, int]:
    """Sizes of the dimensions that values count in."""
    return {
        dim: size
        for group in run.groups
        for name, array in run.arrays(group).items()
        for dim, size in zip(variables_of(group)[name].dims, array.shape, strict=True)
        if dim in ("expert", "d_vocab")
    }


def _metadata_damage(run: Run) -> Iterator[Damage]:
    """Metadata of groups and arrays that are not what the run's root says of them."""
    root = json.loads((run.path / "zarr.json").read_text(encoding="utf-8"))
    known = root.get("consolidated_metadata", {}).get("metadata", {})
    for place in known:
        file = run.path / place / "zarr.json"
        what = None
        try:
            found = json.loads(file.read_text(encoding="utf-8"))
        except FileNotFoundError:
            what = "missing"
        except ValueError as error:
            what = f"damaged ({error})"
        else:
            inner = (found.pop("consolidated_metadata", None) or {}).get("metadata", {})
            copies = {place: found} | {f"{place}/{name}": meta for name, meta in inner.items()}
            differing = [
                name for name, meta in copies.items() if _bare(known.get(name)) != _bare(meta)
            ]
            if differing:
                what = f"not what the root's zarr.json says of {', '.join(differing)}"
        if what is not None:
            yield _damage(run, place, None, file, what)


def _bare(metadata: dict[str, Any] | None) -> dict[str, Any]:
    return {n: value for n, value in (metadata or {}).items() if n != "consolidated_metadata"}


def _probe_set_damage(run: Run) -> Iterator[Damage]:
    with contextlib.suppress(DamagedChunk):  # which was named above
        found, expected = hash_probe_set(run.dataset("probe_set")), run.attrs["probe_set_hash"]
        if found != expected:
            what = f"its hash is {found[:12]}..., but {expected[:12]}... when the run began"
            yield _damage(run, "probe_set", None, run.path / "probe_set", what)


def _damage(run: Run, place: str, step: int | None, file: Path, what: str) -> Damage:
    return Damage(run.name, place, step, file, what, _remedy(run, place, step, file))


def _remedy(run: Run, place: str, step: int | None, file: Path) -> str:
    """What makes the values anew, or brings them back."""
    group = place.partition("/")[0]
    if file.name == "zarr.json":
        return f"restore {file} from a copy; a run of the same arm and settings has the same file"
    if group in ADDED and step is not None:
        mark = chunk_file(run.marks(group), int(np.flatnonzero(run.steps == step)[0]))
        return f"delete {mark}, then `python -m {_COMMANDS[group]} {run.path} --steps {step}`"
    copy = "; a run of the same study has the same file" if group == "probe_set" else ""
    return (
        f"restore it from a copy{copy}, or delete {run.path} and train it again with "
        f"`python -m models.train ... --run {run.name}`"
    )
