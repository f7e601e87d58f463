import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from markdown_it import MarkdownIt

from analyses.reporting import figures
from analyses.reporting.cohort import runs_sentence
from analyses.reporting.origin import Origin
from analyses.reporting.page import page
from analyses.reporting.report import Drawing, Report, Table, as_csv, as_json, definition_of, write

DOCSTRING = """Is it so?

It is, if x_i > 0 [1]_,

    y = x_i * 2

and not otherwise.

    python -m analyses.example studies/quick

References
----------
.. [1] Someone (2020), arXiv:2001.00001 (a
   source).
.. [2] Someone else (2021), doi:10.1000/xyz.
"""
HOSTILE = "<script>alert('|')</script> `x` $y$"
ORIGIN = Origin(
    runs={HOSTILE: {"sha256": "0123456789abcdef", "steps": 3}},
    code={"analyses/example.py": "fedcba9876543210"},
    options={"--seed": 0},
)
MADE = {"created": "2024-01-01T00:00:00+00:00", "run_time_s": 1.5}


@pytest.fixture
def report() -> Report:
    result = xr.Dataset(
        {
            "r2": (("run", "step"), [[0.5, np.nan], [1 / 3, np.inf]], {"units": "1"}),
            "r2_ci": (("run", "step", "ci_bound"), np.arange(8.0).reshape(2, 2, 2)),
            "draws": ("resample", np.zeros(100_001)),
        },
        {"run": ["a", HOSTILE], "step": [0, 4], "ci_bound": ["lower", "upper"]},
        {"level": np.float64(0.95)},
    )
    with figures.style():
        figure = figures.new_figure(width=2, height=2)
        figure.subplots().plot([0, 1])
    return Report(
        analysis="example",
        study="small",
        definition=definition_of(DOCSTRING),
        finding=f"It is for {HOSTILE}.",
        tables=(Table("Values", ("run", "value"), ((HOSTILE, "1"), ("a", "2"))),),
        drawings=(
            Drawing("curve", "A curve", HOSTILE, figure, {"curve": result[["r2", "r2_ci"]]}),
        ),
        reading="Higher is more.",
        caveats=("Mind " + HOSTILE,),
        result=result,
        command="python -m analyses.example small",
        provenance={"probe set": np.int64(3), "runs": HOSTILE},
    )


def test_docstring_gives_question_formula_and_references() -> None:
    definition = definition_of(DOCSTRING)
    assert definition.question == "Is it so?"
    assert definition.body == ("It is, if x_i > 0 [1]_,", "    y = x_i * 2", "and not otherwise.")
    assert definition.references == (
        "Someone (2020), arXiv:2001.00001 (a source).",
        "Someone else (2021), doi:10.1000/xyz.",
    )


def test_names_from_the_data_act_as_text_only(report: Report) -> None:
    text = page(report, ORIGIN, MADE)
    assert "<script>" not in text
    html = MarkdownIt("commonmark").enable("table").render(text)
    assert "<script>" not in html
    assert "&lt;script&gt;alert('|')&lt;/script&gt; `x` $y$" in html
    row = next(line for line in text.splitlines() if line.endswith("| 1 |"))
    assert row.count("|") == 3


def test_page_has_every_part(report: Report) -> None:
    text = page(report, ORIGIN, MADE)
    for part in (
        "# Is it so?",
        "![A curve](curve.svg)",
        "[curve.csv](curve.csv)",
        "```text\ny = x_i * 2\n```",
        "It is, if x_i &#62; 0 [1],",
        "[arXiv:2001.00001](https://arxiv.org/abs/2001.00001)",
        "[doi:10.1000/xyz](https://doi.org/10.1000/xyz).",
        "```bash\npython -m analyses.example small\n```",
        "Higher is more.",
        "(3 steps, 0123456789ab)",
        "1 files, ",
        "[provenance.json](provenance.json)",
        "Made at 2024-01-01T00:00:00+00:00 in 1.5 s.",
    ):
        assert part in text


def test_json_is_strict_and_holds_the_result(report: Report) -> None:
    document = json.loads(as_json(report), parse_constant=pytest.fail)
    assert document["draws"] == {"draws": ["resample"]}
    assert document["attrs"] == {"level": 0.95}
    assert document["data_vars"]["r2"]["data"] == [[0.5, None], [pytest.approx(1 / 3), None]]
    back = xr.Dataset.from_dict(document)
    np.testing.assert_array_equal(back["r2_ci"], report.result["r2_ci"])
    assert back["run"].values.tolist() == ["a", HOSTILE]


