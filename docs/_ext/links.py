"""A link within the site that leads nowhere is a warning, and so an error of the build."""

from html.parser import HTMLParser
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

if TYPE_CHECKING:
    from sphinx.application import Sphinx


class _Page(HTMLParser):
    """What a page links to, and the places in it that can be linked to."""

    def __init__(self) -> None:
        super().__init__()
        self.targets: set[str] = set()
        self.anchors: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        self.targets |= {given[name] for name in ("href", "src") if given.get(name)}
        self.anchors |= {given[name] for name in ("id", "name") if given.get(name)}


def broken_links(site: Path) -> list[tuple[Path, str]]:
    """Page and target of each link, picture or script that the folder of the site does not hold.

    A target outside the site (with a scheme or a host) is not looked at, nor is what a theme
    brings along under `_static`.
    """
    found = (path for path in sorted(site.rglob("*.html")) if site / "_static" not in path.parents)
    pages = {path: _parsed(path) for path in found}
    broken = []
    for path, page in pages.items():
        for target in sorted(page.targets):
            address = urlsplit(target)
            if address.scheme or address.netloc:
                continue
            file = (path.parent / unquote(address.path)).resolve() if address.path else path
            file = file / "index.html" if file.is_dir() else file
            linked = pages.get(file)
            no_anchor = linked and address.fragment not in {"", "top", *linked.anchors}
            if not file.exists() or no_anchor:
                broken.append((path.relative_to(site), target))
    return broken


def _parsed(path: Path) -> _Page:
    page = _Page()
    page.feed(path.read_text(encoding="utf-8"))
    return page


def _check(app: "Sphinx", exception: Exception | None) -> None:
    if exception is not None or app.builder.format != "html":
        return
    from sphinx.util.logging import getLogger

    for page, target in broken_links(Path(app.outdir).resolve()):
        getLogger(__name__).warning("%s links to %s, which is not there", page, target)


def setup(app: "Sphinx") -> dict[str, bool]:
    app.connect("build-finished", _check, priority=900)  # after every file has been copied
    return {"parallel_read_safe": True, "parallel_write_safe": True}
