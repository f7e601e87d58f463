"""Reports that were made are part of the site: an index of each study, their pages and files.

Before the site is built they are held against code and stores, and those that are stale are marked,
as `python -m analyses STUDY --check` does.
"""

import shutil
from pathlib import Path

from docutils import nodes
from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

from analyses.reporting.index_page import cards
from analyses.reporting.study_reports import folders, refresh

_NONE = """\
:::{note}
There are none in this build. `make study` trains the `quick` study and writes its reports;
`python -m analyses studies/NAME` writes those of another. `make docs` then shows them here.
:::
"""


def studies(docs: Path) -> list[Path]:
    """Folders of the studies that have reports."""
    found = sorted(path for path in docs.glob("reports/*") if path.is_dir())
    return [path for path in found if folders(path)]


class ReportCards(SphinxDirective):
    """`{report-cards}`: a section for each study that has reports."""

    def run(self) -> list[nodes.Node]:
        docs = Path(self.env.srcdir)
        self.env.note_reread()
        parts, pages = [], []
        for study in studies(docs):
            index, folder = study / "index.md", study.relative_to(docs).as_posix()
            shown = cards(index.read_text(encoding="utf-8"), folder=folder)
            parts.append(f"## [Study {study.name}]({folder}/index.md)\n\n{shown}")
            pages.append(f"{folder}/index")
        if pages:
            parts.append("\n".join(["```{toctree}", ":hidden:", "", *pages, "```"]))
        text = "\n\n".join(parts) or _NONE
        return self.parse_text_to_nodes(text, allow_section_headings=True)


def _check(app: Sphinx) -> None:
    docs = Path(app.srcdir)
    for study in studies(docs):
        refresh(study, base=docs.parent)


def _list_pages(app: Sphinx, docname: str, source: list[str]) -> None:
    """The reports of a study stand below its index."""
    parts = docname.split("/")
    if len(parts) == 3 and parts[0] == "reports":
        pages = [f"{folder.name}/index" for folder in folders(Path(app.srcdir, *parts[:2]))]
        source[0] += "\n".join(["\n```{toctree}", ":hidden:", "", *pages, "```\n"])


def _show_cards(app: Sphinx, doctree: nodes.document) -> None:
    """A table of pictures is a table of cards."""
    if app.env.docname.startswith("reports"):
        for table in doctree.findall(nodes.table):
            if next(iter(table.findall(nodes.image)), None) is not None:
                table["classes"].append("report-cards")


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
    app.add_css_file("reports.css")
    app.connect("builder-inited", _check)
    app.connect("source-read", _list_pages)
    app.connect("doctree-read", _show_cards)
    app.connect("doctree-read", _keep_links, priority=100)
    app.connect("build-finished", _copy_files)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
