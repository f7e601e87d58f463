import os
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

from store.run import Run, StoreError
from store.study import Study, newest_study


def test_a_folder_opens_as_its_runs_by_name(make_run) -> None:
    for name in ("moe-1", "dense-0", "moe-0"):
        folder = make_run(name, committed=(0,)).path.parent
    (folder / "report").mkdir()
    (folder / "dense-1.zarr.partial").mkdir()
    (folder / "notes.txt").touch()
    study = Study.open(str(folder))
    assert (study.name, study.path) == ("study", folder)
    assert [run.name for run in study.runs] == ["dense-0", "moe-0", "moe-1"]


def test_runs_open_in_the_order_given(make_run) -> None:
    paths = [make_run(name, committed=()).path for name in ("moe-1", "dense-0", "moe-0")]
    study = Study.open(paths[2], str(paths[1]))
    assert (study.name, study.path) == ("study", None)
    assert [run.name for run in study.runs] == ["moe-0", "dense-0"]
    assert [run.name for run in Study.open(paths[0]).runs] == ["moe-1"]


def test_runs_are_labelled_by_name_arm_and_seed(make_run) -> None:
    make_run("dense-0", seed=4, coordinates={"arm": "dense", "seed": 4, "rate": 0.5})
    make_run("moe-0", seed=5, coordinates={"arm": "moe", "seed": 5, "experts": 8, "router": "hash"})
    losses = Study.open(make_run("moe-1", committed=()).path.parent).dataset("losses")
    assert losses.run.values.tolist() == ["dense-0", "moe-0", "moe-1"]
    assert losses.arm.values.tolist() == ["dense", "moe", "moe"]
    assert losses.seed.values.tolist() == [4, 5, 0]
    np.testing.assert_array_equal(losses.rate, [0.5, np.nan, np.nan])
    np.testing.assert_array_equal(losses.experts, [np.nan, 8, np.nan])
    assert losses.router.values.tolist() == ["", "hash", ""]
    assert losses.where(losses.arm == "moe", drop=True).sizes["run"] == 2


def test_only_runs_that_have_the_group_are_joined(make_run) -> None:
    make_run("dense-0")
    folder = make_run("moe-0", groups=("losses", "routing")).path.parent
    study = Study.open(folder)
    assert study.dataset("losses").run.values.tolist() == ["dense-0", "moe-0"]
    assert study.dataset("routing").run.values.tolist() == ["moe-0"]
    with pytest.raises(StoreError, match=r"no run of study 'study' has the group 'activations'"):
        study.dataset("activations")
    with pytest.raises(ValueError, match="'logits' is not in the schema"):
        study.dataset("logits")


def test_runs_that_watched_other_layers_or_widths_are_not_joined(make_run) -> None:
    make_run("moe-0", groups=("routing", "activations"), committed=())
    other = make_run("moe-1", groups=("routing", "activations"), layers=(1, 2), d_model=16)
    study = Study.open(other.path.parent)
    message = r"'moe-0' and 'moe-1' differ in group 'routing': layer is \[1, 3\] and \[1, 2\]. Give"
    with pytest.raises(StoreError, match=message):
        study.dataset("routing")
    message = r"d_model is \[0, 1, 2, 3, 4, 5, 6, 7\] and 16 labels from 0"
    with pytest.raises(StoreError, match=message):
        study.dataset("activations")
    assert Study.open(other.path).dataset("activations").sizes["d_model"] == 16


def test_runs_that_recorded_other_variables_are_not_joined(tmp_path, probe_set, observe) -> None:
    routing = observe(0)["routing"]
    for name, template in {"moe-0": routing, "moe-1": routing.drop_vars("expert_weight")}.items():
        Run.create(
            tmp_path / f"{name}.zarr",
            probe_set,
            {"routing": template},
            steps=[0],
            training_steps=1,
            attrs={},
            coordinates={},
        )
    with pytest.raises(StoreError, match=r"differ in group 'routing': variables are \['expert_in"):
        Study.open(tmp_path).dataset("routing")


