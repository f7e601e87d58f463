"""A page that loads something from the network is a warning, and so an error of the build."""

import re
from html.parser import HTMLParser
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sphinx.application import Sphinx

_REMOTE = re.compile(r"\s*(?:https?:)?//", re.IGNORECASE)
_CSS_REMOTE = re.compile(r"(?:url\(|@import)\s*[\"']?\s*((?:https?:)?//[^\"')\s;]+)", re.IGNORECASE)
_LOADING = {"src", "srcset", "poster", "data", "background"}
# a link element only names these, it does not fetch them
_NAMED = {"canonical", "license", "author", "next", "prev", "search", "index", "alternate"}


class _Loads(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        named = tag == "link" and set(given.get("rel", "").lower().split()) <= _NAMED
        links = tag in ("link", "image", "use") and not named
        for name, value in given.items():
            loaded = name in _LOADING or (links and name in ("href", "xlink:href"))
            if loaded and _REMOTE.match(value):
                self.found.append(value)
        self.found += _CSS_REMOTE.findall(given.get("style", ""))


def loads(page: str) -> list[str]:
    """Addresses outside the site that a browser fetches to show the page."""
    parser = _Loads()
    parser.feed(page)
    for style in re.findall(r"<style[^>]*>(.*?)</style>", page, re.DOTALL | re.IGNORECASE):
        parser.found += _CSS_REMOTE.findall(style)
    return parser.found


def style_loads(sheet: str) -> list[str]:
    """Addresses outside the site that a style sheet fetches."""
    return _CSS_REMOTE.findall(sheet)


def _check(app: "Sphinx", exception: Exception | None) -> None:
    if exception is not None or app.builder.format != "html":
        return
    from sphinx.util.logging import getLogger

    for suffix, of_text in (("html", loads), ("css", style_loads)):
        for path in Path(app.outdir).rglob(f"*.{suffix}"):
            for address in of_text(path.read_text(encoding="utf-8")):
                getLogger(__name__).warning("%s loads %s", path.relative_to(app.outdir), address)


def setup(app: "Sphinx") -> dict[str, bool]:
    app.connect("build-finished", _check, priority=900)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
