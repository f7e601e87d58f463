"""A group added to a finished run: laid out whole, committed by itself, harmless otherwise."""

import os
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
import zarr

from store import layout
from store.run import Run, StoreError
from store.study import Study

NAMES = ("loss_change_mean", "loss_change_zero", "loss_change_second_choice")
SEQUENCES, POSITIONS = 6, 4


def knock_outs(step: int, *, sequences: tuple[int, ...] = tuple(range(SEQUENCES))) -> xr.Dataset:
    rng = np.random.default_rng(step)
    dims, shape = ("layer", "expert", "sequence", "pos"), (2, 4, len(sequences), POSITIONS)
    values = {name: (dims, rng.standard_normal(shape).astype("float16")) for name in NAMES}
    return xr.Dataset(values, {"layer": [1, 3], "sequence": list(sequences)})


def contents(path: Path) -> dict[str, bytes]:
    return {
        str(file.relative_to(path)): file.read_bytes()
        for file in path.rglob("*")
        if file.is_file() and file != path / "zarr.json"
    }


def test_what_is_written_and_committed_comes_back(make_run) -> None:
    run = make_run().add_group("ablation", knock_outs(0), attrs={"device": "cpu"})
    run.write(4, {"ablation": knock_outs(4)})
    run.commit(4, group="ablation")
    for opened in (run, Run.open(run.path)):
        assert "ablation" in opened.groups
        assert opened.committed_in("ablation").tolist() == [4]
        found = opened.dataset("ablation")
        assert found.sizes == {
            "step": 1, "layer": 2, "expert": 4, "sequence": SEQUENCES, "pos": POSITIONS,
        }  # fmt: skip
        assert set(found.data_vars) == set(NAMES)
        for name in NAMES:
            np.testing.assert_array_equal(found[name].sel(step=4), knock_outs(4)[name])
    assert zarr.open_group(run.path / "ablation", mode="r").attrs["device"] == "cpu"


def test_a_step_does_not_count_before_it_is_committed(make_run) -> None:
    run = make_run().add_group("ablation", knock_outs(0), attrs={})
    run.write(4, {"ablation": knock_outs(4)})
    assert run.committed_in("ablation").tolist() == []
    assert run.dataset("ablation").sizes["step"] == 0


def test_steps_of_training_and_of_the_group_are_committed_apart(make_run) -> None:
    run = make_run(committed=(0, 1)).add_group("ablation", knock_outs(0), attrs={})
    run.write(1, {"ablation": knock_outs(1)})
    run.commit(1, group="ablation")
    assert run.committed.tolist() == [0, 1]
    assert run.committed_in("losses").tolist() == [0, 1]
    assert run.committed_in("ablation").tolist() == [1]


def test_nothing_else_in_the_run_changes(make_run) -> None:
    run = make_run(groups=("losses", "routing"))
    before, attrs = contents(run.path), run.attrs
    added = run.add_group("ablation", knock_outs(0), attrs={})
    added.write(4, {"ablation": knock_outs(4)})
    added.commit(4, group="ablation")
    after = contents(run.path)
    assert {name: after[name] for name in before} == before
    assert all(name.startswith("ablation/") for name in after.keys() - before.keys())
    assert Run.open(run.path).attrs == attrs


def test_writing_a_step_twice_is_writing_it_once(make_run) -> None:
    run = make_run().add_group("ablation", knock_outs(0), attrs={})
    run.write(4, {"ablation": knock_outs(1)})
    run.write(4, {"ablation": knock_outs(4)})
    once = contents(run.path)
    run.write(4, {"ablation": knock_outs(4)})
    assert contents(run.path) == once


