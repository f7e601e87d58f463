"""Router against representation: planted routes, a slow loop, and the page with and without it."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

from analyses import router_saturation as analysis
from analyses.reporting.rerouting import rerouting_caveats
from analyses.routing.rerouting import AGAINST_LAST, against_last
from store.run import Run

DIMS = ("run", "step", "layer", "sequence", "pos", "top_k")
LAST_ROUTER, LAST_REPRESENTATION = (
    "expert_index_last_router",
    "expert_index_last_representation",
)
UNIT = xr.DataArray([f"w{i // 2}" for i in range(8)], dims="sequence", attrs={"unit": "work"})


def routes(*, seed: int, top_k: int = 1, n_runs: int = 3) -> xr.DataArray:
    shape = (n_runs, 2, 2, 8, 5, 4)
    values = np.random.default_rng(seed).random(shape).argsort(axis=-1)[..., :top_k]
    coords = {
        "run": [f"r{i}" for i in range(n_runs)],
        "arm": ("run", ["a", "a", "b"][:n_runs]),
        "step": [0, 9],
        "layer": [1, 3],
    }
    return xr.DataArray(values.astype("int16"), dims=DIMS, coords=coords)


def rerouted(router: xr.DataArray, representation: xr.DataArray) -> xr.Dataset:
    return xr.Dataset({LAST_ROUTER: router, LAST_REPRESENTATION: representation})


def test_a_router_that_alone_changed_leaves_the_last_router_in_agreement() -> None:
    index = routes(seed=0)
    always_last = index.isel(step=[1, 1]).assign_coords(step=[0, 9])
    # the same representation at both steps: only the routers differ
    found = against_last(index, rerouted(always_last, index), UNIT, n_experts=4)
    np.testing.assert_array_equal(found["arm_representation_alone"], 1)
    np.testing.assert_array_equal(found["arm_router_alone"], found["arm_as_it_was"])
    np.testing.assert_array_equal(found["arm_as_it_was"].sel(step=9), 1)
    assert found["arm_as_it_was"].sel(step=0).max() < 0.5
    assert float(found["even_chance"]) == 0.25


def test_a_representation_that_alone_changed_is_the_other_way_round() -> None:
    index = routes(seed=0)
    always_last = index.isel(step=[1, 1]).assign_coords(step=[0, 9])
    found = against_last(index, rerouted(index, always_last), UNIT, n_experts=4)
    np.testing.assert_array_equal(found["arm_router_alone"], 1)
    np.testing.assert_array_equal(found["arm_representation_alone"], found["arm_as_it_was"])


@pytest.mark.parametrize("top_k", [1, 2])
def test_shares_are_those_of_a_slow_loop_and_at_chance_for_unrelated_routes(top_k: int) -> None:
    index, other, third = (routes(seed=i, top_k=top_k) for i in range(3))
    found = against_last(index, rerouted(other, third), UNIT, n_experts=4)
    read = zip(AGAINST_LAST, (index, other, third), strict=True)
    for name, of_step in read:
        shares = np.array(
            [
                len(set(a.tolist()) & set(b.tolist())) / top_k
                for a, b in zip(
                    of_step.values[0, 0, 1].reshape(-1, top_k),
                    index.values[0, 1, 1].reshape(-1, top_k),
                    strict=True,
                )
            ]
        )
        at = found[f"run_{name}"].isel(run=0, step=0, layer=1)
        np.testing.assert_allclose(at, shares.mean())
        assert abs(float(found[f"arm_{name}_mean"].isel(step=0).mean()) - top_k / 4) < 0.1
        by_unit = shares.reshape(4, -1).mean(axis=1)  # units of one size: the error of a mean
        low, high = found[f"run_{name}_ci"].isel(run=0, step=0, layer=1).values
        margin = 3.182446 * by_unit.std(ddof=1) / 2
        np.testing.assert_allclose(high, min(1, shares.mean() + margin), rtol=1e-5)
        np.testing.assert_allclose(low, max(0, shares.mean() - margin), rtol=1e-5, atol=1e-12)


def test_part_of_the_text_and_of_the_steps_is_enough() -> None:
    index = routes(seed=0)
    part = index.assign_coords(sequence=range(8), pos=range(5)).isel(sequence=[2, 3, 6, 7])
    anew = rerouted(part, part).astype("int16")
    anew[LAST_ROUTER][2, 0] = -1  # run r2 was not routed anew at step 0
    found = against_last(index, anew, UNIT[[2, 3, 6, 7]], n_experts=4)
    assert found["unit"].values.tolist() == ["w1", "w3"]
    assert np.isnan(found["arm_router_alone"].sel(each_arm="b", step=0)).all()
    same = (part[:, 0] == part[:, 1]).mean(["sequence", "pos", "top_k"])
    np.testing.assert_allclose(
        found["run_router_alone"].sel(step=0).transpose("run", "layer")[:2], same[:2]
    )


@pytest.fixture
def folder(write_study: Callable[..., Path], tmp_path: Path) -> Path:
    """A study of two switch runs, one of which was routed anew."""
    path = write_study(tmp_path / "small", {f"switch-seed{i}": "switch" for i in range(2)})
    run = Run.open(path / "switch-seed0.zarr")
    index = run.dataset("routing")["expert_index"].drop_vars("run")
    one = xr.Dataset(
        {
            name: (DIMS[2:], index.isel(step=-1).values)
            for name in (LAST_ROUTER, LAST_REPRESENTATION)
        },
        {"layer": [1, 3], "sequence": index["sequence"].values},
    )
    run = run.add_group("rerouted", one, attrs={})
    for step in (0, 4):
        run.write(step, {"rerouted": one})
        run.commit(step, group="rerouted")
    return path


def test_the_page_shows_router_against_representation(folder: Path, capsys) -> None:
    report = folder.parent / "report"
    arguments = [str(folder), "--unit", "document", "--report", str(report)]
    assert analysis.main(arguments) == 0
    page = (report / "router_saturation/index.md").read_text()
    assert "so that the representation alone differs" in page
    assert "need not add up to the whole" in page
    assert "Not routed anew" in page
    assert "switch-seed1" in page
    assert (report / "router_saturation/rerouting.png").stat().st_size > 5000
    capsys.readouterr()


def test_without_it_one_line_names_the_command() -> None:
    (line,) = rerouting_caveats(None, ["switch-seed0", "switch-seed1"])
    assert "`python -m models.reroute switch-seed0.zarr --steps all`" in line
