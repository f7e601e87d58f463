"""Whether intervals cover and tests hold their level, by simulation; writes docs/statistics.

    python tests/benchmarks/coverage.py [--replicates 4000] [--out docs/statistics] [--processes 2]

Every world has a seed of its own, so the figures do not depend on the number of processes. Writes
the tables as CSV, the figures as SVG and PNG, and refreshes the tables between the markers of
`coverage.md`. Takes eight minutes of processor time; `tests/analyses/test_calibration.py` is the
small version that runs with the tests.
"""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import argparse
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path

from rich.progress import MofNCompleteColumn, Progress, TimeElapsedColumn
from simulation import decisions, over_runs, over_text
from simulation.cells import Cell, Task
from simulation.drawings import drawings
from simulation.tables import csv_text, refreshed, tables

from analyses.reporting.figures import rendered


def simulated(tasks: Iterable[Task], *, processes: int) -> list[Cell]:
    """Cells of all tasks, in their order."""
    tasks = list(tasks)
    columns = (*Progress.get_default_columns(), MofNCompleteColumn(), TimeElapsedColumn())
    with ProcessPoolExecutor(processes) as pool, Progress(*columns) as progress:
        bar = progress.add_task("simulating", total=len(tasks))
        futures = {pool.submit(_cells, task): task.name for task in tasks}
        for future in as_completed(futures):
            progress.update(bar, advance=1, description=futures[future])
        return [cell for future in futures for cell in future.result()]


def _cells(task: Task) -> list[Cell]:
    return list(task.cells(*task.arguments))


def write(cells: list[Cell], folder: Path) -> None:
    """Tables, figures, and the page with its tables refreshed."""
    folder.mkdir(parents=True, exist_ok=True)
    for part in dict.fromkeys(cell.part for cell in cells):
        (folder / f"coverage_{part}.csv").write_text(csv_text(cells, part))
    for name, figure in drawings(cells):
        for suffix in ("svg", "png"):
            (folder / f"{name}.{suffix}").write_bytes(rendered(figure, suffix=suffix))
    page = folder / "coverage.md"
    text = page.read_text() if page.exists() else ""
    page.write_text(refreshed(text, tables(cells)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--replicates", type=int, default=4000)
    parser.add_argument("--out", type=Path, default=Path("docs/statistics"))
    parser.add_argument("--processes", type=int, default=os.cpu_count())
    args = parser.parse_args()
    tasks = [
        task for part in (over_text, over_runs, decisions) for task in part.tasks(args.replicates)
    ]
    write(simulated(tasks, processes=args.processes), args.out)


if __name__ == "__main__":
    main()
