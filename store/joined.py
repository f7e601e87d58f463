"""One group of several runs as one lazy Dataset, read a (run, step) block at a time.

Runs are separate stores with steps of their own; the join gives them the dimensions
`(run, step, ...)`, where `step` is the union of what they committed and a run without a step reads
as the fill value. No dask is needed: xarray asks `JoinedArray` for blocks, and only those are read.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr
import zarr
from xarray.backends import BackendArray
from xarray.core import indexing

from store.chunks import StoreError, load
from store.schema import DIMENSIONS, RUN_COORDINATES, variables_of


@dataclass(frozen=True)
class Part:
    """What one run gives to a joined group.

    Attributes
    ----------
    run : name of the run.
    coordinates : the run's scalar coordinates (arm, seed, ...).
    group : name of the group.
    arrays : its variables on disk, by name.
    labels : integer labels of its dimensions, without `step`.
    steps : int, ascending, steps that may be read; None in a group without steps.
    rows : int, where each of them stands on disk.
    """

    run: str
    coordinates: Mapping[str, Any]
    group: str
    arrays: Mapping[str, zarr.Array[Any]]
    labels: Mapping[str, np.ndarray]
    steps: np.ndarray | None = None
    rows: np.ndarray | None = None


class JoinedArray(BackendArray):
    """One variable of several runs as an array `(run, step, ...)` that xarray reads block by block.

    Parameters
    ----------
    arrays : one array on disk a run, alike but for their number of steps.
    steps : int (step); None for a variable without steps, whose arrays are stacked as they are.
    rows : int (run, step), where each step stands on disk, -1 where the run lacks it.
    """

    def __init__(
        self,
        arrays: Sequence[zarr.Array[Any]],
        steps: np.ndarray | None = None,
        rows: np.ndarray | None = None,
    ) -> None:
        self.arrays, self.steps, self.rows = tuple(arrays), steps, rows
        shape = arrays[0].shape
        self.shape = (len(arrays), *(shape if steps is None else (len(steps), *shape[1:])))
        # numpy's variable-width strings do not cast to fixed width; str objects fit everywhere.
        is_text = arrays[0].dtype.kind == "T"
        self.dtype = np.dtype(object) if is_text else arrays[0].dtype

    def __getitem__(self, key: indexing.ExplicitIndexer) -> np.ndarray:
        return indexing.explicit_indexing_adapter(
            key, self.shape, indexing.IndexingSupport.OUTER, self._read
        )

    def _read(self, key: tuple[int | slice | np.ndarray, ...]) -> np.ndarray:
        runs, *index = (
            np.atleast_1d(np.arange(size)[k]) for k, size in zip(key, self.shape, strict=True)
        )
        shape = (len(runs), *map(len, index))
        block = np.full(shape, self.arrays[0].fill_value, dtype=self.dtype)
        for i, run in enumerate(runs if block.size else ()):
            if self.steps is None or self.rows is None:
                block[i] = load(self.arrays[run], index)
                continue
            rows, steps = self.rows[run, index[0]], self.steps[index[0]]
            there = rows >= 0
            if there.any():
                found = load(self.arrays[run], [rows[there], *index[1:]], steps[there])
                block[i, there] = found
        kept = [n for n, k in zip(shape, key, strict=True) if not isinstance(k, int | np.integer)]
        return block.reshape(kept)


def join(parts: Sequence[Part]) -> xr.Dataset:
    """The same group of several runs as one lazy Dataset.

    Parameters
    ----------
    parts : one a run; they differ in `run`, `coordinates`, `steps` and `rows` only.

    Returns
    -------
    Dataset (run, step, ...)
        Data variables lazy, dtypes as on disk, text as str objects. In memory: the labels of every
        dimension, and the runs' coordinates along `run`.

    Raises
    ------
    StoreError
        If two runs recorded other variables or other labels of a dimension.
    """
    _require_alike(parts)
    first, schema = parts[0], variables_of(parts[0].group)
    coordinates = _run_coordinates(parts)
    for dim, values in first.labels.items():
        coordinates[dim] = (dim, values, dimension_attrs(dim))
    steps, rows = _common_steps(parts)
    if steps is not None:
        coordinates["step"] = ("step", steps, dimension_attrs("step"))
    variables = {}
    for name in first.arrays:
        joined = JoinedArray([part.arrays[name] for part in parts], steps, rows)
        # The layers that xr.open_zarr adds: slices stay lazy, what is loaded whole is kept.
        lazy: Any = indexing.MemoryCachedArray(indexing.LazilyIndexedArray(joined))
        dims = ("run", *schema[name].dims)
        variables[name] = (dims, indexing.CopyOnWriteArray(lazy), schema[name].attrs)
    return xr.Dataset(variables, coordinates)


def dimension_attrs(dim: str) -> dict[str, str]:
    """Attributes of a dimension's labels."""
    return {"long_name": DIMENSIONS[dim], "units": "1"}


def _common_steps(parts: Sequence[Part]) -> tuple[np.ndarray | None, np.ndarray | None]:
    """Union of the runs' steps, and the rows (run, step) where they stand, -1 for none."""
    if parts[0].steps is None:
        return None, None
    steps = np.unique(np.concatenate([part.steps for part in parts if part.steps is not None]))
    rows = np.full((len(parts), len(steps)), -1)
    for i, part in enumerate(parts):
        assert part.steps is not None
        rows[i, np.searchsorted(steps, part.steps)] = part.rows
    return steps, rows


def _run_coordinates(parts: Sequence[Part]) -> dict[str, Any]:
    """Names and coordinates of the runs; one that a run lacks is "" or NaN there."""
    names = dict.fromkeys(name for part in parts for name in part.coordinates)
    coordinates: dict[str, Any] = {
        "run": ("run", [part.run for part in parts], dimension_attrs("run"))
    }
    for name in names:
        is_text = any(isinstance(part.coordinates.get(name), str) for part in parts)
        missing = "" if is_text else np.nan
        values = np.array([part.coordinates.get(name, missing) for part in parts])
        known = name in RUN_COORDINATES
        attrs = {"long_name": RUN_COORDINATES[name], "units": "1"} if known else {}
        coordinates[name] = ("run", values, attrs)
    return coordinates


def _require_alike(parts: Sequence[Part]) -> None:
    first = parts[0]
    for part in parts[1:]:
        differing = [
            f"{dim} is {_brief(first.labels.get(dim))} and {_brief(part.labels.get(dim))}"
            for dim in {**first.labels, **part.labels}
            if not np.array_equal(first.labels.get(dim, ()), part.labels.get(dim, ()))
        ]
        if set(first.arrays) != set(part.arrays):
            differing += [f"variables are {sorted(first.arrays)} and {sorted(part.arrays)}"]
        if differing:
            raise StoreError(
                f"runs {first.run!r} and {part.run!r} differ in group {first.group!r}: "
                f"{'; '.join(differing)}. Give the paths of runs that are alike instead of the "
                "study's folder, or open these runs separately"
            )


def _brief(labels: np.ndarray | None) -> str:
    if labels is None:
        return "absent"
    return str(labels.tolist()) if len(labels) <= 8 else f"{len(labels)} labels from {labels[0]}"
