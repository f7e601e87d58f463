"""What a person sees while the analyses of a study run, and in the end."""

from collections.abc import Iterable
from types import TracebackType
from typing import Self

from rich.box import SIMPLE_HEAD
from rich.console import Console, Group
from rich.live import Live
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

from analyses.reporting.cli import IGNORED
from analyses.reporting.side_by_side import Outcome
from analyses.reporting.text import printable


class BatchProgress:
    """A live line for each analysis that runs and a bar for all; a line for each that ended."""

    def __init__(self, console: Console, *, total: int) -> None:
        self._console = console
        self._running = Progress(
            SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn(), console=console
        )
        self._all = Progress(
            TextColumn("all"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[rate]}"),
            TextColumn("left"), TimeRemainingColumn(), console=console,
        )  # fmt: skip
        self._bar = self._all.add_task("", total=total, rate="")
        self._tasks: dict[str, TaskID] = {}
        self._live = Live(Group(self._running, self._all), console=console, transient=True)

    def __enter__(self) -> Self:
        if self._console.is_terminal:
            self._live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._live.stop()

    def start(self, analysis: str) -> None:
        """An analysis begins."""
        self._tasks[analysis] = self._running.add_task(analysis, total=None)

    def end(self, outcome: Outcome) -> None:
        """An analysis has ended; say how, and what it had to say."""
        self._running.remove_task(self._tasks.pop(outcome.analysis))
        self._all.advance(self._bar)
        speed = self._all.tasks[0].speed
        self._all.update(self._bar, rate=f"{60 * speed:.1f} a minute" if speed else "")
        lines = [f"{outcome.analysis}: {outcome.state}, {outcome.seconds:.0f} s"]
        # of all analyses together, some always depend on an option
        lines += [f"  {line}" for line in outcome.said.splitlines() if not line.endswith(IGNORED)]
        for line in lines:
            self._console.print(line, markup=False, highlight=False, soft_wrap=True)


def summary(rows: Iterable[tuple[str, str, float | None, str]]) -> Table:
    """Analysis, status, time in seconds and finding, or why there is none, as a table."""
    table = Table(box=SIMPLE_HEAD, pad_edge=False, padding=(0, 1), collapse_padding=True)
    table.add_column("analysis")
    table.add_column("status")
    table.add_column("time", justify="right")
    table.add_column("finding")
    for analysis, status, seconds, finding in rows:
        time = "" if seconds is None else f"{seconds:.0f} s"
        table.add_row(analysis, status, time, Text(printable(finding)))
    return table
