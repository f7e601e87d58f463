import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

from store.__main__ import main
from store.contents import Contents, contents
from store.run import Run
from store.study import Study


def train(run: Run, stream: int, n_steps: int = 8) -> None:
    steps = np.arange(1, n_steps + 1)
    hashes = np.cumsum(steps * stream).astype("uint64")
    recorded = {"stream_hash": ("step", hashes), "tokens_seen": ("step", 64 * steps)}
    run.write_training(xr.Dataset(recorded, {"step": steps}))


def told(study: Contents, *, needs_action: bool) -> dict[str, str]:
    return {p.where: p.what for p in study.problems if p.needs_action == needs_action}


def test_contents_are_those_of_the_runs(make_run, observe) -> None:
    run = make_run("moe-2", seed=2, groups=("losses", "routing"), committed=(0, 1, 2))
    train(run, 1, 2)
    study = contents(run.path.parent)
    (there,) = study.runs
    assert (study.name, there.name, there.coordinates["seed"]) == ("study", "moe-2", 2)
    assert (there.committed, there.scheduled, there.last_step, there.finished) == (3, 5, 2, False)
    assert there.groups == {
        "observation": 3, "probe_set": None, "training": 2, "losses": 3, "routing": 3,
    }  # fmt: skip
    assert (there.probe_tokens, there.tokens_per_step) == (24, 64)
    files = [file for file in run.path.rglob("*") if file.is_file()]
    assert there.disk_bytes == sum(file.stat().st_size for file in files)
    read = [run.dataset(group) for group in run.groups]
    numbers = [v for data in read for v in data.data_vars.values() if v.dtype != object]
    assert there.raw_bytes == sum(variable.nbytes for variable in numbers)


def test_runs_may_be_given_one_by_one(make_run) -> None:
    one, two = make_run("a"), make_run("b")
    make_run("c")
    assert [run.name for run in contents(two.path, one.path).runs] == ["b", "a"]


def test_a_sound_study_has_no_problem(make_run, tmp_path: Path) -> None:
    for name in ("a", "b"):
        train(make_run(name), 1)
        (tmp_path / "study" / f"{name}.weights").mkdir()
    (tmp_path / "study" / "data").mkdir()
    (tmp_path / "study" / "study.json").write_text("{}")
    assert contents(tmp_path / "study").problems == ()


def test_an_unfinished_run_needs_action_and_what_it_resumes_from(make_run, observe) -> None:
    run = make_run("dense-0", committed=(0, 1))
    run.path.with_name("dense-0.resume.pt").write_bytes(b"state")
    (problem,) = contents(run.path.parent).problems
    assert problem.needs_action
    assert problem.what.startswith("unfinished: 2 of 5 steps are committed. Unless")
    run.write(2, {"losses": observe(2)["losses"]})
    (problem,) = contents(run.path.parent).problems
    assert "part of step 2 is there, not yet committed" in problem.what


def test_a_run_of_another_probe_set_or_stream_needs_action(make_run, probe_set) -> None:
    train(make_run("a"), 1)
    train(make_run("b", probe_set=probe_set.isel(pos=[1, 0, 2, 3])), 1)
    run = make_run("c")
    train(run, 2)
    train(make_run("d", coordinates={"arm": "d", "order_seed": 7}), 3)
    study = contents(run.path.parent)
    needed = told(study, needs_action=True)
    assert needed.keys() == {"b", "c"}
    assert "another probe set than a" in needed["b"]
    assert "saw other tokens than a, or another order, from training step 1 on" in needed["c"]
    assert "2 orders (order_seed 7, None)" in told(study, needs_action=False)["study"]


def test_leftovers_and_strangers_do_no_harm(make_run, tmp_path: Path) -> None:
    path, folder = make_run("a").path, tmp_path / "study"
    for name in ("b.zarr.partial", "gone.weights", "notes"):
        (folder / name).mkdir()
    for name in ("a.resume.pt", "gone.resume.pt", "study.json.partial", ".hidden", "x.csv"):
        (folder / name).write_bytes(b"")
    (path / "losses/loss/c/0/0/0.1a2b.partial").write_bytes(b"")
    (path / "ablation").mkdir()
    (path / "copy").mkdir()
    study = contents(folder)
    assert told(study, needs_action=True) == {}
    assert told(study, needs_action=False).keys() == {
        "b.zarr.partial", "gone.weights", "notes", "a.resume.pt", "gone.resume.pt",
        "study.json.partial", "x.csv", "a", "a.zarr/copy",
        "a.zarr/losses/loss/c/0/0/0.1a2b.partial",
    }  # fmt: skip


@pytest.mark.parametrize("content", [None, "{", "{}"])
def test_a_run_that_cannot_be_opened_is_a_problem_beside_the_others(make_run, content) -> None:
    make_run("a")
    root = make_run("b").path / "zarr.json"
    root.unlink() if content is None else root.write_text(content)
    study = contents(root.parents[1])
    assert [run.name for run in study.runs] == ["a"]
    assert "restore that file from a copy" in told(study, needs_action=True)["b"]


@pytest.mark.parametrize(
    "change", [{"node_type": "array"}, {"consolidated_metadata": {"metadata": {"losses": {}}}}]
)
def test_a_root_that_makes_no_sense_is_a_problem(make_run, change: dict) -> None:
    root = make_run("a").path / "zarr.json"
    root.write_text(json.dumps(json.loads(root.read_text()) | change))
    assert "restore that file from a copy" in told(contents(root.parent), needs_action=True)["a"]


