"""What every test shares: idle threads sleep instead of spinning, and the longest come first."""

import os

import pytest

os.environ.setdefault("OMP_WAIT_POLICY", "passive")
LONGEST = ("test_walking_skeleton.py", "test_training.py")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files come first, so that no worker is left alone with one."""
    items.sort(key=lambda item: item.path.name not in LONGEST)