def test_training_is_joined_up_to_the_last_commit_of_any_run(make_run) -> None:
    for name, committed in {"dense-0": (0, 1, 2), "dense-1": (0, 1, 2, 4)}.items():
        run = make_run(name, committed=committed)
        steps = np.arange(1, 11)
        run.write_training(xr.Dataset({"tokens_seen": ("step", steps)}, {"step": steps}))
    training = Study.open(run.path.parent).dataset("training")
    assert training.tokens_seen.values.tolist() == [[1, 2, -1, -1], [1, 2, 3, 4]]


def test_probe_set_is_shared(make_run, probe_set) -> None:
    for name in ("dense-0", "moe-0"):
        folder = make_run(name, committed=()).path.parent
    study = Study.open(folder)
    assert set(study.probe_set.coords) == {"sequence", "pos", "order", "d_vocab"}
    assert study.probe_set.token.dims == ("sequence", "pos")
    np.testing.assert_array_equal(study.probe_set.token, probe_set.token)
    xr.testing.assert_identical(study.dataset("probe_set").load(), study.probe_set.load())


def test_runs_with_other_probe_sets_are_refused(make_run, probe_set) -> None:
    first = make_run("dense-0", committed=())
    other = probe_set.assign(token=probe_set.token + 1)
    second = make_run("dense-1", committed=(), probe_set=other)
    message = f"runs 'dense-0' .*{first.path.name}.* and 'dense-1' .*{second.path.name}.* different"
    with pytest.raises(StoreError, match=message):
        Study.open(first.path.parent)
    with pytest.raises(StoreError, match="open them separately, or train both in one study"):
        Study.open(first.path, second.path)


def test_a_run_given_twice_is_refused(make_run) -> None:
    path = make_run(committed=()).path
    with pytest.raises(StoreError, match="are both named 'dense-0'; give each run once"):
        Study.open(path, path)


def test_a_folder_without_runs_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"holds no run; train one with `python -m models\.train"):
        Study.open(tmp_path)
    with pytest.raises(StoreError, match=r"gone does not exist; train one with"):
        Study.open(tmp_path / "gone")
    with pytest.raises(StoreError, match="no path given"):
        Study.open()


def test_a_folder_among_runs_is_refused(make_run) -> None:
    path = make_run(committed=()).path
    with pytest.raises(StoreError, match="study holds no run"):
        Study.open(path, path.parent)


def test_a_run_that_was_killed_while_laid_out_is_not_part_of_the_study(make_run) -> None:
    folder = make_run("dense-0", committed=()).path.parent
    make_run("dense-1", committed=()).path.rename(folder / "dense-1.zarr.partial")
    assert [run.name for run in Study.open(folder).runs] == ["dense-0"]


def test_newest_study_is_the_one_committed_to_last(tmp_path: Path, make_run) -> None:
    run = make_run(committed=(0,))
    root = tmp_path / "studies"
    for name in ("old", "new"):
        shutil.copytree(run.path.parent, root / name)
    (root / "empty").mkdir()
    for name, when in {"old": 1000, "new": 2000}.items():
        os.utime(root / name / "dense-0.zarr" / "observation" / "committed" / "c", (when, when))
        os.utime(root / name, (when, when))
    assert newest_study(root) == root / "new"
    Run.open(root / "old" / "dense-0.zarr").commit(1)
    assert newest_study(str(root)) == root / "old"


def test_without_a_study_the_command_that_makes_one_is_named(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for root in (tmp_path, tmp_path / "gone"):
        with pytest.raises(StoreError, match=r"models\.train quick` \(or `make study`\)"):
            newest_study(root)


def test_a_study_of_18_runs_opens_in_well_under_a_second(make_run) -> None:
    first = make_run("run-00").path
    for i in range(1, 18):
        shutil.copytree(first, first.with_name(f"run-{i:02}.zarr"))
    started = time.process_time()
    assert Study.open(first.parent).dataset("losses").sizes["run"] == 18
    assert time.process_time() - started < 1.0