def test_a_newer_schema_is_a_problem(make_run) -> None:
    root = make_run("a").path / "zarr.json"
    root.write_text(root.read_text().replace('"schema_version": 1', '"schema_version": 7'))
    assert "made by schema version 7" in told(contents(root.parent), needs_action=True)["a"]


def test_damaged_labels_are_a_problem_and_not_an_error(make_run) -> None:
    run = make_run("a")
    make_run("b")
    (run.path / "observation/step/c/0").unlink()
    study = contents(run.path.parent)
    assert [there.name for there in study.runs] == ["b"]
    assert "observation/step/c/0 is missing" in told(study, needs_action=True)["a"]


def test_the_command_shows_every_run_and_exits_by_its_problems(make_run, capsys) -> None:
    make_run("dense-seed0", coordinates={"arm": "dense", "seed": 0, "n_parameters": 1234567})
    run = make_run("\x1b[31m[bold]", groups=("losses", "routing"), seed=1)
    assert main([str(run.path.parent)]) == 0
    shown = capsys.readouterr().out
    assert "\x1b" not in shown
    for part in ("dense-seed0", "1,234,567", "5/5", "[31m[bold]", "routing", "losses"):
        assert part in shown
    (run.path / "observation/committed/c/4").unlink()
    assert main([str(run.path.parent)]) == 1
    assert "problems: 1 to act on" in capsys.readouterr().out


@pytest.mark.parametrize("columns", ["80", "140"])
def test_names_of_runs_are_whole_at_any_width(make_run, capsys, monkeypatch, columns) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    labels = {"arm": "dense_120", "seed": 0, "n_parameters": 135338348}
    run = make_run("dense_120-seed10", coordinates=labels)
    make_run("other", coordinates=labels, groups=("losses", "routing", "activations"))
    main([str(run.path.parent)])
    shown = capsys.readouterr().out
    assert "dense_120-seed10" in shown
    assert "135,338,348" in shown
    assert max(map(len, shown.splitlines())) <= int(columns)


def test_json_says_the_same(make_run, capsys) -> None:
    run = make_run("a", committed=(0, 1))
    assert main([str(run.path), "--json"]) == 1
    said = json.loads(capsys.readouterr().out)
    assert said["runs"][0]["committed"] == 2
    assert said["runs"][0]["groups"]["losses"] == 2
    assert said["problems"][0]["where"] == "a"
    (run.path / "losses/loss/c/0/0/0").unlink()
    assert main(["verify", "--json", str(run.path)]) == 1
    said = json.loads(capsys.readouterr().out)
    (damage,) = said["damage"]
    assert (damage["place"], damage["step"], damage["what"]) == ("losses/loss", 0, "missing")


def test_verify_names_the_damage_whole_and_exits_by_it(make_run, capsys, monkeypatch) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    run = make_run("a")
    assert main(["verify", str(run.path.parent)]) == 0
    assert "nothing damaged" in capsys.readouterr().out
    file = run.path / "losses/loss/c/2/0/0"
    file.unlink()
    assert main(["verify", str(run.path.parent)]) == 1
    shown = capsys.readouterr().out
    assert "a, losses/loss, step 2\n" in shown
    assert f"  {file}\n" in shown  # in one piece, to be copied
    assert "1 damaged" in shown


def test_a_run_that_cannot_be_opened_fails_verification(make_run, capsys) -> None:
    make_run("a")
    root = make_run("b").path / "zarr.json"
    root.unlink()
    assert main(["verify", str(root.parents[1])]) == 1
    assert "1 not readable at all" in capsys.readouterr().out


def test_a_wrong_call_is_2_and_says_what_to_do(tmp_path: Path, capsys, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert main([]) == 2
    assert main(["verify"]) == 2
    assert "no study in studies; train one with" in capsys.readouterr().err
    assert main(["nowhere"]) == 2
    assert "nowhere does not exist" in capsys.readouterr().err
    with pytest.raises(SystemExit) as exit:
        main(["--nonsense"])
    assert exit.value.code == 2


def test_without_a_study_the_newest_is_taken(make_run, tmp_path: Path, capsys, monkeypatch) -> None:
    run = make_run("a")
    shutil.copytree(run.path.parent, tmp_path / "studies" / "mine")
    monkeypatch.chdir(tmp_path)
    assert main([]) == 0
    captured = capsys.readouterr()
    assert "taking the newest: studies/mine" in captured.err
    assert "mine" in captured.out


def test_run_and_study_say_what_is_in_them_on_one_line(make_run) -> None:
    run = make_run("moe-seed0", groups=("losses", "routing"), committed=(0, 1))
    assert repr(run) == "<Run 'moe-seed0': 2 of 5 steps, losses, routing>"
    make_run("dense-0")
    make_run("dense-1", seed=1)
    study = Study.open(run.path.parent)
    assert repr(study) == "<Study 'study': 3 runs (2 dense, 1 moe); losses, routing>"
    (run.path / "observation/step/c/0").unlink()
    assert repr(Run.open(run.path)) == "<Run 'moe-seed0': 2 of 5 steps, losses, routing>"
