"""Where the C library is another than glibc, it is left alone; see `test_training` for the rest."""

import ctypes
import platform

import pytest

from models.memory import keep_freed_memory


def test_nothing_is_done_with_another_c_library(monkeypatch):
    monkeypatch.setattr(platform, "libc_ver", lambda: ("", ""))
    monkeypatch.setattr(ctypes, "CDLL", lambda name: pytest.fail("asked the C library"))
    keep_freed_memory()
