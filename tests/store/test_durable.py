"""What is written is on the disk when the call returns: files, and the folders that name them."""

import os
from pathlib import Path

import pytest

from store.durable import make_durable


@pytest.fixture
def synced(monkeypatch) -> list[Path]:
    """Paths that were put on the disk, in order."""
    paths = []
    fsync = os.fsync

    def watched(opened: int) -> None:
        fsync(opened)
        paths.append(Path(os.readlink(f"/proc/self/fd/{opened}")))

    monkeypatch.setattr(os, "fsync", watched)
    return paths


def test_a_file_is_put_on_the_disk_and_then_the_folders_above_it(tmp_path, synced):
    file = tmp_path / "store/c/0/value"
    file.parent.mkdir(parents=True)
    file.write_text("1")
    make_durable([file], within=tmp_path / "store")
    assert synced[0] == file
    assert sorted(synced[1:]) == [tmp_path / "store", tmp_path / "store/c", tmp_path / "store/c/0"]


def test_a_file_that_is_not_there_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError):
        make_durable([tmp_path / "absent"], within=tmp_path)


def test_a_step_is_on_the_disk_before_its_mark(make_run, observe, synced):
    groups = ("losses", "routing", "activations")
    run = make_run("moe-0", groups=groups, committed=())
    synced.clear()
    run.write(2, {group: observe(2)[group] for group in groups})
    values = {file for file in run.path.glob("*/*/c/2/**/*") if file.is_file()}
    assert len(values) == 5
    assert values <= set(synced)
    synced.clear()
    run.commit(2)
    mark = run.path / "observation/committed/c/2"
    assert synced[0] == mark
    assert mark.parent in synced
