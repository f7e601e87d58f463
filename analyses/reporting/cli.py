"""The one command line: every analysis takes the same arguments and they mean the same.

python -m analyses.<name> [STUDY_OR_RUNS ...] [--report DIR] [--seed N] [--n-resamples N]
    [--unit work|document] [--match step|loss] [--dask local|ADDRESS]
"""

import argparse
import inspect
import shlex
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple, TypeVar

from analyses.comparison.along import Match
from analyses.comparison.unanswerable import Unanswerable
from analyses.comparison.units import Unit
from analyses.comparison.walk import cluster
from analyses.reporting.arguments import DEFAULTS, USES, flags, given, parser, report_root, wanted
from analyses.reporting.code import code_hashes
from analyses.reporting.origin import Origin, states
from analyses.reporting.report import Report, write
from store.provenance import provenance
from store.study import Study, newest_study

T = TypeVar("T")
UNANSWERABLE = 3
IGNORED = "is ignored, nothing depends on it"


@dataclass(frozen=True)
class Options:
    """What the command line asks of an analysis.

    Attributes
    ----------
    seed : of everything random.
    n_resamples : draws of a resampling scheme.
    unit : of text, that intervals and nulls resample.
    match : where along training runs are compared.
    dask : where to compute: None is here, else "local" or the address of a scheduler.
    command : the command as it was given, to be repeated.
    provenance : where the numbers come from, as name and value.
    """

    seed: int
    n_resamples: int
    unit: Unit
    match: Match
    dask: str | None
    command: str
    provenance: dict[str, str]


class Analysis(NamedTuple):
    """An analysis as the command line knows it.

    Attributes
    ----------
    name, docstring : of its module.
    report : from a study and options to a report.
    uses : which of the options it heeds: "random" (--seed and --n-resamples), "unit", "match",
        "dask".
    """

    name: str
    docstring: str
    report: Callable[[Study, Options], Report]
    uses: frozenset[str] = frozenset()


def run(analysis: Analysis, argv: Sequence[str] | None = None) -> int:
    """Report on the study that the arguments name.

    Returns
    -------
    int
        Exit status: 0, or after a line on standard error that says what to do: 2, or
        UNANSWERABLE for a study that was not recorded for this question.
    """
    began = time.perf_counter()
    argv = list(sys.argv[1:] if argv is None else argv)
    arguments = parser(f"python -m analyses.{analysis.name}", analysis.docstring).parse_args(argv)
    try:
        paths = arguments.study or [newest(analysis.name)]
        study = Study.open(*paths)
        folder = report_root(arguments.report, study=study.name) / analysis.name
        # before anything is read, so that what changes meanwhile makes the report stale
        runs, code = states(study), code_hashes(Path(inspect.getfile(analysis.report)).resolve())
        options = {o: v for o, v in wanted(arguments).items() if USES[o] in analysis.uses}
        asked = _options(analysis, study, arguments, paths)
        with cluster(asked.dask) as dask:
            report = analysis.report(study, replace(asked, dask=dask))
        path = write(report, folder, Origin(runs, code, options), began=began)
    except (ValueError, OSError) as error:
        print(f"{analysis.name}: {error}", file=sys.stderr)
        return UNANSWERABLE if isinstance(error, Unanswerable) else 2
    from rich.console import Console

    from analyses.reporting.terminal import renderable

    console = Console()
    console.print(renderable(report))
    console.print(f"page: {path}", markup=False, highlight=False, soft_wrap=True)
    return 0


def track(items: Sequence[T], *, description: str) -> Iterator[T]:
    """The items, with a progress bar (rate, time left) while standard error is a terminal."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
    )

    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
    )
    with Progress(
        *columns, console=console, transient=True, disable=not console.is_terminal
    ) as bar:
        task = bar.add_task(description, total=len(items), rate="")
        for item in items:
            yield item
            bar.advance(task)
            speed = bar.tasks[task].speed
            bar.update(task, rate=f"{speed:.1f}/s" if speed else "")


def newest(command: str) -> str:
    """The newest study under studies/, which is named on standard error."""
    path = str(newest_study())
    print(f"{command}: no study given, taking the newest: {path}", file=sys.stderr)
    return path


def _options(
    analysis: Analysis, study: Study, arguments: argparse.Namespace, paths: Sequence[str]
) -> Options:
    heeded = {}
    for option, value in given(arguments).items():
        if USES[option] in analysis.uses:
            heeded[option] = value
        else:
            print(f"{analysis.name}: {option} {IGNORED}", file=sys.stderr)
    values = DEFAULTS | heeded
    words = [*paths, *flags(heeded, arguments.report)]
    return Options(
        seed=values["--seed"],
        n_resamples=values["--n-resamples"],
        unit=values["--unit"],
        match=values["--match"],
        dask=values.get("--dask"),
        command=shlex.join(["python", "-m", f"analyses.{analysis.name}", *words]),
        provenance=_provenance(study),
    )


def _provenance(study: Study) -> dict[str, str]:
    """Data and code as one line each."""
    made_by = provenance()
    commit = made_by["commit"] or "unknown"
    return {
        "probe set (SHA-256)": str(study.runs[0].attrs["probe_set_hash"]),
        "commit": f"{commit}, with changes" if made_by["dirty"] else commit,
        "versions": ", ".join(f"{name} {v}" for name, v in made_by["versions"].items()),
        "machine": made_by["machine"],
    }
