"""A report as a MyST Markdown page, which also reads well as plain Markdown.

References
----------
.. [1] MyST Markdown, https://myst-parser.readthedocs.io.
"""

import re
from collections.abc import Mapping
from typing import Any

from analyses.reporting.origin import Origin
from analyses.reporting.report import Drawing, Report, Table
from analyses.reporting.text import escape, printable

_FILES = (
    "Files: [results.json](results.json) holds every number, with intervals and draws; arrays of "
    "more than 100,000 elements stand in `draws.npz`, and it says which. "
    "[provenance.json](provenance.json) holds the hashes of all that the report was made from."
)


def page(report: Report, made_from: Origin, made: Mapping[str, Any]) -> str:
    """The page; everything that comes from data is escaped.

    Parameters
    ----------
    made : `created` and `run_time_s` of the report.
    """
    parts = [
        f"# {escape(report.definition.question)}",
        f"`{report.analysis}` of study **{escape(report.study)}**",
        escape(report.finding),
        f"**Open [{report.opens}]({report.opens})** in a browser." if report.opens else "",
        *(_drawing(drawing) for drawing in report.drawings),
        "## How to read it",
        escape(report.reading),
        "## Numbers",
        *(_table(table) for table in report.tables),
        "## What it does not say",
        "\n".join(f"* {escape(caveat)}" for caveat in report.caveats),
        "## Definition",
        *map(_paragraph, report.definition.body),
        "\n".join(_references(report.definition.references)),
        "## How to make it again",
        f"```bash\n{printable(report.command)}\n```",
        _FILES,
        _table(_provenance(report, made_from), align="---"),
        f"Made at {made['created']} in {made['run_time_s']} s.",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _drawing(drawing: Drawing) -> str:
    data = ", ".join(f"[{name}.csv]({name}.csv)" for name in drawing.data)
    return (
        f"![{escape(drawing.title)}]({drawing.name}.svg)\n\n"
        f"**{escape(drawing.title)}.** {escape(drawing.caption)} "
        f"([PNG]({drawing.name}.png), {data})"
    )


def _table(table: Table, *, align: str = "---:") -> str:
    lines = [
        "| " + " | ".join(escape(column) for column in table.columns) + " |",
        "|" + "|".join([" --- ", *[f" {align} "] * (len(table.columns) - 1)]) + "|",
        *("| " + " | ".join(escape(cell) for cell in row) + " |" for row in table.rows),
    ]
    return f"**{escape(table.title)}**\n\n" + "\n".join(lines)


def _provenance(report: Report, made_from: Origin) -> Table:
    rows = tuple((k, str(v)) for k, v in {**report.provenance, **made_from.rows()}.items())
    return Table("Where the numbers come from", ("", "value"), rows)


def _paragraph(text: str) -> str:
    """A paragraph of a docstring: indented lines are shown as they stand."""
    if all(line.startswith("    ") for line in text.splitlines()):
        return "```text\n" + "\n".join(line[4:] for line in text.splitlines()) + "\n```"
    return re.sub(r"&#91;(\d+)&#93;&#95;", r"[\1]", escape(text)).replace("``", "`")


def _references(references: tuple[str, ...]) -> list[str]:
    return [f"{i}. {_linked(escape(text))}" for i, text in enumerate(references, 1)]


def _linked(text: str) -> str:
    text = re.sub(r"https://\S+[^\s.,;)]", r"[\g<0>](\g<0>)", text)
    text = re.sub(r"arXiv:(\d{4}\.\d{4,5})", r"[arXiv:\1](https://arxiv.org/abs/\1)", text)
    return re.sub(r"doi:(10\.\S+[^\s.,;)])", r"[doi:\1](https://doi.org/\1)", text)
