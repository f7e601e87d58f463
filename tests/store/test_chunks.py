import os
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

from store.run import Run, StoreError

Damage = Callable[[Path], object]


def rewrite(change: Callable[[bytes], bytes]) -> Damage:
    return lambda file: file.write_bytes(change(file.read_bytes()))


def flip(at: float) -> Damage:
    def change(content: bytes) -> bytes:
        place = int(at * (len(content) - 1))
        return content[:place] + bytes([content[place] ^ 0xFF]) + content[place + 1 :]

    return rewrite(change)


DAMAGES = {
    "missing": Path.unlink,
    "empty": rewrite(lambda content: b""),
    "cut in half": rewrite(lambda content: content[: len(content) // 2]),
    "cut by a byte": rewrite(lambda content: content[:-1]),
    "first byte flipped": flip(0),
    "middle byte flipped": flip(0.5),
    "last byte flipped": flip(1),
    "zeros": rewrite(lambda content: bytes(len(content))),
    "noise": rewrite(lambda content: np.random.default_rng(0).bytes(len(content))),
}


@pytest.fixture(params=DAMAGES.values(), ids=DAMAGES.keys())
def damage(request: pytest.FixtureRequest) -> Damage:
    return request.param


def assert_names(error: pytest.ExceptionInfo[StoreError], run: Run, file: Path, *more: str) -> None:
    message = str(error.value)
    for part in (f"run {run.name!r}", str(file), f"--run {run.name}`", *more):
        assert part in message


@pytest.fixture(scope="module")
def run(build, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return build(tmp_path_factory.mktemp("study"), "moe-0", groups=("losses", "routing"))


@pytest.fixture
def damaged(run: Run, damage: Damage) -> Iterator[Callable[[str], Path]]:
    """damaged(path in the run) -> that file, damaged until the test ends."""
    intact: dict[Path, bytes] = {}

    def damaged(place: str) -> Path:
        file = run.path / place
        intact[file] = file.read_bytes()
        damage(file)
        return file

    yield damaged
    for file, content in intact.items():
        file.write_bytes(content)


def test_damaged_chunk_is_named_and_the_others_stay_readable(run: Run, damaged, observe) -> None:
    file = damaged("routing/router_prob/c/3/0/0/0/0")
    read = run.dataset("routing")
    with pytest.raises(StoreError) as error:
        read.router_prob.load()
    assert_names(error, run, file, "routing/router_prob, step 4")
    with pytest.raises(StoreError):
        read.router_prob.sel(step=4, layer=3, pos=0).load()
    np.testing.assert_array_equal(
        read.router_prob.sel(step=8), observe(8)["routing"].router_prob.astype("float16")
    )
    np.testing.assert_array_equal(read.expert_index.sel(step=4), observe(4)["routing"].expert_index)
    assert not run.dataset("losses").loss.isnull().any()


@pytest.mark.parametrize("group", ["probe_set", "training"])
def test_damage_outside_the_observations_is_named(run: Run, damaged, group: str) -> None:
    name = {"probe_set": "work", "training": "train_loss"}[group]
    file = damaged(f"{group}/{name}/c/0")
    read = run.dataset(group)
    with pytest.raises(StoreError) as error:
        read[name].load()
    assert_names(error, run, file, f"{group}/{name}")
    read.drop_vars(name).load()


def test_damaged_labels_are_named(run: Run, damaged) -> None:
    file = damaged("losses/sequence/c/0")
    with pytest.raises(StoreError) as error:
        Run.open(run.path).dataset("losses")
    assert_names(error, run, file, "losses/sequence")


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, np.ndarray]:
    """A run whose activations take more than one chunk a step, and those activations."""
    shape = (2, 3, 10, 150_001)
    values = np.zeros(shape, dtype="float16")
    values[..., ::97] = np.random.default_rng(0).random(values[..., ::97].shape)
    observed = {
        "activations": xr.Dataset({"resid_post": (("layer", "sequence", "pos", "d_model"), values)})
    }
    probe_set = xr.Dataset({"token": (("sequence", "pos"), np.zeros((3, 10), dtype="int32"))})
    run = Run.create(
        tmp_path_factory.mktemp("study") / "large.zarr",
        probe_set,
        observed,
        steps=[0, 1],
        training_steps=1,
        attrs={},
        coordinates={},
    )
    for step in (0, 1):
        run.write(step, observed)
        run.commit(step)
    return run, values


def test_a_large_step_is_one_file_of_several_chunks(large: tuple[Run, np.ndarray]) -> None:
    run, values = large
    plain = xr.open_zarr(run.path, group="activations", chunks=None).resid_post
    assert plain.encoding["chunks"] == (1, 1, 3, 10, 150_001)
    assert plain.encoding["shards"] == (1, 2, 3, 10, 150_001)
    files = [path for path in (run.path / "activations/resid_post/c").rglob("*") if path.is_file()]
    assert len(files) == 2
    np.testing.assert_array_equal(run.dataset("activations").resid_post[1], values)
    np.testing.assert_array_equal(plain[1], values)


def test_damaged_shard_is_named(large: tuple[Run, np.ndarray], damage: Damage) -> None:
    run, values = large
    file = run.path / "activations" / "resid_post" / "c" / "1" / "0" / "0" / "0" / "0"
    intact = file.read_bytes()
    try:
        damage(file)
        read = run.dataset("activations").resid_post
        with pytest.raises(StoreError) as error:
            read.isel(pos=3).load()
        assert_names(error, run, file, "activations/resid_post, step 1")
        np.testing.assert_array_equal(read.sel(step=0, pos=3), values[:, :, 3])
    finally:
        file.write_bytes(intact)


def test_step_of_nothing_but_missing_values_is_not_taken_for_damage(make_run, observe) -> None:
    run = make_run("moe-0", groups=("losses", "routing"), committed=())
    observed = observe(0)
    missing = {"losses": observed["losses"] * np.nan, "routing": observed["routing"] * np.nan}
    missing["routing"]["expert_index"] = observed["routing"].expert_index * 0 - 1
    Run.open(run.path).write(0, missing)
    run.commit(0)
    assert run.dataset("losses").loss.isnull().all()
    assert (run.dataset("routing").expert_index == -1).all()


def test_empty_mark_of_a_power_cut_commits_nothing(make_run) -> None:
    run = make_run()
    os.truncate(run.path / "observation" / "committed" / "c" / "2", 0)
    assert run.committed.tolist() == [0, 1, 4, 8]


def test_file_that_may_not_be_read_is_an_oserror(make_run) -> None:
    run = make_run()
    file = run.path / "losses" / "loss" / "c" / "0" / "0" / "0"
    file.unlink()
    file.symlink_to(file)
    with pytest.raises(OSError, match="symbolic links"):
        run.dataset("losses").load()
