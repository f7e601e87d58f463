"""What every test shares: idle threads sleep instead of spinning, and the longest come first."""

import os

import pytest

os.environ.setdefault("OMP_WAIT_POLICY", "passive")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What shares a costly study comes first, so that no worker is left alone with it."""
    items.sort(key=lambda item: item.get_closest_marker("xdist_group") is None)
