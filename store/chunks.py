"""Reads of one array on disk, in which a damaged chunk is an error that names its file.

Every read of a run passes `load`. Every chunk of a committed step is on disk, even one that holds
nothing but fill values (`store.layout`), so a missing file is damage and not an unwritten value.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import zarr

from store.places import root_of

# A damaged zstd frame is a RuntimeError (numcodecs); a damaged shard index and a chunk of another
# shape are a ValueError (zarr).
_DAMAGE = (RuntimeError, ValueError)


class StoreError(ValueError):
    """A store that cannot be read or joined as asked; the message says which, and what to do."""


class DamagedChunk(StoreError):
    """A chunk of a committed step that cannot be read.

    Attributes
    ----------
    file : the file it should be in.
    damage : what is wrong with that file, as in "it is missing".
    """

    def __init__(self, message: str, *, file: Path, damage: str) -> None:
        super().__init__(message)
        self.file, self.damage = file, damage


def load(
    array: zarr.Array[Any], index: Sequence[np.ndarray], steps: np.ndarray | None = None
) -> np.ndarray:
    """Elements of an array on disk.

    Parameters
    ----------
    array : an array of a run; its files divide the first dimension only.
    index : int, one index array a dimension, combined orthogonally.
    steps : int, step of each index of the first dimension, for messages.

    Raises
    ------
    DamagedChunk
        If a chunk is missing, cut short or corrupted; names its run, variable, step and file.
    """
    _, firsts = np.unique(index[0] // rows_per_file(array), return_index=True)
    for i in firsts:
        file = chunk_file(array, int(index[0][i]))
        # A shard of zero bytes would read as fill values, without an error.
        if not is_written(file):
            damage = "empty" if file.exists() else "missing"
            raise _damaged(array, file, damage, None if steps is None else steps[i])
    try:
        values = array.oindex[tuple(map(_as_slice, index))]
    except _DAMAGE as error:
        if len(firsts) == 1:
            file = chunk_file(array, int(index[0][0]))
            step = None if steps is None else steps[0]
            raise _damaged(array, file, f"damaged ({error})", step) from error
        for i in firsts:  # which of the files it is
            load(array, [index[0][[i]], *index[1:]], None if steps is None else steps[[i]])
        raise
    return np.asarray(values)


def chunk_file(array: zarr.Array[Any], row: int) -> Path:
    """File that holds a row of an array whose files divide the first dimension only."""
    first = (row // rows_per_file(array), *(0 for _ in array.shape[1:]))
    return root_of(array) / array.path / array.metadata.encode_chunk_key(first)


def is_written(file: Path) -> bool:
    """Whether a chunk's file is there and holds anything."""
    try:
        return file.stat().st_size > 0
    except FileNotFoundError:
        return False


def rows_per_file(array: zarr.Array[Any]) -> int:
    """How many indices of the first dimension one file holds."""
    return (array.shards or array.chunks)[0]


def _damaged(array: zarr.Array[Any], file: Path, damage: str, step: int | None) -> DamagedChunk:
    folder = root_of(array)
    where = array.path if step is None else f"{array.path}, step {step}"
    return DamagedChunk(
        f"run {folder.stem!r}, {where}: chunk {file} is {damage}. Restore that file from a copy, "
        f"or delete {folder} and train it again with "
        f"`python -m models.train ... --run {folder.stem}`",
        file=file,
        damage=damage,
    )


def _as_slice(index: np.ndarray) -> slice | np.ndarray:
    """Consecutive indices as the slice they are, which zarr reads without sorting."""
    if len(index) and (np.diff(index) == 1).all():
        return slice(int(index[0]), int(index[-1]) + 1)
    return index
