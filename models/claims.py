"""A claim: of several commands that could do the same work at once, one does it.

A claim is a lock on a file, which the operating system lets go when the process that holds it ends,
however it ends: no claim outlives its owner, so none has to expire. A network file system passes
the lock on to its server, and it holds between machines.
"""

import errno
import fcntl
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)


@contextmanager
def claimed(path: Path, *, wait: bool = False) -> Iterator[bool]:
    """Hold the claim `path` within the block, if no one else does; the block hears whether it is.

    Parameters
    ----------
    path : a file of no other use; it is there while the claim is held.
    wait : until another owner lets go, instead of going without.

    Warns
    -----
    RuntimeWarning
        If the file system has no locks; the claim then counts as held.
    """
    while True:
        file = path.open("w")
        if not _locked(file, wait=wait):
            file.close()
            yield False
            return
        if _is_at(file, path):
            break
        file.close()  # an owner that let go removed this very file
    try:
        yield True
    finally:
        path.unlink(missing_ok=True)
        file.close()


def _locked(file: IO[str], *, wait: bool) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        warnings.warn(
            f"{file.name}: this file system has no locks ({error.strerror}), so two commands that "
            "train the same run are not kept apart; give each its own runs with --part",
            RuntimeWarning,
            stacklevel=2,
        )
    return True


def _is_at(file: IO[str], path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False
