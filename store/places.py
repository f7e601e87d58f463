"""Where studies and runs stand: folders of this machine, or URLs of an object store.

A URL (`s3://bucket/studies/seeds`) is an `upath.UPath`, which has the methods of `pathlib.Path`, so
that both are walked alike; what differs stands here.
"""

import contextlib
import os
from pathlib import Path
from typing import Any

import zarr
from zarr.storage import FsspecStore, LocalStore


def place(path: str | Path) -> Path:
    """A path or a URL as something to walk; a URL is asked for once, to see that it answers.

    Raises
    ------
    ValueError
        If a URL needs a package that is not installed, or keys, or if its server does not answer.
    OSError
        If the server refuses.
    """
    if "://" not in str(path):
        return Path(path)
    try:
        url = _url(str(path))
        exists(url)
    except ImportError as error:
        raise ValueError(
            f'{path} needs a package ({error}); install it with pip install "twinlens[cloud]"'
        ) from None
    except _botocore_errors() as error:
        raise ValueError(
            f"{path} cannot be read: {error}; set AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and, "
            "for a server other than Amazon's, AWS_ENDPOINT_URL"
        ) from None
    return url


def _url(path: str) -> Any:
    from upath import UPath

    return UPath(path, use_listings_cache=False)  # to see what another process writes meanwhile


def _botocore_errors() -> tuple[type[Exception], ...]:
    """What s3fs lets through that is no OSError."""
    try:
        from botocore.exceptions import BotoCoreError
    except ImportError:
        return ()
    return (BotoCoreError,)


def is_remote(path: Path) -> bool:
    """Whether a place is a URL."""
    return not isinstance(path, Path)


def zarr_store(path: Path, *, read_only: bool) -> FsspecStore | LocalStore:
    """What stands at a place, as zarr reads and writes it."""
    if is_remote(path):
        from fsspec.implementations.asyn_wrapper import AsyncFileSystemWrapper

        # The file system that walks the place, in threads: one of zarr's own would never be closed.
        files = AsyncFileSystemWrapper(path.fs, asynchronous=True)  # type: ignore[attr-defined]
        return FsspecStore(files, read_only=read_only, path=path.path.rstrip("/"))  # type: ignore[attr-defined]
    return LocalStore(path, read_only=read_only)


def root_of(array: zarr.Array[Any]) -> Path:
    """The place of the run that an array on disk belongs to."""
    store = array.store
    if isinstance(store, FsspecStore):
        return _url(store.fs.sync_fs.unstrip_protocol(store.path))
    assert isinstance(store, LocalStore)
    return store.root


def exists(path: Path) -> bool:
    """Whether anything stands at a place; an error of the network is no answer, but raised."""
    if not is_remote(path):
        return path.exists()
    try:
        path.fs.info(path.path)  # type: ignore[attr-defined]
    except FileNotFoundError:
        return False
    return True


def all_sizes(folder: Path) -> dict[str, int]:
    """Bytes of every file below a folder, by its path there with "/", in order."""
    if is_remote(folder):
        root = folder.path.rstrip("/")  # type: ignore[attr-defined]
        found = folder.fs.find(root, detail=True).items()  # type: ignore[attr-defined]
        return {path.removeprefix(f"{root}/"): file["size"] or 0 for path, file in sorted(found)}
    told = {}
    for at, _, names in os.walk(folder):
        for file in (Path(at, name) for name in names):
            with contextlib.suppress(FileNotFoundError):  # got another name as we looked
                told[file.relative_to(folder).as_posix()] = file.stat().st_size
    return dict(sorted(told.items()))


def sizes(folder: Path) -> dict[str, int]:
    """Bytes of each file in a folder, by name, with one request; empty if there is none."""
    try:
        if is_remote(folder):
            found = folder.fs.ls(folder.path, detail=True)  # type: ignore[attr-defined]
            return {file["name"].rpartition("/")[2]: file["size"] or 0 for file in found}
        with os.scandir(folder) as files:
            return {file.name: file.stat().st_size for file in files}
    except FileNotFoundError:
        return {}
