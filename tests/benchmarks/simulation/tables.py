"""Cells as CSV files and as the tables of the page."""

import csv
import io
import math
import re
from collections.abc import Callable

from simulation.cells import Cell

HEADER = ("world", "size", "method", "rate", "monte_carlo_error", "below", "above", "replicates")


def csv_text(cells: list[Cell], part: str) -> str:
    """All cells of a part, one a row; `below` and `above` are the two ways of missing the truth."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(HEADER)
    for c in cells:
        if c.part == part:
            sides = ["" if math.isnan(x) else f"{x:.4f}" for x in (c.below, c.above)]
            writer.writerow(
                [c.world, c.size, c.method, f"{c.rate:.4f}", f"{c.error:.4f}", *sides, c.n]
            )
    return buffer.getvalue()


def tables(cells: list[Cell]) -> dict[str, str]:
    """Tables of the page in Markdown, by the name in their markers."""
    laws = ("gamma", "lognormal")
    found = {
        f"text {law} {lengths}": table(
            [c for c in cells if c.part == "text" and c.world == f"{law}, {lengths}"],
            row=lambda c: c.method, column=lambda c: c.size, head="interval",
        )
        for law in laws for lengths in ("equal", "ragged")
    }  # fmt: skip
    runs = [c for c in cells if c.part == "runs"]
    within = [c for c in runs if c.method == "within an arm"]
    found["runs within"] = table(
        within, row=lambda c: c.world, column=lambda c: c.size, head="world"
    )
    for target in ("between", "delta"):
        own = [c for c in runs if c.method.startswith(target)]
        found[f"runs {target}"] = table(
            own, head="world, degrees of freedom", column=lambda c: c.size,
            row=lambda c: f"{c.world}: {c.method.partition(', ')[2]}",
        )  # fmt: skip
    for part, head in (("kinds", "runs"), ("bands", "curve"), ("permutation", "null")):
        own = [c for c in cells if c.part == part]
        found[part] = table(own, row=lambda c: c.method, column=lambda c: c.size, head=head)
    means = [c for c in cells if c.part == "means"]
    found["means"] = table(
        means,
        row=lambda c: f"{c.world}: {c.method}",
        column=lambda c: c.size,
        head="world, interval",
    )
    tests = [c for c in cells if c.part == "tests"]
    for noise in dict.fromkeys(c.world.partition(",")[0] for c in tests):
        found[f"tests {noise}"] = table(
            [c for c in tests if c.world.startswith(noise)],
            row=lambda c: f"{c.size}: {c.method}",
            column=lambda c: c.world.rpartition(" ")[2], head="runs: test",
        )  # fmt: skip
    return found


def table(
    cells: list[Cell],
    *,
    row: Callable[[Cell], str],
    column: Callable[[Cell], str],
    head: str,
) -> str:
    """Rates in percent with their Monte Carlo errors, one row and column a label."""
    columns = list(dict.fromkeys(map(column, cells)))
    by_place = {(row(c), column(c)): c for c in cells}
    lines = [f"| {head} | {' | '.join(columns)} |", "|---|" + "--:|" * len(columns)]
    for name in dict.fromkeys(map(row, cells)):
        shown = [_shown(by_place.get((name, at))) for at in columns]
        lines.append(f"| {name} | {' | '.join(shown)} |")
    return "\n".join(lines)


def _shown(cell: Cell | None) -> str:
    return "" if cell is None else f"{100 * cell.rate:.1f} ± {100 * cell.error:.1f}"


def refreshed(page: str, found: dict[str, str]) -> str:
    """The page with each table put between its markers; one without markers goes to the end."""
    for name, markdown in found.items():
        start, end = f"<!-- table: {name} -->", "<!-- end -->"
        block = f"{start}\n{markdown}\n{end}"
        pattern = re.escape(start) + r".*?" + re.escape(end)
        if re.search(pattern, page, flags=re.DOTALL):
            page = re.sub(pattern, lambda _, b=block: b, page, flags=re.DOTALL)
        else:
            page = f"{page.rstrip()}\n\n{block}\n".lstrip()
    return page
