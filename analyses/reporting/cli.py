"""The one command line: every analysis takes the same arguments and they mean the same.

python -m analyses.<name> [STUDY_OR_RUNS ...] [--report DIR] [--seed N] [--n-resamples N]
    [--unit work|document] [--match step|loss] [--dask local|ADDRESS]
"""

import argparse
import inspect
import re
import shlex
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, TypeVar, get_args

from analyses.comparison.along import Match
from analyses.comparison.unanswerable import Unanswerable
from analyses.comparison.units import Unit
from analyses.reporting.report import Report, write
from store.provenance import provenance
from store.study import Study, newest_study

T = TypeVar("T")
UNANSWERABLE = 3
N_RESAMPLES = 500

_USES = {
    "--seed": "random",
    "--n-resamples": "random",
    "--unit": "unit",
    "--match": "match",
    "--dask": "dask",
}

_EPILOG = """\
Without STUDY_OR_RUNS the newest study under studies/ is analysed. To make one:
    python -m models.train quick
"""


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
    argv = list(sys.argv[1:] if argv is None else argv)
    arguments = parser(f"python -m analyses.{analysis.name}", analysis.docstring).parse_args(argv)
    try:
        paths = arguments.study or [_newest(analysis.name)]
        study = Study.open(*paths)
        folder = report_folder(arguments.report, study=study.name, analysis=analysis.name)
        report = analysis.report(study, _options(analysis, study, arguments, paths))
        path = write(report, folder)
    except (ValueError, OSError) as error:
        print(f"{analysis.name}: {error}", file=sys.stderr)
        return UNANSWERABLE if isinstance(error, Unanswerable) else 2
    from rich.console import Console

    from analyses.reporting.terminal import renderable

    console = Console()
    console.print(renderable(report))
    console.print(f"page: {path}", markup=False, highlight=False, soft_wrap=True)
    return 0


def parser(program: str, docstring: str) -> argparse.ArgumentParser:
    """The parser of every analysis; its help is the module docstring."""
    parsed = argparse.ArgumentParser(
        prog=program,
        description=inspect.cleandoc(docstring),
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parsed.add_argument(
        "study",
        nargs="*",
        metavar="STUDY_OR_RUNS",
        help="folder of a study, or some of its runs (default: the newest under studies/)",
    )
    parsed.add_argument(
        "--report",
        type=Path,
        metavar="DIR",
        help="folder that gets a folder per analysis (default: docs/reports/STUDY)",
    )
    parsed.add_argument(
        "--seed", type=_natural, metavar="N", help="seed of everything random (default: 0)"
    )
    parsed.add_argument(
        "--n-resamples",
        type=_natural,
        metavar="N",
        help=f"draws of a resampling scheme (default: {N_RESAMPLES})",
    )
    parsed.add_argument(
        "--unit",
        choices=get_args(Unit),
        help="unit of text that intervals resample; a work may have several documents "
        "(default: work)",
    )
    parsed.add_argument(
        "--match",
        choices=get_args(Match),
        help="compare runs at equal steps or at equal mean loss (default: step)",
    )
    parsed.add_argument(
        "--dask",
        metavar="WHERE",
        help="compute on dask: local, or the address of a scheduler (default: without dask)",
    )
    return parsed


def report_folder(root: Path | None, *, study: str, analysis: str) -> Path:
    """Folder of a report: `<root>/<analysis>`, by default `docs/reports/<study>/<analysis>`.

    Raises
    ------
    ValueError
        If the name of the study, which may come from someone else's file, names no plain folder.
    """
    if root is not None:
        return root / analysis
    if re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9._-]*", study) is None:
        raise ValueError(
            f"study name {study!r} cannot name a folder; say where to write with --report DIR"
        )
    return Path("docs", "reports", study, analysis)


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


def _natural(text: str) -> int:
    """A whole number from 0 up, for argparse."""
    number = int(text)
    if number < 0:
        raise argparse.ArgumentTypeError(f"{text} is below 0; give 0 or more")
    return number


def _newest(analysis: str) -> str:
    """The newest study under studies/, which is named on standard error."""
    path = str(newest_study())
    print(f"{analysis}: no study given, taking the newest: {path}", file=sys.stderr)
    return path


def _options(
    analysis: Analysis, study: Study, arguments: argparse.Namespace, paths: Sequence[str]
) -> Options:
    given = {}
    for option, use in _USES.items():
        value = getattr(arguments, option.strip("-").replace("-", "_"))
        if value is None:
            continue
        if use in analysis.uses:
            given[option] = value
        else:
            print(f"{analysis.name}: {option} is ignored, nothing depends on it", file=sys.stderr)
    flags = [str(part) for option in given.items() for part in option]
    if arguments.report is not None:
        flags += ["--report", str(arguments.report)]
    return Options(
        seed=given.get("--seed", 0),
        n_resamples=given.get("--n-resamples", N_RESAMPLES),
        unit=given.get("--unit", "work"),
        match=given.get("--match", "step"),
        dask=given.get("--dask"),
        command=shlex.join(["python", "-m", f"analyses.{analysis.name}", *paths, *flags]),
        provenance=_provenance(study),
    )


def _provenance(study: Study) -> dict[str, str]:
    """Data and code as one line each."""
    made_by = provenance()
    commit = made_by["commit"] or "unknown"
    return {
        "runs": ", ".join(run.name for run in study.runs),
        "probe set (SHA-256)": str(study.runs[0].attrs["probe_set_hash"]),
        "code": f"{commit}, with changes" if made_by["dirty"] else commit,
        "versions": ", ".join(f"{name} {v}" for name, v in made_by["versions"].items()),
        "machine": made_by["machine"],
        "created": made_by["created"],
    }
