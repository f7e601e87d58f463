"""List the analyses, or run all of them on a study.

    python -m analyses                  what there is to ask
    python -m analyses studies/quick    every analysis of one study
    python -m analyses.NAME --help      one of them, explained

Every module of this package is an analysis: adding one is adding a file. What a study was not
recorded for is skipped, with a line that says how to record it.
"""

import ast
import importlib
import pkgutil
import sys
from collections.abc import Sequence
from pathlib import Path

import analyses


def names() -> list[str]:
    """Names of all analyses, sorted."""
    found = pkgutil.iter_modules(analyses.__path__)
    return [module.name for module in found if not module.ispkg and module.name != "__main__"]


def question(name: str) -> str:
    """The question that an analysis asks: the first line of its docstring."""
    source = (Path(analyses.__path__[0]) / f"{name}.py").read_text(encoding="utf-8")
    return (ast.get_docstring(ast.parse(source)) or "").split("\n", 1)[0]


def main(argv: Sequence[str] | None = None) -> int:
    """List without arguments; with them, run every analysis and return the worst exit status.

    A question that the study was not recorded for is skipped; 3 only if that is every one.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    if not argv or argv in (["-h"], ["--help"]):
        _list()
        return 0
    from analyses.reporting.cli import UNANSWERABLE

    statuses = [importlib.import_module(f"analyses.{name}").main(argv) for name in names()]
    return max((s for s in statuses if s != UNANSWERABLE), default=UNANSWERABLE)


def _list() -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table.grid(padding=(0, 2))
    for name in names():
        table.add_row(Text(name, style="bold"), Text(question(name)))
    console = Console()
    console.print(Text(str(__doc__)))
    console.print(table)


if __name__ == "__main__":
    raise SystemExit(main())
