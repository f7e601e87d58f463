"""Writing while training goes on: in a thread of its own, one piece of work at a time."""

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager

Background = Callable[[Callable[[], None]], None]


@contextmanager
def one_behind() -> Iterator[Background]:
    """What begins a piece of work in the background, once the one before it is done.

    So one is under way and one waits at most. When the block has ended, all is done.

    Raises
    ------
    Exception
        What a piece raised: where the next is handed in, or at the end of the block.
    """
    pending: list[Future[None]] = []
    with ThreadPoolExecutor(1, thread_name_prefix="writing") as thread:

        def hand_in(work: Callable[[], None]) -> None:
            if pending:
                pending.pop().result()
            pending.append(thread.submit(work))

        yield hand_in
        if pending:
            pending.pop().result()
