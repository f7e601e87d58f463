"""A report as rich renders it in a terminal."""

from rich.box import SIMPLE_HEAD
from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.table import Table as RichTable
from rich.text import Text

from analyses.reporting.report import Report, Table
from analyses.reporting.text import printable


def renderable(report: Report) -> Group:
    """Question, tables, caveats, and last, where it is seen, the finding.

    Text of the data is shown, never read as markup.
    """
    caveats = RichTable.grid(padding=(0, 1))
    for caveat in report.caveats:
        caveats.add_row("·", Text(printable(caveat)), style="dim")
    parts: list[RenderableType] = [Text(report.definition.question, style="bold"), ""]
    parts += [_table(table) for table in report.tables]
    finding = Panel(Text(printable(report.finding)), title="finding", title_align="left")
    return Group(*parts, caveats, finding)


def _table(table: Table) -> RichTable:
    title = Text(printable(table.title), style="bold")
    shown = RichTable(
        title=title,
        title_justify="left",
        box=SIMPLE_HEAD,
        pad_edge=False,
        padding=(0, 1),
        collapse_padding=True,
    )
    for i, column in enumerate(table.columns):
        shown.add_column(Text(printable(column)), justify="left" if i == 0 else "right")
    for row in table.rows:
        shown.add_row(*(Text(printable(cell)) for cell in row))
    return shown
