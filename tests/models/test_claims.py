"""Of several that could do the same work, one does it; no claim outlives its owner."""

import errno
import fcntl
import subprocess
import sys
from pathlib import Path

import pytest

from models.claims import claimed

COUNT = """
import sys
from pathlib import Path
from models.claims import claimed
claim, count = map(Path, sys.argv[1:])
for _ in range(200):
    with claimed(claim, wait=True) as held:
        assert held
        count.write_text(str(int(count.read_text()) + 1))
"""
HOLD = """
import sys, time
from pathlib import Path
from models.claims import claimed
with claimed(Path(sys.argv[1])) as held:
    print(held, flush=True)
    time.sleep(60)
"""


def test_a_claim_is_held_once_and_leaves_no_file(tmp_path: Path) -> None:
    path = tmp_path / "run.claim"
    with claimed(path) as first, claimed(path) as second, claimed(tmp_path / "other") as other:
        assert (first, second, other) == (True, False, True)
        assert path.exists()
    with claimed(path) as again:
        assert again
    assert not list(tmp_path.iterdir())


def test_a_claim_is_let_go_when_the_work_fails(tmp_path: Path) -> None:
    path = tmp_path / "run.claim"
    with pytest.raises(ZeroDivisionError), claimed(path):
        _ = 1 / 0
    with claimed(path) as held:
        assert held


def test_the_claim_of_a_killed_process_is_free(tmp_path: Path) -> None:
    path = tmp_path / "run.claim"
    with subprocess.Popen([sys.executable, "-c", HOLD, path], stdout=subprocess.PIPE) as owner:
        assert owner.stdout is not None
        assert owner.stdout.readline() == b"True\n"
        with claimed(path) as held:
            assert not held
        owner.kill()
        owner.wait()
        assert path.exists()
        with claimed(path) as held:
            assert held


def test_those_who_wait_do_their_work_one_after_another(tmp_path: Path) -> None:
    count = tmp_path / "count"
    count.write_text("0")
    command = [sys.executable, "-c", COUNT, tmp_path / "claim", count]
    workers = [subprocess.Popen(command) for _ in range(4)]
    assert [worker.wait() for worker in workers] == [0] * 4
    assert count.read_text() == "800"


def test_a_file_system_without_locks_is_warned_of(tmp_path: Path, monkeypatch) -> None:
    def no_locks(file: object, operation: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", no_locks)
    with (
        pytest.warns(RuntimeWarning, match="no locks.*--part"),
        claimed(tmp_path / "claim") as held,
    ):
        assert held
