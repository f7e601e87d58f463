"""The arguments of every analysis: one parser, and where a report goes by default."""

import argparse
import inspect
import re
from pathlib import Path
from typing import Any, get_args

from analyses.comparison.along import Match
from analyses.comparison.units import Unit

DEFAULTS: dict[str, Any] = {"--seed": 0, "--n-resamples": 500, "--unit": "work", "--match": "step"}
USES = {
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
        "--seed", type=natural, metavar="N", help="seed of everything random (default: 0)"
    )
    parsed.add_argument(
        "--n-resamples",
        type=natural,
        metavar="N",
        help=f"draws of a resampling scheme (default: {DEFAULTS['--n-resamples']})",
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


def given(arguments: argparse.Namespace) -> dict[str, Any]:
    """Options that were given, by name; `--report` is none, no number depends on it."""
    values = {option: getattr(arguments, option[2:].replace("-", "_")) for option in USES}
    return {option: value for option, value in values.items() if value is not None}


def wanted(arguments: argparse.Namespace) -> dict[str, Any]:
    """Value of each option that a number may depend on: that given, or else the default."""
    said = given(arguments)
    return {option: said.get(option, default) for option, default in DEFAULTS.items()}


def flags(options: dict[str, Any], report: Path | None) -> list[str]:
    """The words of a command line that give these options."""
    words = [str(word) for option in options.items() for word in option]
    return words if report is None else [*words, "--report", str(report)]


def report_root(root: Path | None, *, study: str) -> Path:
    """Folder of the reports of a study: that given, by default `docs/reports/<study>`.

    Raises
    ------
    ValueError
        If the name of the study, which may come from someone else's file, names no plain folder.
    """
    if root is not None:
        return root
    if re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9._-]*", study) is None:
        raise ValueError(
            f"study name {study!r} cannot name a folder; say where to write with --report DIR"
        )
    return Path("docs", "reports", study)


def natural(text: str) -> int:
    """A whole number from 0 up, for argparse."""
    number = int(text)
    if number < 0:
        raise argparse.ArgumentTypeError(f"{text} is below 0; give 0 or more")
    return number
