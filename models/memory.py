"""Memory of a process that trains: what is freed is kept for the next step."""

import ctypes
import platform

TRIM_THRESHOLD, TOP_PAD, MMAP_MAX = -1, -2, -4  # as `malloc.h` of glibc numbers them


def keep_freed_memory() -> None:
    """Let this process keep the memory that it frees, where the C library is glibc.

    A training step asks for the same arrays as the one before it. Without this, large ones go back
    to the kernel as soon as they are freed, and are asked for again a page at a time.
    """
    if platform.libc_ver()[0] != "glibc":
        return
    mallopt = ctypes.CDLL(None).mallopt
    mallopt(MMAP_MAX, 0)
    mallopt(TRIM_THRESHOLD, -1)  # the largest number there is
    mallopt(TOP_PAD, 2**28)  # bytes more than needed, whenever the kernel is asked
