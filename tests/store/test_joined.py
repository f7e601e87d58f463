import copy
import pickle
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
import zarr

from store.joined import JoinedArray
from store.run import Run, StoreError
from store.study import Study


def three_runs(make_run) -> Study:
    """Three runs, of which the second lacks step 2 and the third stopped after step 2."""
    both = ("losses", "routing")
    runs = (
        make_run("moe-0", seed=0, groups=both),
        make_run("moe-1", seed=1, groups=both, committed=(0, 1, 4, 8)),
        make_run("moe-2", seed=2, groups=both, committed=(0, 1, 2)),
    )
    return Study("study", None, runs)


@pytest.fixture(scope="module")
def study(build, tmp_path_factory: pytest.TempPathFactory) -> Study:
    return three_runs(partial(build, tmp_path_factory.mktemp("study")))


@pytest.fixture
def damageable(make_run) -> Study:
    return three_runs(make_run)


def plain(study: Study, group: str) -> xr.Dataset:
    """The same join by plain xarray, in memory."""
    names = xr.IndexVariable("run", [run.name for run in study.runs])
    parts = [xr.open_zarr(run.path, group=group, chunks=None).load() for run in study.runs]
    return xr.concat(parts, names)


def chunk(run: Run, row: int) -> Path:
    return run.path / "losses" / "loss" / "c" / str(row) / "0" / "0"


@pytest.mark.parametrize("group", ["losses", "routing"])
def test_join_equals_concatenation_by_plain_xarray(study: Study, group: str) -> None:
    joined, expected = study.dataset(group), plain(study, group)
    for name, variable in expected.data_vars.items():
        assert joined[name].dtype == variable.dtype
        xr.testing.assert_identical(
            joined[name].load().drop_vars(["arm", "seed"]).drop_attrs(deep=True),
            variable.drop_attrs(deep=True),
        )
        assert joined[name].attrs == variable.attrs
    assert joined.arm.values.tolist() == ["moe"] * 3
    assert joined.seed.values.tolist() == [0, 1, 2]
    assert joined.seed.dims == ("run",)


def test_step_that_a_run_lacks_reads_as_missing(study: Study) -> None:
    losses, routing = study.dataset("losses"), study.dataset("routing")
    assert losses.step.values.tolist() == [0, 1, 2, 4, 8]
    expected = [[False] * 5, [False, False, True, False, False], [False] * 3 + [True] * 2]
    np.testing.assert_array_equal(losses.loss.isnull().all(("sequence", "pos")), expected)
    unrouted = (routing.expert_index == -1).all(("layer", "sequence", "pos", "top_k"))
    np.testing.assert_array_equal(unrouted, expected)


KEYS: list[dict[str, object]] = [
    {"run": 1},
    {"run": -1, "step": -2},
    {"step": [4, 0, 0, 2], "run": [2, 1]},
    {"run": slice(None, None, -1), "step": slice(3, 0, -2)},
    {"step": slice(1, 1)},
    {"run": []},
    {"layer": 1, "expert": [3, 0], "pos": slice(None, None, 2)},
    {"run": 0, "step": 1, "layer": 0, "sequence": 5, "pos": 3, "expert": 2},
    {"sequence": np.array([True, False, True, False, False, True])},
    {"run": xr.DataArray([0, 2, 1], dims="pair"), "step": xr.DataArray([4, 0, 2], dims="pair")},
    {"sequence": xr.DataArray([[0, 1], [5, 1]], dims=("a", "b")), "run": 2},
]


@pytest.mark.parametrize("key", KEYS, ids=str)
def test_any_selection_equals_that_of_memory(study: Study, key: dict[str, object]) -> None:
    joined, expected = study.dataset("routing").router_prob, plain(study, "routing").router_prob
    selected = joined.isel(key)
    assert isinstance(selected.load().data, np.ndarray)
    np.testing.assert_array_equal(selected, expected.isel(key), strict=True)


