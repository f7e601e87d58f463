"""Docstrings, written to be read as plain text, as reStructuredText.

In a module's docstring, which also is command-line help, an indented paragraph is a formula or a
command and is shown as it stands, and a numbered reference is an item of a list. Functions cite the
references of their module. Bars, stars and underscores are mathematics, not markup.
"""

import re
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sphinx.application import Sphinx

_REFERENCES = "\nReferences\n----------\n"
_REFERENCE = re.compile(r"\.\. \[(\d+)\] ")
_CODE = re.compile(r"(``[^`]+``|(?<!:)`[^`]+`|:py:\w+:`[^`]+`)")


def module_as_rst(docstring: str) -> str:
    """The docstring of a module, with literal blocks and a list of references."""
    body, _, references = docstring.partition(_REFERENCES)
    parts = [_paragraph(part) for part in re.split(r"\n[ ]*\n", body.strip("\n"))]
    listed = [" ".join(item.split()) for item in _REFERENCE.split(references)[2::2]]
    if listed:
        parts.append(".. rubric:: References")
        parts.append("\n".join(f"{i}. {_escaped(item)}" for i, item in enumerate(listed, 1)))
    return "\n\n".join(parts) + "\n\n"


def member_as_rst(docstring: str) -> str:
    """The docstring of a class or function, still in numpydoc form."""
    if _REFERENCES in docstring:
        return docstring
    return _inline(docstring)


def _paragraph(part: str) -> str:
    if all(line.startswith("    ") for line in part.splitlines()):
        return ".. code-block:: text\n\n" + part
    if part.startswith("* "):
        return "\n".join("* " + _inline(item) for item in re.split(r"^\* ", part, flags=re.M)[1:])
    return _inline(part)


def _inline(text: str) -> str:
    """Text with citations in plain brackets, code as code, and no other markup."""
    pieces = _CODE.split(re.sub(r"\[(\d+)\]_", r"[\1]", text))
    return "".join(_code(piece) if i % 2 else _escaped(piece) for i, piece in enumerate(pieces))


def _code(piece: str) -> str:
    if piece.startswith(":"):
        return piece
    return "``" + " ".join(piece.strip("`").split()) + "``"


def _escaped(text: str) -> str:
    """Bars, stars and underscores as themselves; numpydoc reads the names before a colon itself."""
    text = re.sub(r"([|\\])", r"\\\1", text)
    text = re.sub(r"(?<!\w)\*|\*(?!\w)|(?<=\w)\*(?=\w)", lambda _: r"\*", text)
    return re.sub(r"_(?![\w])", r"\\_", text)


def _process(app: "Sphinx", what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    as_rst = module_as_rst if what == "module" else member_as_rst
    lines[:] = as_rst("\n".join(lines)).split("\n")


def _skip(app: "Sphinx", what: str, name: str, obj: Any, skip: bool, options: Any) -> bool | None:
    """Leave out what matplotlib writes into each class made of one of its own."""
    return True if getattr(obj, "__module__", "") == "matplotlib.artist" else None


def setup(app: "Sphinx") -> dict[str, bool]:
    app.connect("autodoc-process-docstring", _process, priority=400)
    app.connect("autodoc-skip-member", _skip)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
