"""A report: one question asked of one study, its answer, and all that the answer rests on.

`write` fills a folder with `index.md` (a MyST page), each figure as SVG and PNG, the first also as
`thumbnail.png`, the data of each figure as CSV, `results.json` (every number, intervals included),
where draws are many, `draws.npz` with those, what else the report brings along, and
`provenance.json`. Made again from the same, all files have the same bytes, but for the date and the
run time, which stand in `made` of `provenance.json` and in the last line of the page.
"""

import inspect
import io
import json
import math
import re
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import xarray as xr

from analyses.reporting import figures, origin
from analyses.reporting.origin import Origin

if TYPE_CHECKING:
    from matplotlib.figure import Figure

THUMBNAIL = "thumbnail.png"
_LARGE = 100_000
_THUMBNAIL_PIXELS = 480, 360


@dataclass(frozen=True)
class Table:
    """Rows of text under column names; numbers are formatted already."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class Drawing:
    """A figure and what is drawn in it.

    Attributes
    ----------
    name : of its files.
    title, caption : what it shows.
    figure : the picture.
    data : the numbers in it, as one or more tables by file name.
    """

    name: str
    title: str
    caption: str
    figure: "Figure"
    data: Mapping[str, xr.Dataset]


class Definition(NamedTuple):
    """What a module docstring says of its analysis.

    Attributes
    ----------
    question : its first line.
    body : its paragraphs, without the command; an indented one is a formula.
    references : its numbered references, without their numbers.
    """

    question: str
    body: tuple[str, ...]
    references: tuple[str, ...]


@dataclass(frozen=True)
class Report:
    """An analysis of a study, ready to be shown, written or sent.

    Attributes
    ----------
    analysis, study : names; the report stands in `<study>/<analysis>/`.
    definition : question, mathematics and references, from the module docstring.
    finding : at most some 500 characters, with intervals and n; the first sentence answers the
        question with an interval, and stands alone on the index.
    tables, drawings : in the order of reading.
    reading : how to read the figures.
    caveats : what the numbers do not say.
    result : everything computed, draws included.
    command : the command that makes this report again.
    provenance : where the numbers come from, as name and value.
    opens : path in the folder of a page that the report is read beside, "" if there is none.
    files : path in the folder and content of what else it brings along, written one by one.
    """

    analysis: str
    study: str
    definition: Definition
    finding: str
    tables: tuple[Table, ...]
    drawings: tuple[Drawing, ...]
    reading: str
    caveats: tuple[str, ...]
    result: xr.Dataset
    command: str
    provenance: Mapping[str, Any]
    opens: str = ""
    files: Iterable[tuple[str, bytes]] = ()


def definition_of(docstring: str) -> Definition:
    """Question, paragraphs and references of a module docstring in numpydoc form."""
    text = inspect.cleandoc(docstring)
    text, _, listed = text.partition("\nReferences\n----------\n")
    question, *body = re.split(r"\n\s*\n", text.strip())
    references = re.split(r"^\.\. \[\d+\] ", listed, flags=re.MULTILINE)[1:]
    return Definition(
        " ".join(question.split()),
        tuple(part.rstrip() for part in body if not part.lstrip().startswith("python -m ")),
        tuple(" ".join(reference.split()) for reference in references),
    )


def write(report: Report, folder: Path, made_from: Origin, *, began: float) -> Path:
    """Write the report into `folder` and return the path of its page.

    What an earlier report wrote there and this one does not is removed; other files stay.

    Parameters
    ----------
    began : when the analysis began, by `time.perf_counter`.

    Raises
    ------
    OSError
        If the folder cannot be made or written to.
    """
    from analyses.reporting.page import page

    folder.mkdir(parents=True, exist_ok=True)
    earlier, written = origin.files_of(folder), set()
    replace_file(folder / origin.FILE, origin.unfinished(earlier))
    for name, content in _contents(report):
        replace_file(folder / name, content)
        written.add(name)
    made = {
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "run_time_s": round(time.perf_counter() - began, 1),
    }
    index = folder / "index.md"
    replace_file(index, page(report, made_from, made))
    for name in set(earlier) - {*written, index.name}:
        _remove(folder, name)
    replace_file(folder / origin.FILE, made_from.as_json([*written, index.name], made))
    return index


def _contents(report: Report) -> Iterator[tuple[str, str | bytes]]:
    """Path in the folder and content of each file of a report, but its page and origin."""
    for drawing in report.drawings:
        for suffix in ("svg", "png"):
            yield f"{drawing.name}.{suffix}", figures.rendered(drawing.figure, suffix=suffix)
        for name, data in drawing.data.items():
            yield f"{name}.csv", as_csv(data)
    for first in report.drawings[:1]:
        yield THUMBNAIL, figures.rendered(first.figure, suffix="png", within=_THUMBNAIL_PIXELS)
    yield "results.json", as_json(report)
    if large := large_variables(report.result):
        arrays: dict[str, Any] = {name: report.result[name].values for name in large}
        draws = io.BytesIO()
        np.savez_compressed(draws, **arrays)
        yield "draws.npz", draws.getvalue()
    yield from report.files


def as_csv(data: xr.Dataset) -> str:
    """One row for each combination of the dimensions, one column a variable; missing is empty.

    The ends of an interval are two columns, `x_lower` and `x_upper`.
    """
    columns = {}
    for name, variable in data.data_vars.items():
        if "ci_bound" in variable.dims:
            for bound in ("lower", "upper"):
                columns[f"{name}_{bound}"] = variable.sel(ci_bound=bound, drop=True)
        else:
            columns[str(name)] = variable
    return xr.Dataset(columns).to_dataframe().reset_index().to_csv(index=False, lineterminator="\n")


def as_json(report: Report) -> str:
    """The result as strict JSON, in the layout of `xarray.Dataset.from_dict`; missing is null.

    Numbers carry eight significant digits. Variables of more than 100,000 elements (draws of a
    large study) are named, with their dimensions, under `draws`, and stand in `draws.npz`.
    """
    large = large_variables(report.result)
    result = report.result.drop_vars(large)
    document = {
        "analysis": report.analysis,
        "study": report.study,
        "question": report.definition.question,
        "finding": report.finding,
        "command": report.command,
        "provenance": {key: _plain(value) for key, value in report.provenance.items()},
        "draws": {name: list(report.result[name].dims) for name in large},
        "attrs": {key: _plain(value) for key, value in result.attrs.items()},
        "dims": dict(result.sizes),
        "coords": {str(name): _variable(result[name]) for name in result.coords},
        "data_vars": {str(name): _variable(result[name]) for name in result.data_vars},
    }
    return json.dumps(document, ensure_ascii=False, allow_nan=False, separators=(",", ":")) + "\n"


def large_variables(result: xr.Dataset) -> list[str]:
    """Names of the variables that are too large for JSON."""
    return [str(name) for name in result.variables if result[name].size > _LARGE]


def _variable(variable: xr.DataArray) -> dict[str, Any]:
    return {
        "dims": list(variable.dims),
        "attrs": {key: _plain(value) for key, value in variable.attrs.items()},
        "data": _plain(variable.values),
    }


def _plain(value: Any) -> Any:
    """A value of numpy, or of an attribute, as JSON knows it."""
    if isinstance(value, np.ndarray):
        return _plain(value.tolist())
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, np.generic):
        return _plain(value.item())
    if isinstance(value, float):
        return float(f"{value:.8g}") if math.isfinite(value) else None
    return value if isinstance(value, str | int | bool | None) else str(value)


def replace_file(path: Path, content: str | bytes) -> None:
    """Write a file as a whole: who reads it meanwhile sees the old one."""
    path.parent.mkdir(exist_ok=True)
    partial = path.with_name(f"{path.name}.partial")
    partial.write_bytes(content.encode() if isinstance(content, str) else content)
    partial.replace(path)


def _remove(folder: Path, name: str) -> None:
    """Remove a file of a report, and the folder it leaves empty."""
    path = folder / name
    # the list of files may come from someone else
    if not path.resolve().is_relative_to(folder.resolve()):
        return
    path.unlink(missing_ok=True)
    if path.parent != folder and path.parent.is_dir() and not any(path.parent.iterdir()):
        path.parent.rmdir()
