"""Where a number came from: code, versions, machine and time, and a hash of its data."""

import hashlib
import importlib.metadata
import json
import math
import platform
import subprocess
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import xarray as xr

_PACKAGES = ("numpy", "xarray", "zarr", "torch")
_ABSENT = 2**64 - 1


def provenance() -> dict[str, Any]:
    """What made a run or a report, as plain JSON.

    Returns
    -------
    dict
        `commit` and `dirty` of the code (None outside a checkout, or without git), `versions` of
        python and of the packages installed, `machine` (system and processor, not its name),
        `created` (UTC, ISO 8601).
    """
    commit, dirty = _commit()
    versions = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return {
        "commit": commit,
        "dirty": dirty,
        "versions": versions,
        "machine": f"{platform.system()} {platform.machine()}",
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def hash_dataset(dataset: xr.Dataset) -> str:
    """Hash of a Dataset: equal means the same variables, coordinates included.

    Returns
    -------
    str
        SHA-256, in hexadecimal, of names, dims, dtypes, shapes and values, in order of the names.
        Attributes, byte order, memory layout and the numpy type that holds text do not matter.
    """
    digest = hashlib.sha256()
    for name in sorted(map(str, dataset.variables)):
        variable = dataset.variables[name]
        values = np.asarray(variable.values)
        if values.dtype.kind in "OUT":
            kind, texts = "str", [str(text).encode() for text in values.ravel()]
            # Lengths keep ["ab", "c"] and ["a", "bc"] apart.
            content = np.array(list(map(len, texts)), dtype="<i8").tobytes() + b"".join(texts)
        else:
            little = values.astype(values.dtype.newbyteorder("<"))
            kind, content = little.dtype.str, little.tobytes()
        digest.update(repr((name, variable.dims, kind, values.shape)).encode())
        digest.update(content)
    return digest.hexdigest()


def hash_run(path: Path) -> str:
    """Hash of all that a run's folder holds, without reading its values.

    Every chunk ends in a checksum (CRC32C, or what zstd keeps): the hash is over these, the lengths
    of the files and the metadata. It says whether a run changed, in about a second for 2 GB; a bit
    that flipped on disk it does not find, which reading does.

    Parameters
    ----------
    path : of a run, as `store.layout` lays it out.

    Returns
    -------
    str
        SHA-256, in hexadecimal. When files were written does not matter, nor where they lie, nor
        when the run was created.
    """
    digest = hashlib.sha256()
    for file in sorted(path.rglob("zarr.json")):
        metadata = json.loads(file.read_bytes())
        # a copy of what stands in the groups
        metadata.pop("consolidated_metadata", None)
        metadata["attributes"].pop("created", None)
        digest.update(repr((_within(file, path), json.dumps(metadata, sort_keys=True))).encode())
        if metadata["node_type"] == "array":
            n_inner = _chunks_of_shard(metadata)
            written = (p for p in file.parent.joinpath("c").rglob("*") if p.is_file())
            # what is being written as we look has not got its name yet
            for chunk in sorted(p for p in written if p.suffix != ".partial"):
                with chunk.open("rb") as opened:
                    parts = tuple(_checksums(opened, n_inner))
                digest.update(repr((_within(chunk, path), *parts)).encode())
    return digest.hexdigest()


def _within(file: Path, folder: Path) -> str:
    return file.relative_to(folder).as_posix()


def _chunks_of_shard(metadata: dict[str, Any]) -> int:
    """Chunks in a file of an array that is stored in shards, else 0."""
    codec = metadata["codecs"][0]
    if codec["name"] != "sharding_indexed":
        return 0
    outer = metadata["chunk_grid"]["configuration"]["chunk_shape"]
    return math.prod(outer) // math.prod(codec["configuration"]["chunk_shape"])


def _checksums(file: BinaryIO, n_inner: int) -> Iterator[int | bytes]:
    """Length of a file, and the last four bytes of each chunk in it [1]_, [2]_.

    References
    ----------
    .. [1] RFC 8878, section 3.1.1: a frame of zstd ends in the checksum of its content.
    .. [2] Zarr v3, sharding codec: a shard ends in offset and length of each chunk, and a CRC32C.
    """
    size = file.seek(0, 2)
    yield size
    ends = [size]
    if n_inner:
        index_bytes = 16 * n_inner + 4
        file.seek(max(0, size - index_bytes))
        index = file.read()
        yield index
        if len(index) < index_bytes:  # cut short
            return
        places = np.frombuffer(index[:-4], "<u8").reshape(-1, 2).tolist()
        ends = [offset + length for offset, length in places if offset != _ABSENT]
    for end in ends:
        file.seek(max(0, end - 4))
        yield file.read(4)


def _commit() -> tuple[str | None, bool | None]:
    """Commit of the checkout that this file is tracked in, and whether tracked files changed."""
    # Installed into an environment inside another repository, this file is not tracked there.
    if _git("ls-files", "--error-unmatch", Path(__file__).name) is None:
        return None, None
    commit = _git("rev-parse", "HEAD")
    status = _git("status", "--porcelain", "--untracked-files=no")
    return commit, None if status is None else bool(status)


def _git(*arguments: str) -> str | None:
    """What git answers in the folder of this file; None if it fails or is not installed."""
    try:
        done = subprocess.run(
            ["git", "-C", str(Path(__file__).parent), *arguments],
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()
