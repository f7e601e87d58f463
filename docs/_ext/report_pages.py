"""Reports that were made are part of the site: a card each, their pages, and their files."""

import shutil
from pathlib import Path

from docutils import nodes
from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

_NONE = """\
:::{note}
There are none in this build. `make study` trains the `quick` study and writes its reports;
`python -m analyses studies/NAME` writes those of another. `make docs` then shows them here.
:::
"""


def reports(docs: Path) -> dict[str, list[Path]]:
    """Folders of the reports of each study."""
    found: dict[str, list[Path]] = {}
    for page in sorted(docs.glob("reports/*/*/index.md")):
        found.setdefault(page.parents[1].name, []).append(page.parent)
    return found


def card(folder: Path, docs: Path) -> str:
    """A card with the question, the finding and the first figure of a report."""
    where = folder.relative_to(docs).as_posix()
    title = (folder / "index.md").read_text(encoding="utf-8").partition("\n")[0].lstrip("# ")
    picture = next(iter(sorted(folder.glob("*.png"))), None)
    first = folder / f"{folder.name}.png"
    picture = first if first.exists() else picture
    shown = [f":img-top: {where}/{picture.name}"] if picture else []
    lines = [f"::::{{grid-item-card}} {title}", f":link: {where}/index", ":link-type: doc", *shown]
    return "\n".join([*lines, "", f"`{folder.name}`", "::::"])


class ReportCards(SphinxDirective):
    """`{report-cards}`: a section for each study that has reports."""

    def run(self) -> list[nodes.Node]:
        docs = Path(self.env.srcdir)
        self.env.note_reread()
        parts = []
        for study, folders in reports(docs).items():
            cards = "\n".join(card(folder, docs) for folder in folders)
            pages = [f"{folder.relative_to(docs).as_posix()}/index" for folder in folders]
            if (docs / "reports" / study / "index.md").exists():
                pages.insert(0, f"reports/{study}/index")
            entries = "\n".join(pages)
            parts.append(
                f"## Study {study}\n\n:::::{{grid}} 1 2 3 3\n:gutter: 3\n\n{cards}\n:::::\n\n"
                f"```{{toctree}}\n:hidden:\n:caption: Study {study}\n\n{entries}\n```"
            )
        text = "\n\n".join(parts) or _NONE
        return self.parse_text_to_nodes(text, allow_section_headings=True)


def _keep_links(app: Sphinx, doctree: nodes.document) -> None:
    """A report's files stay beside its page, under their own names."""
    if app.env.docname.startswith("reports/"):
        for node in list(doctree.findall(addnodes.download_reference)):
            link = nodes.reference("", "", *node.children, refuri=node["reftarget"])
            node.replace_self(link)


def _copy_files(app: Sphinx, exception: Exception | None) -> None:
    if exception is None and app.builder.format == "html":
        for source in Path(app.srcdir, "reports").rglob("*"):
            if source.is_file() and source.suffix != ".md":
                target = Path(app.outdir, "reports", source.relative_to(app.srcdir / "reports"))
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(source, target)


def setup(app: Sphinx) -> dict[str, bool]:
    app.add_directive("report-cards", ReportCards)
    app.connect("doctree-read", _keep_links, priority=100)
    app.connect("build-finished", _copy_files)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
