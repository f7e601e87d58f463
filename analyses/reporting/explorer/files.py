"""The files of the page: all in one, or for a large study the page and a script a document.

A page that is opened from a disk may not fetch, but may load scripts; so a document beside the page
is a script that hands its payload over when the reader asks for it.
"""

import html
from collections.abc import Iterator
from importlib.resources import files
from string import Template

from analyses.reporting.explorer.contents import Contents
from analyses.reporting.explorer.packing import as_script

PAGE = "explorer.html"
# Losses and choices of experts that the page holds itself: some 20 MB, read in about a second.
EMBEDDED = 16_000_000
_CODE = ("data.js", "measures.js", "drawing.js", "link.js", "reading.js", "lists.js", "controls.js")


def explorer_files(contents: Contents, *, embedded: int = EMBEDDED) -> Iterator[tuple[str, bytes]]:
    """Path and content of each file, the page last.

    Parameters
    ----------
    embedded : most numbers that the page holds itself; of a larger study each document stands in
        `documents/`.
    """
    source = files("analyses.reporting.explorer")
    beside = contents.n_numbers > embedded
    parts = (
        f"tokenExplorer.register({i},{as_script(part)});" for i, part in enumerate(contents.parts())
    )
    inside = []
    if beside:
        for i, part in enumerate(parts):
            yield f"documents/{i:05d}.js", f"{part}\n".encode("ascii")
    else:
        inside = [f"<script>{part}</script>" for part in parts]
    page = Template(source.joinpath(PAGE).read_text(encoding="utf-8")).substitute(
        title=html.escape(str(contents.outline["study"])),
        scripts="'self' file:" if beside else "",
        css=source.joinpath("explorer.css").read_text(encoding="utf-8"),
        code="\n".join(source.joinpath(name).read_text(encoding="utf-8") for name in _CODE),
        index=as_script(contents.outline | {"beside": beside}),
        parts="\n".join(inside),
    )
    yield PAGE, page.encode("utf-8")