def test_csv_has_a_row_for_each_point_and_two_columns_for_an_interval(report: Report) -> None:
    lines = as_csv(report.result[["r2", "r2_ci"]].isel(run=[0])).splitlines()
    assert lines == ["run,step,r2,r2_ci_lower,r2_ci_upper", "a,0,0.5,0.0,1.0", "a,4,,2.0,3.0"]


def written(report: Report, folder: Path) -> dict[str, bytes]:
    """Content of all files in a folder after a report was written there."""
    write(report, folder, ORIGIN, began=0.0)
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def test_same_report_writes_the_same_files_but_for_when_it_was_made(
    report: Report, tmp_path: Path
) -> None:
    first, second = (written(report, tmp_path / name) for name in ("one", "two"))
    assert list(first) == [
        "curve.csv", "curve.png", "curve.svg", "draws.npz", "index.md", "provenance.json",
        "results.json", "thumbnail.png",
    ]  # fmt: skip
    made = []
    for files in (first, second):
        provenance = json.loads(files.pop("provenance.json"))
        made.append(provenance.pop("made"))
        files["provenance"] = json.dumps(provenance).encode()
        page, _, last = files["index.md"].rstrip().rpartition(b"\n")
        assert last == f"Made at {made[-1]['created']} in {made[-1]['run_time_s']} s.".encode()
        files["index.md"] = page
    assert first == second
    assert set(made[0]) == {"created", "run_time_s"}
    with np.load(tmp_path / "one/draws.npz") as draws:
        np.testing.assert_array_equal(draws["draws"], report.result["draws"])


def test_files_that_a_report_no_longer_brings_are_removed_and_no_others(
    report: Report, tmp_path: Path
) -> None:
    folder = tmp_path / "report"
    brings = replace(report, files=[("documents/0.js", b"0"), ("page.html", b"1")])
    assert {"documents/0.js", "page.html", "curve.png"} <= set(written(brings, folder))
    (folder / "notes.txt").write_text("mine")
    (tmp_path / "outside.txt").write_text("mine")
    kept = json.loads((folder / "provenance.json").read_text("utf-8"))
    kept["files"] += ["../outside.txt", "never-written.csv"]
    (folder / "provenance.json").write_text(json.dumps(kept), "utf-8")
    left = written(replace(report, drawings=(), files=[("page.html", b"2")]), folder)
    assert sorted(left) == [
        "draws.npz", "index.md", "notes.txt", "page.html", "provenance.json", "results.json",
    ]  # fmt: skip
    assert not (folder / "documents").exists()
    assert left["page.html"] == b"2"
    assert (tmp_path / "outside.txt").exists()


def test_a_report_that_was_interrupted_has_no_origin_and_is_cleaned_by_the_next(
    report: Report, tmp_path: Path
) -> None:
    def breaks() -> Iterator[tuple[str, bytes]]:
        yield "one.txt", b""
        raise KeyboardInterrupt

    written(replace(report, files=[("extra.txt", b"")]), tmp_path)
    assert Origin.read(tmp_path) == ORIGIN
    with pytest.raises(KeyboardInterrupt):
        write(replace(report, files=breaks()), tmp_path, ORIGIN, began=0.0)
    assert Origin.read(tmp_path) is None
    assert "extra.txt" not in written(report, tmp_path)


def test_a_thumbnail_is_small(report: Report, tmp_path: Path) -> None:
    from matplotlib.image import imread

    written(report, tmp_path)
    height, width = imread(tmp_path / "thumbnail.png").shape[:2]
    assert (width, height) == (360, 360)


def test_line_breaks_in_a_command_cannot_end_its_block(report: Report) -> None:
    text = page(replace(report, command="python -m x 'a\n```\n<script>'"), ORIGIN, MADE)
    assert "\n```\n<script>" not in text


def test_few_seeds_forbid_claims_about_arms() -> None:
    assert "allow no claim" in runs_sentence(["dense", "dense", "dense", "switch", "switch"])
    assert runs_sentence(["hash"] * 3) == "Runs: 3 of hash."