@pytest.mark.parametrize("writes", [1, 5, 9, 13, 16, 17])
def test_laying_out_that_is_cut_off_leaves_no_group_and_can_be_repeated(
    make_run, writes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make_run()
    count, replace = 0, os.replace

    def cut_off(*arguments, **options) -> None:
        nonlocal count
        count += 1
        if count == writes:
            raise OSError("no space left")
        replace(*arguments, **options)

    monkeypatch.setattr(os, "replace", cut_off)
    with pytest.raises(OSError, match="no space left"):
        run.add_group("ablation", knock_outs(0), attrs={})
    monkeypatch.undo()
    assert "ablation" not in Run.open(run.path).groups
    run = Run.open(run.path).add_group("ablation", knock_outs(0), attrs={})
    run.write(4, {"ablation": knock_outs(4)})
    run.commit(4, group="ablation")
    found = Run.open(run.path).dataset("ablation")["loss_change_zero"]
    np.testing.assert_array_equal(found.sel(step=4), knock_outs(4)["loss_change_zero"])


def test_plain_xarray_opens_it(make_run) -> None:
    run = make_run().add_group("ablation", knock_outs(0), attrs={})
    run.write(4, {"ablation": knock_outs(4)})
    with xr.open_zarr(run.path, group="ablation", chunks=None) as opened:
        assert opened["loss_change_mean"].sel(step=0).isnull().all()
        np.testing.assert_array_equal(
            opened["loss_change_mean"].sel(step=4), knock_outs(4)["loss_change_mean"]
        )
        assert opened["loss_change_mean"].attrs["units"] == "nat"


def test_a_study_joins_the_runs_that_have_it(make_run) -> None:
    one, _, other = (make_run(f"dense-{i}", seed=i) for i in range(3))
    for run, step in ((one, 4), (other, 8)):
        run = run.add_group("ablation", knock_outs(0), attrs={})
        run.write(step, {"ablation": knock_outs(step)})
        run.commit(step, group="ablation")
    joined = Study.open(one.path.parent).dataset("ablation")
    assert joined["run"].values.tolist() == ["dense-0", "dense-2"]
    assert joined["step"].values.tolist() == [4, 8]
    assert joined["loss_change_zero"].sel(run="dense-0", step=8).isnull().all()
    np.testing.assert_array_equal(
        joined["loss_change_zero"].sel(run="dense-2", step=8), knock_outs(8)["loss_change_zero"]
    )


def test_it_may_be_about_part_of_the_probe_set_only(make_run) -> None:
    part = knock_outs(0, sequences=(1, 4))
    run = make_run().add_group("ablation", part, attrs={})
    run.write(0, {"ablation": part})
    run.commit(0, group="ablation")
    assert run.dataset("ablation")["sequence"].values.tolist() == [1, 4]
    with pytest.raises(ValueError, match="laid out is"):
        run.write(0, {"ablation": knock_outs(0)})


def test_a_lost_chunk_of_a_committed_step_is_an_error_that_names_it(make_run) -> None:
    run = make_run().add_group("ablation", knock_outs(0), attrs={})
    run.write(4, {"ablation": knock_outs(4)})
    run.commit(4, group="ablation")
    for file in (run.path / "ablation/loss_change_zero/c").rglob("*"):
        if file.is_file():
            file.unlink()
    with pytest.raises(StoreError, match=r"ablation/loss_change_zero, step 4.*missing"):
        Run.open(run.path).dataset("ablation")["loss_change_zero"].load()


def test_a_group_that_is_there_is_not_laid_out_again(make_run) -> None:
    run = make_run()
    run.add_group("ablation", knock_outs(0), attrs={})
    for opened in (run, Run.open(run.path)):
        with pytest.raises(StoreError, match="already has the group 'ablation'"):
            opened.add_group("ablation", knock_outs(0), attrs={})


@pytest.mark.parametrize(
    ("group", "template", "attrs", "message"),
    [
        ("routing", knock_outs(0), {}, "laid out by Run.create; added later are ablation"),
        ("logits", knock_outs(0), {}, "added later are ablation"),
        ("ablation", xr.Dataset(), {}, "holds no variable"),
        ("ablation", knock_outs(0, sequences=(1, 9)), {}, "sequence that the probe set lacks"),
        ("ablation", knock_outs(0).transpose("pos", ...), {}, "transpose"),
        ("ablation", knock_outs(0), {"at": object()}, "plain JSON"),
    ],
)
def test_what_does_not_fit_is_refused_and_leaves_nothing(
    make_run, group: str, template: xr.Dataset, attrs: dict, message: str
) -> None:
    run = make_run()
    with pytest.raises(ValueError, match=message):
        run.add_group(group, template, attrs=attrs)
    assert not (run.path / "ablation").exists()
    assert Run.open(run.path).groups == run.groups


def test_a_run_is_not_created_with_it(tmp_path: Path, probe_set: xr.Dataset) -> None:
    with pytest.raises(ValueError, match=r"Run\.add_group adds it to a run"):
        layout.lay_out(
            tmp_path / "run.zarr", probe_set, {"ablation": knock_outs(0)},
            steps=[0], training_steps=1, attrs={}, coordinates={},
        )  # fmt: skip


def test_commit_names_a_group_that_has_marks_of_its_own(make_run) -> None:
    run = make_run()
    with pytest.raises(ValueError, match="committed with all that training recorded"):
        run.commit(0, group="losses")
    with pytest.raises(StoreError, match="no group 'ablation'"):
        run.commit(0, group="ablation")
    with pytest.raises(StoreError, match="no group 'ablation'"):
        run.committed_in("ablation")
