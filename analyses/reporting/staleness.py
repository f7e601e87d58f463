"""Whether a report still holds for its study and this code, and the mark on a page that does not.

Nothing is analysed for it: hashes of stores and files are compared with those in `provenance.json`.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from analyses.reporting.code import ROOT, code_hashes
from analyses.reporting.origin import Origin, Runs, changes, files_of
from analyses.reporting.text import escape, printable

_STALE, _UNCHECKED = "This report is stale", "Checked against the code only"
_MARK = re.compile(
    rf"\A([^\n]*\n\n):::\{{admonition\}} (?:{_STALE}|{_UNCHECKED})\n.*?^:::\n\n", re.DOTALL | re.M
)


@dataclass(frozen=True)
class Check:
    """What was found about a report.

    Attributes
    ----------
    changes : what is not as it was when the report was made, in words.
    study_is_here : whether the study could be looked at, and not the code alone.
    """

    changes: tuple[str, ...]
    study_is_here: bool


def check(folder: Path, runs: Runs | None) -> Check:
    """Hold the report in a folder against its study and the code as they are.

    Parameters
    ----------
    runs : states of the runs of its study; None if that is not on this machine.
    """
    made_from = Origin.read(folder)
    if made_from is None:
        return Check(("how it was made was not kept, or it was interrupted",), runs is not None)
    code = code_hashes(ROOT / "analyses" / f"{folder.name}.py")
    return Check(changes(made_from, runs=runs, code=code), runs is not None)


def is_current(folder: Path, runs: Runs, options: Mapping[str, Any]) -> bool:
    """Whether a report need not be made again to hold for these runs, options and this code."""
    made_from = Origin.read(folder)
    return (
        made_from is not None
        and all(options.get(option) == value for option, value in made_from.options.items())
        and all((folder / file).is_file() for file in files_of(folder))
        and not check(folder, runs).changes
    )


def marked(page: str, found: Check, command: str) -> str:
    """A page with the mark that it needs below its title, and no other.

    Parameters
    ----------
    command : the one that makes the report again.
    """
    page = _MARK.sub(r"\1", page)
    if found.changes:
        told = "\n".join(f"* {escape(change)}" for change in found.changes)
        only = "" if found.study_is_here else "\n\nThe study itself is not on this machine."
        mark = _admonition(
            _STALE,
            "warning",
            f"Changed since it was made:\n\n{told}{only}\n\nTo make it again:\n\n"
            f"```bash\n{printable(command)}\n```",
        )
    elif not found.study_is_here:
        mark = _admonition(
            _UNCHECKED, "note", "The code is that which made it. The study is not on this machine."
        )
    else:
        return page
    title, _, rest = page.partition("\n\n")
    return f"{title}\n\n{mark}\n\n{rest}"


def _admonition(title: str, kind: str, text: str) -> str:
    return f":::{{admonition}} {title}\n:class: {kind}\n\n{text}\n:::"
