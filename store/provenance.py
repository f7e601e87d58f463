"""Where a number came from: code, versions, machine and time, and a hash of its data."""

import hashlib
import importlib.metadata
import platform
import subprocess
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

_PACKAGES = ("numpy", "xarray", "zarr", "torch")


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
