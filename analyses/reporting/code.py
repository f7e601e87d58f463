"""Which files an analysis runs: its own, and all of this project that these import.

Found by reading imports, functions' own included, and not by running anything.
"""

import ast
import hashlib
from collections.abc import Iterator
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[2]
_PACKAGES = ("analyses", "store")


def code_hashes(source: Path) -> dict[str, str]:
    """SHA-256 of each file that a module of `analyses` or `store` runs, by path in the project.

    What stands beside a module but is no module (the page of the token explorer) counts as its own.

    Parameters
    ----------
    source : the module's file.
    """
    found, waiting = set[Path](), [source]
    while waiting:
        file = waiting.pop()
        if file not in found:
            found.add(file)
            waiting += _imported(file)
    inside = {file.parent for file in found if file.is_relative_to(ROOT)}
    found |= {
        file
        for folder in inside
        for file in folder.iterdir()
        if file.is_file() and not file.name.endswith((".py", ".pyc"))
    }
    return {_name(file): _sha256(file) for file in sorted(found)}


def _name(file: Path) -> str:
    return file.relative_to(ROOT).as_posix() if file.is_relative_to(ROOT) else file.name


def _sha256(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


@cache
def _imported(file: Path) -> list[Path]:
    """Files of this project that a file imports, and the packages they stand in."""
    tree = ast.parse(file.read_bytes())
    names = (name for node in ast.walk(tree) for name in _names(node))
    return list(dict.fromkeys(path for name in names for path in _files(name)))


def _names(node: ast.AST) -> Iterator[str]:
    """What an import may mean: `from a.b import c` is `a.b.c` or something in `a.b`."""
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        yield from (f"{node.module}.{alias.name}" for alias in node.names)


def _files(name: str) -> Iterator[Path]:
    parts = name.split(".")
    if parts[0] not in _PACKAGES:
        return
    for n in range(1, len(parts) + 1):
        path = ROOT.joinpath(*parts[:n])
        yield from (p for p in (path / "__init__.py", path.with_suffix(".py")) if p.is_file())
