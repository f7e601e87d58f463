"""All reports of one study: checked, marked where they are stale, and listed in an index."""

import json
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from analyses.reporting.arguments import flags, given, parser
from analyses.reporting.index_page import Entry, index_page
from analyses.reporting.origin import Runs, states
from analyses.reporting.report import THUMBNAIL, replace_file
from analyses.reporting.staleness import Check, check, marked
from store.chunks import StoreError
from store.study import Study

_UNANSWERED = "unanswered.json"


def folders(root: Path) -> list[Path]:
    """Folders of the reports in `root`, by name of the analysis."""
    pages = sorted(root.glob("*/index.md"))
    return [page.parent for page in pages if (page.parent / "results.json").is_file()]


def refresh(root: Path, runs: Runs | None = None, *, base: Path = Path()) -> dict[str, Check]:
    """Check all reports in `root`, mark their pages and write the index anew.

    Parameters
    ----------
    runs : states of the runs of the study; None to look for them where each report says.
    base : where the paths in the commands of reports start.

    Returns
    -------
    dict
        By analysis. Empty, and nothing is written, if there is no report and nothing was asked.
    """
    unanswered = read_unanswered(root)
    checks, entries, command, study, seen = {}, [], "", root.name, {}
    for folder in folders(root):
        results = json.loads((folder / "results.json").read_text(encoding="utf-8"))
        arguments = parser("", "").parse_args(shlex.split(results["command"])[3:])
        paths = tuple(arguments.study)
        if runs is None and paths not in seen:
            seen[paths] = _runs_at(paths, base)
        found = check(folder, seen[paths] if runs is None else runs)
        page = (folder / "index.md").read_text(encoding="utf-8")
        _update(folder / "index.md", marked(page, found, results["command"]))
        entries.append(
            Entry(
                folder.name, results["question"], results["finding"], found.changes,
                thumbnail=(folder / THUMBNAIL).is_file(),
            )
        )  # fmt: skip
        checks[folder.name] = found
        study = results["study"]
        command = shlex.join(
            ["python", "-m", "analyses", *paths, *flags(given(arguments), arguments.report)]
        )
    if entries or unanswered:
        why = {name: told["why"] for name, told in unanswered.get("analyses", {}).items()}
        command = unanswered.get("command", command)
        page = index_page(
            study, entries, {n: w for n, w in why.items() if n not in checks}, command
        )
        _update(root / "index.md", page)
    return checks


def read_unanswered(root: Path) -> dict[str, Any]:
    """What the last call could not answer; see `write_unanswered`."""
    try:
        return json.loads((root / _UNANSWERED).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}


def write_unanswered(
    root: Path, command: str, runs: Runs, options: Mapping[str, Any], analyses: Mapping[str, Any]
) -> None:
    """Keep what could not be answered, so that it need not be asked again of the same."""
    kept = {"command": command, "runs": runs, "options": options, "analyses": analyses}
    replace_file(root / _UNANSWERED, json.dumps(kept, ensure_ascii=False, indent=1) + "\n")


def _update(path: Path, text: str) -> None:
    """Write a file only if it is another, so that a site is not built anew for nothing."""
    if not path.exists() or path.read_text(encoding="utf-8") != text:
        replace_file(path, text)


def _runs_at(paths: tuple[str, ...], base: Path) -> Runs | None:
    """States of runs; None if they are not on this machine."""
    try:
        return states(Study.open(*(path if "://" in path else base / path for path in paths)))
    except StoreError:
        return None
