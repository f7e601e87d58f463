"""What a person sees while a study trains: run i of n, step, loss, tokens a second, time left."""

import time
from dataclasses import dataclass
from types import TracebackType

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)

from models.config import TrainConfig


@dataclass
class _Clock:
    """Bar of a run in training, and the step and time of its first report."""

    task: TaskID
    step: int | None = None
    began: float = 0.0


class TrainingProgress:
    """A live bar for each run in training, and a line for each run that ended."""

    def __init__(self, console: Console, cfg: TrainConfig, *, n_ctx: int, n_runs: int) -> None:
        self._n_steps, self._n_runs = cfg.n_steps, n_runs
        self._tokens_per_step = cfg.batch_size * n_ctx
        self._clocks: dict[str, _Clock] = {}
        self._bar = Progress(
            TextColumn("run {task.fields[i]} of {task.fields[n]}  [bold]{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("loss {task.fields[loss]}  {task.fields[rate]} tokens/s "),
            TimeRemainingColumn(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )

    def __enter__(self) -> "TrainingProgress":
        self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._bar.stop()

    def start(self, run: str) -> None:
        """A run begins, or goes on from where it was left."""
        i = len(self._clocks) + 1
        task = self._bar.add_task(run, total=self._n_steps, i=i, n=self._n_runs, loss="-", rate="-")
        self._clocks[run] = _Clock(task)

    def update(self, run: str, step: int, loss: float) -> None:
        """The run has taken `step` steps; `loss` is that of its last batch, in nats."""
        clock = self._clocks[run]
        if clock.step is None:
            clock.step, clock.began = step, time.perf_counter()
        rate = self._rate(clock, step)
        self._bar.update(clock.task, completed=step, loss=f"{loss:.3f}", rate=rate)

    def leave(self, run: str) -> None:
        """The run is another command's."""
        self._bar.remove_task(self._clocks.pop(run).task)

    def end(self, run: str, loss: float) -> None:
        """The run has ended, at `loss` nats on the probe set; say how long it took."""
        clock = self._clocks[run]
        if clock.step is None:
            took = "already finished"
        else:
            seconds = time.perf_counter() - clock.began
            took = f"{seconds:.0f} s, {self._rate(clock, self._n_steps)} tokens/s"
        self._bar.remove_task(clock.task)
        self.say(f"{run}: {self._n_steps:,} steps, loss {loss:.3f} nats on the probe set, {took}")

    def say(self, line: str) -> None:
        """Print a line above the bars."""
        self._bar.console.print(line, highlight=False, soft_wrap=True)

    def _rate(self, clock: _Clock, step: int) -> str:
        assert clock.step is not None
        n_tokens = (step - clock.step) * self._tokens_per_step
        return f"{n_tokens / (time.perf_counter() - clock.began):,.0f}" if n_tokens else "-"
