"""Every command's own help: what `python -m NAME --help` prints, asked of it at build."""

import contextlib
import importlib
import io
import os
import pkgutil
from pathlib import Path

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

PACKAGES = ("models", "analyses", "store", "probes")
_GUARD = 'if __name__ == "__main__":'


def commands() -> list[str]:
    """Modules that `python -m` runs, by package."""
    found = []
    for package in PACKAGES:
        modules = pkgutil.walk_packages(importlib.import_module(package).__path__, f"{package}.")
        for module in modules:
            path = Path(module.module_finder.path, module.name.rpartition(".")[2] + ".py")  # type: ignore[union-attr]
            if not module.ispkg and _GUARD in path.read_text(encoding="utf-8"):
                found.append(module.name)
    return sorted(found, key=lambda name: (PACKAGES.index(name.partition(".")[0]), name))


def shown_name(module: str) -> str:
    """What stands after `python -m`."""
    return module.removesuffix(".__main__")


def help_of(module: str) -> str:
    """What the command prints when asked for help, 88 columns wide."""
    printed = io.StringIO()
    width = os.environ.get("COLUMNS")
    os.environ["COLUMNS"] = "88"
    try:
        with contextlib.redirect_stdout(printed), contextlib.suppress(SystemExit):
            importlib.import_module(module).main(["--help"])
    finally:
        if width is None:
            del os.environ["COLUMNS"]
        else:
            os.environ["COLUMNS"] = width
    return "\n".join(line.rstrip() for line in printed.getvalue().splitlines()).strip()


class Commands(SphinxDirective):
    """`{commands} PACKAGE`: the help of every command of a package."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        parts = [
            f"## `python -m {shown_name(module)}`\n\n````text\n{help_of(module)}\n````"
            for module in commands()
            if module.partition(".")[0] == self.arguments[0]
        ]
        return self.parse_text_to_nodes("\n\n".join(parts), allow_section_headings=True)


def setup(app: Sphinx) -> dict[str, bool]:
    app.add_directive("commands", Commands)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
