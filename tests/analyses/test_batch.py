"""`python -m analyses STUDY`, with few analyses so that it is quick; each is a process."""

import contextlib
import json
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

import analyses.__main__ as everything
from analyses import routing_locality, token_explorer
from analyses.reporting import cli
from analyses.reporting.code import ROOT
from analyses.reporting.text import escape
from store.run import Run

ANSWERED = ("routing_locality", "token_explorer")
LACKING = "expert_coactivation"
HOSTILE = "<script>alert(1)</script> | x"


@pytest.fixture(scope="module")
def few() -> Iterator[None]:
    """Only these analyses are there."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(everything, "names", lambda: sorted([*ANSWERED, LACKING]))
        yield


@pytest.fixture(scope="module")
def batch(
    few: None, write_study: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> SimpleNamespace:
    """A study, the arguments of the command, and the folder of its reports, made by one call."""
    folder = tmp_path_factory.mktemp("batch")
    names = {"dense-seed0": "dense", "dense-seed1": "dense", "switch-seed0": "switch"}
    study = write_study(folder / "mine", names, verse=HOSTILE)
    reports = folder / "reports"
    arguments = [str(study), "--report", str(reports), "--seed", "3"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONHASHSEED", "1")
        status = everything.main([*arguments, "--jobs", "2"])
    return SimpleNamespace(study=study, arguments=arguments, reports=reports, status=status)


def made(folder: Path) -> dict[str, object]:
    return json.loads((folder / "provenance.json").read_text("utf-8"))["made"]


def test_one_command_writes_every_report_and_an_index_with_their_findings(
    batch: SimpleNamespace,
) -> None:
    assert batch.status == 0
    index = (batch.reports / "index.md").read_text("utf-8")
    for name in ANSWERED:
        results = json.loads((batch.reports / name / "results.json").read_text("utf-8"))
        assert f"### [{results['question']}]({name}/index.md)" in index
        assert escape(results["finding"]) in index
    assert (batch.reports / "routing_locality/thumbnail.png").is_file()
    assert "[![](routing_locality/thumbnail.png)](routing_locality/index.md)" in index
    assert f"* `{LACKING}`: each token chooses one expert" in index
    assert "2 questions answered, 1 not." in index
    assert "Stale" not in index
    assert "<script>" not in index
    assert not (batch.reports / LACKING).exists()


def test_same_inputs_give_the_same_bytes_in_whatever_process(
    batch: SimpleNamespace, tmp_path: Path, capsys
) -> None:
    arguments = [a.replace(str(batch.reports), str(tmp_path)) for a in batch.arguments]
    for analysis in (token_explorer, routing_locality):  # in this process, in another order
        assert analysis.main(arguments) == 0
    for name in ANSWERED:
        files = [path for path in sorted((tmp_path / name).rglob("*")) if path.is_file()]
        others = [path for path in (batch.reports / name).rglob("*") if path.is_file()]
        assert len(files) == len(others) > 3
        for file in files:
            other = batch.reports / file.relative_to(tmp_path)
            one, two = file.read_bytes(), other.read_bytes()
            if file.suffix in (".md", ".json"):
                one = one.replace(str(tmp_path).encode(), str(batch.reports).encode())
            if file.name == "index.md":
                one, two = (re.sub(rb"\nMade at .*\n$", b"", page) for page in (one, two))
            if file.name == "provenance.json":
                one, two = (re.sub(rb'"made": \{[^}]*\}', b"", page) for page in (one, two))
            assert one == two, file


def test_what_is_up_to_date_is_kept_and_what_is_stale_is_marked_and_made_again(
    batch: SimpleNamespace, tmp_path: Path, capsys
) -> None:
    study, reports = tmp_path / "mine", tmp_path / "reports"
    shutil.copytree(batch.study, study)
    shutil.copytree(batch.reports, reports)
    arguments = [str(study), "--report", str(reports), "--seed", "3"]
    before = [made(reports / name) for name in ANSWERED]

    assert everything.main([*arguments, "--check"]) == 0
    assert everything.main(arguments) == 0  # of a copy elsewhere, with the same content
    assert [made(reports / name) for name in ANSWERED] == before
    shown = capsys.readouterr()
    assert shown.out.count("up to date") == 2 + 2
    assert shown.out.count("not recorded for it") == 1
    assert shown.err == ""

    run = Run.open(study / "dense-seed1.zarr")
    run.write(4, {"losses": run.dataset("losses").isel(step=0)[["loss"]].drop_vars("step")})
    assert everything.main([*arguments, "--check"]) == 1
    assert "contents of the store: dense-seed1" in capsys.readouterr().out
    page = (reports / "token_explorer/index.md").read_text("utf-8")
    assert ":::{admonition} This report is stale" in page
    assert "**Stale**" in (reports / "index.md").read_text("utf-8")
    assert [made(reports / name) for name in ANSWERED] == before

    assert everything.main(arguments) == 0
    assert all(made(reports / name) != at for name, at in zip(ANSWERED, before, strict=True))
    assert "This report is stale" not in (reports / "token_explorer/index.md").read_text("utf-8")

    shutil.rmtree(study)
    assert everything.main([*arguments, "--check"]) == 0
    assert "the study is not on this machine" in capsys.readouterr().out


def test_one_failure_stops_no_other_and_is_the_exit_status(
    few: None, batch: SimpleNamespace, tmp_path: Path, capsys
) -> None:
    (tmp_path / "token_explorer").write_text("in the way")
    shutil.copytree(batch.reports / "routing_locality", tmp_path / "routing_locality")
    arguments = [str(batch.study), "--report", str(tmp_path), "--seed", "3", "--jobs", "2"]
    assert everything.main(arguments) == 2
    shown = capsys.readouterr()
    assert "token_explorer: failed" in shown.err
    assert "failed" in shown.out
    assert "* `token_explorer`: failed: " in (tmp_path / "index.md").read_text("utf-8")


def test_study_recorded_for_nothing_is_unanswerable(
    study_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    monkeypatch.setattr(everything, "names", lambda: ["r2_over_time"])
    run = str(study_folder / "dense-seed0.zarr")
    assert everything.main([run, "--report", str(tmp_path)]) == cli.UNANSWERABLE
    assert "at least 2" in capsys.readouterr().err


def test_missing_study_is_one_line(tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    for argv in (["nowhere"], ["nowhere", "--check"]):
        assert everything.main(argv) == 2
        error = capsys.readouterr().err
        assert error.startswith("analyses: ")
        assert error.count("\n") == 1


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="asks /proc for what is left")
@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
def test_interrupt_leaves_no_process_behind(
    sent: signal.Signals, study_folder: Path, tmp_path: Path
) -> None:
    command = subprocess.Popen(
        [sys.executable, "-m", "analyses", str(study_folder), "--report", str(tmp_path)],
        cwd=ROOT,
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
    )
    assert command.stderr is not None
    # the first that ended: others run
    assert "cka_over_time" in command.stderr.readline()
    command.send_signal(sent)
    _, errors = command.communicate(timeout=30)
    assert command.returncode == 130
    assert "interrupted" in errors
    assert "Traceback" not in errors
    # what an analysis had started itself, as git, ends when it is done
    deadline = time.monotonic() + 20
    while _is_left(command.pid):
        assert time.monotonic() < deadline
        time.sleep(0.1)


def _is_left(group: int) -> bool:
    """Whether a process of the group is alive: not one that ended and nobody has asked for."""
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            state, _, of_group, *_ = path.read_text().rpartition(")")[2].split()
            if int(of_group) == group and state != "Z":
                return True
    return False
