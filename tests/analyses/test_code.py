from pathlib import Path

from analyses.reporting.code import ROOT, code_hashes


def hashes(name: str) -> dict[str, str]:
    return code_hashes(ROOT / "analyses" / f"{name}.py")


def test_code_of_an_analysis_is_what_it_imports_directly_or_not() -> None:
    found = hashes("r2_over_time")
    assert {
        "analyses/__init__.py",
        "analyses/r2_over_time.py",
        "analyses/statistics/correlation.py",
        "analyses/reporting/pairs.py",
        "store/schema.py",
    } <= set(found)
    assert "analyses/reporting/cka_figures.py" not in found
    assert "analyses/significance.py" not in found
    assert not any(name.startswith(("models/", "probes/")) for name in found)


def test_an_import_inside_a_function_counts() -> None:
    # cli.run imports it when the report has been written
    assert "analyses/reporting/terminal.py" in hashes("r2_over_time")


def test_page_of_the_explorer_counts_for_the_explorer_alone() -> None:
    page = "analyses/reporting/explorer/drawing.js"
    assert page in hashes("token_explorer")
    assert page not in hashes("r2_over_time")


def test_hash_changes_with_the_file_and_is_that_of_its_bytes(tmp_path: Path) -> None:
    source = tmp_path / "mine.py"
    source.write_text("import analyses.statistics.correlation as c\nimport numpy\n")
    before = code_hashes(source)
    source.write_text("import analyses.statistics.correlation as c\nimport numpy  #\n")
    after = code_hashes(source)
    assert before.pop("mine.py") != after.pop("mine.py")
    assert before == after
    assert "analyses/statistics/correlation.py" in before
