"""What a person sees while a study trains: run i of n, step, loss, tokens a second, time left."""

import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from models.config import TrainConfig


class TrainingProgress:
    """A live bar for the run in training, and a line for each run that ended."""

    def __init__(self, console: Console, cfg: TrainConfig, *, n_ctx: int, n_runs: int) -> None:
        self._n_steps, self._n_runs = cfg.n_steps, n_runs
        self._tokens_per_step = cfg.batch_size * n_ctx
        self._n_started = 0
        self._first_step: int | None = None
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

    def start(self, run_name: str) -> None:
        """A run begins, or goes on from where it was left."""
        self._n_started += 1
        self._name, self._began = run_name, time.perf_counter()
        self._first_step = None
        self._task = self._bar.add_task(
            run_name, total=self._n_steps, i=self._n_started, n=self._n_runs, loss="-", rate="-"
        )

    def update(self, step: int, loss: float) -> None:
        """The run has taken `step` steps; `loss` is that of the last batch, in nats."""
        if self._first_step is None:
            self._first_step, self._began = step, time.perf_counter()
        self._bar.update(self._task, completed=step, loss=f"{loss:.3f}", rate=self._rate(step))

    def end(self, outcome: str) -> None:
        """The run has ended; say how, and how long it took if it trained at all."""
        if self._first_step is not None:
            seconds = time.perf_counter() - self._began
            outcome += f", {seconds:.0f} s, {self._rate(self._n_steps)} tokens/s"
        else:
            outcome += ", already finished"
        self._bar.remove_task(self._task)
        self._bar.console.print(
            f"{self._name}: {self._n_steps} steps, {outcome}", highlight=False, soft_wrap=True
        )

    def _rate(self, step: int) -> str:
        assert self._first_step is not None
        seconds = time.perf_counter() - self._began
        n_tokens = (step - self._first_step) * self._tokens_per_step
        return f"{n_tokens / seconds:,.0f}" if n_tokens else "-"
