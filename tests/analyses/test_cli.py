import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

import analyses.__main__ as everything
from analyses import expert_specialization, r2_over_time
from analyses.reporting import cli
from analyses.reporting.arguments import report_root

ROOT = Path(__file__).parents[2]
NAMES = tuple(sorted(path.stem for path in ROOT.glob("analyses/[a-z]*.py")))


def _run(code: str) -> tuple[str, float]:
    """Output of a fresh interpreter, and the processor seconds it took."""
    before = os.times()
    done = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True, cwd=ROOT
    )
    after = os.times()
    user, system = (
        getattr(after, k) - getattr(before, k) for k in ("children_user", "children_system")
    )
    return done.stdout, user + system


@pytest.mark.parametrize("name", NAMES)
def test_help_teaches_and_starts_without_torch_in_two_seconds(name: str) -> None:
    code = (
        f"import sys; from analyses import {name} as analysis\n"
        "try: analysis.main(['--help'])\n"
        "except SystemExit: pass\n"
        "print('loaded', sorted({'torch', 'transformer_lens', 'matplotlib', 'scipy', 'sklearn'}"
        " & set(sys.modules)))"
    )
    output, seconds = _run(code)
    assert "loaded []" in output
    assert seconds < 2.0
    assert everything.question(name) in output
    assert f"python -m analyses.{name} studies/" in output
    assert "References" in output


def test_analyses_are_found_by_their_files(capsys) -> None:
    assert everything.names() == list(NAMES)
    assert everything.main([]) == 0
    listed = " ".join(capsys.readouterr().out.split())
    for name in NAMES:
        assert " ".join(everything.question(name).split()) in listed
        assert everything.question(name).endswith("?")


def test_all_analyses_run_on_a_study_but_those_it_was_not_recorded_for(
    reports: SimpleNamespace,
) -> None:
    lacking = {"cka_over_time", "expert_coactivation", "expert_representations", "linear_probe"}
    answered = [name for name in NAMES if name not in lacking]
    assert sorted(path.parent.name for path in reports.folder.glob("*/index.md")) == answered
    for name in answered:
        assert f"page: {reports.folder / name / 'index.md'}" in reports.output
    assert reports.statuses == {n: cli.UNANSWERABLE if n in lacking else 0 for n in NAMES}
    said = {line.split(":")[0] for line in reports.errors.splitlines() if "is ignored" not in line}
    assert said == lacking


def test_without_a_study_the_newest_is_taken_and_named(
    study_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "studies").mkdir()
    (tmp_path / "studies" / "mine").symlink_to(study_folder)
    assert r2_over_time.main([]) == 0
    assert f"taking the newest: {Path('studies/mine')}" in capsys.readouterr().err
    page = next(tmp_path.glob("docs/reports/*/r2_over_time/index.md"))
    assert "python -m analyses.r2_over_time studies/mine" in page.read_text(encoding="utf-8")


def test_without_any_study_the_command_that_makes_one_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    monkeypatch.chdir(tmp_path)
    assert r2_over_time.main([]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "python -m models.train quick" in error


@pytest.mark.parametrize("paths", [["nowhere"], ["nowhere/a.zarr", "nowhere/b.zarr"]])
def test_wrong_path_is_one_line_and_status_two(
    paths: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    monkeypatch.chdir(tmp_path)
    for module in (r2_over_time, expert_specialization):
        assert module.main(paths) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1
        assert "nowhere" in error


def test_folder_that_cannot_be_written_is_one_line(
    study_folder: Path, tmp_path: Path, capsys
) -> None:
    (tmp_path / "file").write_text("")
    assert r2_over_time.main([str(study_folder), "--report", str(tmp_path / "file")]) == 2
    assert capsys.readouterr().err.startswith("r2_over_time: ")


def test_one_run_is_refused(study_folder: Path, tmp_path: Path, capsys) -> None:
    run = str(study_folder / "dense-seed0.zarr")
    assert r2_over_time.main([run, "--report", str(tmp_path)]) == cli.UNANSWERABLE
    assert "at least 2" in capsys.readouterr().err


def test_ignored_options_are_said_to_be_ignored(study_folder: Path, tmp_path: Path, capsys) -> None:
    arguments = [str(study_folder), "--report", str(tmp_path), "--n-resamples", "9"]
    assert expert_specialization.main([*arguments, "--match", "loss"]) == 0
    errors = capsys.readouterr().err
    assert "expert_specialization: --match is ignored" in errors
    assert "--n-resamples is" not in errors
    page = (tmp_path / "expert_specialization/index.md").read_text(encoding="utf-8")
    assert "--n-resamples 9" in page
    assert "--match" not in page


def test_unit_and_dask_reach_the_analysis(study_folder: Path, tmp_path: Path, capsys) -> None:
    arguments = [str(study_folder), "--report", str(tmp_path), "--unit", "document"]
    assert r2_over_time.main(arguments) == 0
    page = (tmp_path / "r2_over_time/index.md").read_text(encoding="utf-8")
    assert "over documents" in page
    assert r2_over_time.main([*arguments, "--dask", "nowhere"]) == 2
    assert "no dask scheduler answers at 'nowhere'" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["../elsewhere", "a/b", "", ".hidden", "a + b"])
def test_study_whose_name_is_no_folder_needs_a_report_folder(name: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="--report DIR"):
        report_root(None, study=name)
    assert report_root(tmp_path, study=name) == tmp_path


def test_tracked_items_come_through_unchanged() -> None:
    assert list(cli.track(range(3), description="steps")) == [0, 1, 2]
