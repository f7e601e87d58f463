"""All analyses of a study: those whose reports are missing or stale are run, side by side.

    python -m analyses                          what there is to ask
    python -m analyses studies/quick            every analysis of one study
    python -m analyses studies/quick --check    which reports are stale; nothing is run
    python -m analyses.NAME --help              one of them, explained

Every module of this package is an analysis: adding one is adding a file. What a study was not
recorded for is skipped, with a line that says how to record it. Reports are listed in the page
index.md beside them, with what they found.
"""

import ast
import pkgutil
import sys
from collections.abc import Sequence
from pathlib import Path

import analyses

INTERRUPTED = 130


def names() -> list[str]:
    """Names of all analyses, sorted."""
    found = pkgutil.iter_modules(analyses.__path__)
    return [module.name for module in found if not module.ispkg and module.name != "__main__"]


def question(name: str) -> str:
    """The question that an analysis asks: the first line of its docstring."""
    source = (Path(analyses.__path__[0]) / f"{name}.py").read_text(encoding="utf-8")
    return (ast.get_docstring(ast.parse(source)) or "").split("\n", 1)[0]


def main(argv: Sequence[str] | None = None) -> int:
    """List without arguments; with them, run every analysis; returns the exit status."""
    argv = list(sys.argv[1:] if argv is None else argv)
    if not argv:
        _list()
        return 0
    from analyses.reporting.arguments import natural, parser
    from analyses.reporting.batch import check_all, run_all
    from analyses.reporting.cli import newest

    parsed = parser("python -m analyses", str(__doc__))
    parsed.add_argument(
        "--jobs",
        type=natural,
        metavar="N",
        help="analyses at a time, each with memory of its own (default: number of cores)",
    )
    parsed.add_argument("--force", action="store_true", help="run those that are up to date too")
    parsed.add_argument(
        "--check", action="store_true", help="run none: mark the pages of stale reports, and exit 1"
    )
    arguments = parsed.parse_args(argv)
    try:
        arguments.study = arguments.study or [newest("analyses")]
        return check_all(arguments) if arguments.check else run_all(names(), arguments)
    except (ValueError, OSError) as error:
        print(f"analyses: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted; what was finished is kept, the same command goes on", file=sys.stderr)
        return INTERRUPTED


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
