"""Work in the background: in order, one piece at a time, no error swallowed."""

import threading
from collections.abc import Callable

import pytest

from models.behind import one_behind

SOON = 30  # seconds, after which a test fails that would otherwise wait for ever


def in_turn(*pieces: Callable[[], object], then: Callable[[], object] = lambda: None) -> None:
    """Hand in pieces of work, and do something else in the end."""
    with one_behind() as in_background:
        for piece in pieces:
            in_background(piece)
        then()


def disk_full() -> None:
    raise OSError("disk full")


def test_work_is_done_in_order_and_by_the_end_of_the_block():
    done = []
    in_turn(*(lambda i=i: done.append(i) for i in range(5)))
    assert done == list(range(5))


def test_one_piece_is_under_way_at_a_time():
    go, one_begun, handed_in, begun = *(threading.Event() for _ in range(3)), []
    pieces = [lambda i=i: (begun.append(i), one_begun.set(), go.wait(SOON)) for i in range(3)]
    other = threading.Thread(target=in_turn, args=pieces, kwargs={"then": handed_in.set})
    other.start()
    assert one_begun.wait(SOON)
    other.join(0.2)  # time for another, if it did not wait
    assert begun == [0]
    assert not handed_in.is_set()
    go.set()
    other.join(SOON)
    assert begun == [0, 1, 2]


def test_an_error_comes_up_with_the_next_piece():
    done = []
    with pytest.raises(OSError, match="disk full"):
        in_turn(disk_full, lambda: done.append(1), then=lambda: done.append(2))
    assert done == []


def test_an_error_comes_up_at_the_end():
    done = []
    with pytest.raises(OSError, match="disk full"):
        in_turn(disk_full, then=lambda: done.append(1))
    assert done == [1]


def test_what_is_under_way_is_finished_when_the_block_is_left_early():
    go, done = threading.Event(), []

    def stop():
        threading.Timer(0.1, go.set).start()
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        in_turn(lambda: (go.wait(SOON), done.append(1)), then=stop)
    assert done == [1]
