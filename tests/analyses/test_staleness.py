from pathlib import Path

import pytest
from markdown_it import MarkdownIt

from analyses.reporting.code import ROOT, code_hashes
from analyses.reporting.origin import Origin, changes
from analyses.reporting.staleness import Check, check, is_current, marked

CODE = code_hashes(ROOT / "analyses/r2_over_time.py")
RUNS = {name: {"sha256": name, "steps": 2} for name in ("a", "b")}
PAGE = "# Is it so?\n\n`x` of study **y**\n\nIt is.\n"
COMMAND = "python -m analyses.x studies/y"


def with_run(**state: object) -> dict:
    return RUNS | {"b": RUNS["b"] | state}


@pytest.mark.parametrize(
    ("runs", "code", "told"),
    [
        (RUNS, {"f": "0"}, ()),
        (None, {"f": "0"}, ()),
        (RUNS, {"f": "1"}, ("code: f",)),
        (RUNS, {}, ("code: f",)),
        (RUNS, {"f": "0", "g": "0"}, ("code: g",)),
        (with_run(sha256="c"), {"f": "0"}, ("contents of the store: b",)),
        (with_run(sha256="c", steps=5), {"f": "0"}, ("steps committed: b (2 then, 5 now)",)),
        (RUNS | {"c": RUNS["a"]}, {"f": "0"}, ("runs added: c",)),
        ({"a": RUNS["a"]}, {"f": "1"}, ("runs left out: b", "code: f")),
    ],
)
def test_what_changed_is_named(runs: dict, code: dict, told: tuple) -> None:
    assert changes(Origin(RUNS, {"f": "0"}, {}), runs=runs, code=code) == told


def test_many_changes_are_counted() -> None:
    code = {f"f{i}": "0" for i in range(9)}
    assert changes(Origin({}, code, {}), runs={}, code={}) == (
        "code: f0, f1, f2, f3, f4 and 4 more",
    )


def kept(folder: Path, made_from: Origin) -> Path:
    folder = folder / "r2_over_time"
    folder.mkdir()
    (folder / "index.md").write_text(PAGE)
    (folder / "provenance.json").write_text(made_from.as_json(["index.md"], {"created": ""}))
    return folder


def test_report_is_current_only_for_the_same_runs_options_and_files(tmp_path: Path) -> None:
    folder = kept(tmp_path, Origin(RUNS, CODE, {"--seed": 0}))
    options = {"--seed": 0, "--match": "step"}
    assert is_current(folder, RUNS, options)
    # an option that the report does not depend on
    assert is_current(folder, RUNS, options | {"--match": "loss"})
    assert not is_current(folder, RUNS, options | {"--seed": 1})
    assert not is_current(folder, with_run(sha256="c"), options)
    (folder / "index.md").unlink()
    assert not is_current(folder, RUNS, options)


@pytest.mark.parametrize("content", ["", "[]", '{"files": []}'])
def test_report_without_an_origin_is_stale(content: str, tmp_path: Path) -> None:
    folder = kept(tmp_path, Origin(RUNS, CODE, {}))
    (folder / "provenance.json").write_text(content)
    assert check(folder, RUNS).changes
    assert not is_current(folder, RUNS, {})


def test_mark_says_what_changed_and_how_to_make_it_again_and_goes() -> None:
    stale = marked(PAGE, Check(("runs added: <script>", "code: f"), True), COMMAND)
    title, rest = stale.split("\n\n", 1)
    assert title == "# Is it so?"
    assert rest.startswith(":::{admonition} This report is stale\n:class: warning\n")
    assert "<script>" not in MarkdownIt().render(stale)
    assert f"```bash\n{COMMAND}\n```" in stale
    assert stale.endswith("\n`x` of study **y**\n\nIt is.\n")
    other = marked(stale, Check(("code: g",), True), COMMAND)
    assert other.count("admonition") == 1
    assert "code: f" not in other
    assert marked(other, Check((), True), COMMAND) == PAGE


def test_study_that_is_elsewhere_is_a_note_and_no_warning() -> None:
    note = marked(PAGE, Check((), False), COMMAND)
    assert "warning" not in note
    assert "The study is not on this machine." in note
    assert marked(note, Check((), True), COMMAND) == PAGE
