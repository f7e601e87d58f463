"""What a report was made from, kept beside it in `provenance.json`, and what has changed since.

A report is stale once a run of its study, or a file of the code that made it, is another.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from store.provenance import hash_run
from store.study import Study

FILE = "provenance.json"
Runs = Mapping[str, Mapping[str, Any]]
_MOST_NAMED = 5


@dataclass(frozen=True)
class Origin:
    """What a report was made from.

    Attributes
    ----------
    runs : {name: {"sha256" of its store, "steps" committed}}.
    code : {file of this project: SHA-256}.
    options : {option of the command line: value}, of those that the report depends on.
    """

    runs: Runs
    code: Mapping[str, str]
    options: Mapping[str, Any]

    @classmethod
    def read(cls, folder: Path) -> Self | None:
        """That of the report in a folder; None if there is none, or it was not finished."""
        kept = _kept(folder)
        if not {"runs", "code", "options", "made"} <= set(kept):
            return None
        return cls(kept["runs"], kept["code"], kept["options"])

    def as_json(self, files: Iterable[str], made: Mapping[str, Any]) -> str:
        """The content of `provenance.json`: besides, the files of the report and when it was made.

        Only `made` differs between two reports made from the same.
        """
        parts = {"runs": self.runs, "code": self.code, "options": self.options}
        return _json(parts | {"files": sorted(files), "made": made})

    def rows(self) -> dict[str, str]:
        """The origin as a page shows it: name and value."""
        runs = (
            f"{name} ({state['steps']} steps, {state['sha256'][:12]})"
            for name, state in self.runs.items()
        )
        together = hashlib.sha256(_json(self.code).encode()).hexdigest()
        return {
            "runs (SHA-256)": ", ".join(runs),
            "code (SHA-256)": f"{len(self.code)} files, {together[:12]}",
        }


def unfinished(files: Iterable[str]) -> str:
    """`provenance.json` of a report that is being written over one that had these files."""
    return _json({"files": sorted(files)})


def files_of(folder: Path) -> list[str]:
    """Paths in the folder of what a report wrote into it."""
    return list(_kept(folder).get("files", ()))


def seconds_of(folder: Path) -> float | None:
    """How long the report in a folder took to make; None if it is not known."""
    return _kept(folder).get("made", {}).get("run_time_s")


def states(study: Study) -> dict[str, dict[str, Any]]:
    """What identifies the content of each run of a study."""
    return {
        run.name: {"sha256": hash_run(run.path), "steps": len(run.committed)} for run in study.runs
    }


def changes(then: Origin, *, runs: Runs | None, code: Mapping[str, str]) -> tuple[str, ...]:
    """What is not as it was when a report was made, in words; empty if all is.

    Parameters
    ----------
    runs, code : as they are now; None for the runs of a study that is not on this machine.
    """
    told = {}
    if runs is not None:
        both = [name for name in then.runs if name in runs]
        grown = [name for name in both if runs[name]["steps"] != then.runs[name]["steps"]]
        other = [name for name in both if runs[name]["sha256"] != then.runs[name]["sha256"]]
        told["runs added"] = [name for name in runs if name not in then.runs]
        told["runs left out"] = [name for name in then.runs if name not in runs]
        told["steps committed"] = [
            f"{name} ({then.runs[name]['steps']} then, {runs[name]['steps']} now)" for name in grown
        ]
        told["contents of the store"] = [name for name in other if name not in grown]
    files = sorted({*then.code, *code})
    told["code"] = [file for file in files if then.code.get(file) != code.get(file)]
    return tuple(f"{what}: {_some(names)}" for what, names in told.items() if names)


def _some(names: list[str]) -> str:
    rest = len(names) - _MOST_NAMED
    return ", ".join(names[:_MOST_NAMED]) + (f" and {rest} more" if rest > 0 else "")


def _kept(folder: Path) -> dict[str, Any]:
    """What `provenance.json` holds; nothing where it is missing or damaged."""
    try:
        kept = json.loads((folder / FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return kept if isinstance(kept, dict) else {}


def _json(content: Mapping[str, Any]) -> str:
    return json.dumps(content, ensure_ascii=False, indent=1) + "\n"