def test_random_selections_of_selections_equal_those_of_memory(study: Study) -> None:
    rng = np.random.default_rng(0)
    expected = plain(study, "losses").loss
    for _ in range(30):
        joined, memory = study.dataset("losses").loss, expected
        for _ in range(2):
            key = {
                dim: rng.integers(-size, size, size=rng.integers(1, 4))
                for dim, size in memory.sizes.items()
                if rng.random() < 0.6
            }
            joined, memory = joined.isel(key), memory.isel(key)
        np.testing.assert_array_equal(joined, memory, strict=True)


def test_only_the_blocks_asked_for_are_read(damageable: Study) -> None:
    loss = damageable.dataset("losses").loss
    expected = plain(damageable, "losses").loss.isel(step=1, run=[0, 2])
    for run in damageable.runs:
        for row in (0, 2, 3, 4):
            chunk(run, row).unlink(missing_ok=True)
    chunk(damageable.runs[1], 1).write_bytes(b"noise")
    np.testing.assert_array_equal(loss.isel(step=1, run=[0, 2]).load(), expected)
    with pytest.raises(StoreError, match="run 'moe-1', losses/loss, step 1"):
        loss.isel(step=1).load()
    with pytest.raises(StoreError, match="run 'moe-0', losses/loss, step 0"):
        loss.isel(run=0).load()


def test_looking_at_a_dataset_reads_no_values(damageable: Study) -> None:
    joined = damageable.dataset("losses")
    for run in damageable.runs:
        for row in range(5):
            chunk(run, row).unlink(missing_ok=True)
    for view in (
        joined,
        joined.isel(step=2),
        joined.transpose("pos", ...),
        joined.sel(run="moe-1"),
    ):
        assert "loss" in repr(view)
        assert "..." in repr(view)
        assert "loss" in view._repr_html_()
    assert joined.loss.nbytes == 3 * 5 * 6 * 4 * 4
    with pytest.raises(StoreError):
        joined.load()


def test_copies_and_pickles_stay_lazy_and_equal(study: Study) -> None:
    joined = study.dataset("routing")
    expected = study.dataset("routing").load()
    for other in (
        pickle.loads(pickle.dumps(joined)),
        copy.deepcopy(joined),
        joined.copy(),
        joined.copy(deep=True),
    ):
        assert not other.router_prob.variable._in_memory
        xr.testing.assert_identical(other.load(), expected)
    assert not joined.router_prob.variable._in_memory


def test_a_dataset_can_be_changed_without_touching_the_store(study: Study) -> None:
    joined = study.dataset("losses")
    joined.loss[0, 0] = 7.0
    assert (joined.loss[0, 0] == 7).all()
    assert not (study.dataset("losses").loss[0, 0] == 7).any()


def test_loaded_values_are_kept(damageable: Study) -> None:
    joined = damageable.dataset("losses")
    first = joined.loss.values
    chunk(damageable.runs[0], 0).unlink()
    np.testing.assert_array_equal(joined.loss.values, first)


def test_one_run_alone_is_the_join_without_run(study: Study) -> None:
    for i, run in enumerate(study.runs):
        joined = study.dataset("routing").isel(run=i).sel(step=run.committed)
        xr.testing.assert_identical(run.dataset("routing").load(), joined.load())


def test_text_comes_as_str_objects(study: Study) -> None:
    domain = study.probe_set.domain
    assert domain.dtype == object
    assert domain[0].load().item() == "fiction"
    assert domain.astype(str).dtype.kind == "U"
    assert domain.isel(sequence=slice(0)).values.tolist() == []


def test_joined_array_needs_no_schema(study: Study) -> None:
    arrays = [zarr.open_array(run.path, path="losses/loss", mode="r") for run in study.runs]
    joined = JoinedArray(arrays, np.array([10, 20]), np.array([[0, 1], [-1, -1], [2, -1]]))
    assert joined.shape == (3, 2, 6, 4)
    lazy = xr.Variable(("run", "step", "sequence", "pos"), joined)
    np.testing.assert_array_equal(lazy[0, 1], arrays[0][1])
    np.testing.assert_array_equal(lazy[2, 0], arrays[2][2])
    assert np.isnan(lazy[1]).all()
