"""All analyses of a study: those whose reports are missing or stale are run, the rest is kept."""

import argparse
import json
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from analyses.reporting.arguments import flags, given, report_root, wanted
from analyses.reporting.batch_progress import BatchProgress, summary
from analyses.reporting.cli import UNANSWERABLE
from analyses.reporting.code import ROOT, code_hashes
from analyses.reporting.origin import Runs, seconds_of, states
from analyses.reporting.side_by_side import Outcome, n_cores, run_side_by_side
from analyses.reporting.staleness import is_current
from analyses.reporting.study_reports import folders, read_unanswered, refresh, write_unanswered
from analyses.reporting.text import first_sentence
from store.study import Study

STALE = 1


def run_all(names: Sequence[str], arguments: argparse.Namespace) -> int:
    """Run analyses of the study that the arguments name, and list their reports in an index.

    Returns
    -------
    int
        The worst exit status of an analysis; UNANSWERABLE only if the study was recorded for none.

    Raises
    ------
    ValueError
        If there is no such study, or its name names no folder.
    """
    study = Study.open(*arguments.study)
    root = report_root(arguments.report, study=study.name)
    runs, options = states(study), wanted(arguments)
    known = {} if arguments.force else _unanswerable(names, root, runs, options)
    kept = [
        name
        for name in names
        if name not in known and not arguments.force and is_current(root / name, runs, options)
    ]
    due = [name for name in names if name not in known and name not in kept]
    words = [*arguments.study, *flags(given(arguments), arguments.report)]
    jobs = arguments.jobs or (1 if arguments.dask else n_cores())
    # the longest first, so that none is left to run alone; what is not known may be long
    due.sort(key=lambda name: -(seconds_of(root / name) or float("inf")))
    with BatchProgress(Console(stderr=True), total=len(due)) as shown:
        outcomes = run_side_by_side(due, words, shown, jobs=jobs)
    lacking = known | {
        o.analysis: {"why": o.reason, "code": code_hashes(_source(o.analysis))}
        for o in outcomes
        if o.status == UNANSWERABLE
    }
    failed = [o for o in outcomes if o.status not in (0, UNANSWERABLE)]
    told = lacking | {o.analysis: {"why": f"failed: {o.reason}"} for o in failed}
    if root.is_dir():
        command = shlex.join(["python", "-m", "analyses", *words])
        write_unanswered(root, command, runs, options, told)
        refresh(root, runs)
    _tell(names, root, outcomes, known)
    if set(lacking) == set(names):
        return UNANSWERABLE
    return max((abs(o.status) for o in failed), default=0)


def check_all(arguments: argparse.Namespace) -> int:
    """Say which reports are stale, mark their pages, and analyse nothing.

    Returns
    -------
    int
        STALE if one is, else 0.
    """
    try:
        study = Study.open(*arguments.study)
        name, runs = study.name, states(study)
    except ValueError:
        name, runs = Path(arguments.study[0]).name, None
    root = report_root(arguments.report, study=name)
    checks = refresh(root, runs)
    if not checks:
        raise ValueError(f"no report in {root}; make them with `python -m analyses STUDY`")
    console = Console()
    for analysis, found in checks.items():
        state = "stale: " + "; ".join(found.changes) if found.changes else "up to date"
        only = "" if found.study_is_here else " (the code alone; the study is not on this machine)"
        console.print(f"{analysis}: {state}{only}", markup=False, highlight=False, soft_wrap=True)
    return STALE if any(found.changes for found in checks.values()) else 0


def _unanswerable(
    names: Sequence[str], root: Path, runs: Runs, options: Mapping[str, Any]
) -> dict[str, Any]:
    """Analyses that an earlier call found the study not to be recorded for, unless that changed."""
    earlier = read_unanswered(root)
    if earlier.get("runs") != runs or earlier.get("options") != options:
        return {}
    return {
        name: told
        for name, told in earlier["analyses"].items()
        if name in names and told.get("code") == code_hashes(_source(name))
    }


def _source(analysis: str) -> Path:
    return ROOT / "analyses" / f"{analysis}.py"


def _tell(
    names: Sequence[str], root: Path, outcomes: Sequence[Outcome], known: Mapping[str, Any]
) -> None:
    """A table of what was run and kept, with the findings, and where to read on."""
    ended = {outcome.analysis: outcome for outcome in outcomes}
    rows = []
    for name in names:
        outcome = ended.get(name)
        seconds = outcome.seconds if outcome else None
        if name in known:
            state, told = "not recorded for it", str(known[name]["why"])
        elif outcome and outcome.status:
            state, told = outcome.state, outcome.reason
        else:
            state = outcome.state if outcome else "up to date"
            results = json.loads((root / name / "results.json").read_text(encoding="utf-8"))
            told = first_sentence(results["finding"])
        rows.append((name, state, seconds, told))
    console = Console()
    console.print(summary(rows))
    if folders(root):
        page = root / "index.md"
        console.print(f"index: {page}", markup=False, highlight=False, soft_wrap=True)
