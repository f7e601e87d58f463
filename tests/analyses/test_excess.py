"""How far arms are apart beyond their seeds: by hand, by a slow loop, and over runs."""

import numpy as np
import pytest
import xarray as xr

from analyses.comparison.excess import arm_excess
from analyses.statistics.pairs import pair_indices

ARMS = {"dense": 3, "switch": 4}


def runs_of(arms: dict[str, int]) -> xr.Dataset:
    arm = [a for a, n in arms.items() for _ in range(n)]
    names = [f"{a}-seed{i}" for a, n in arms.items() for i in range(n)]
    moe = ["dense" if a == "dense" else "moe" for a in arm]
    return xr.Dataset(coords={"run": names, "arm": ("run", arm), "architecture": ("run", moe)})


def distances(
    positions: np.ndarray, arms: dict[str, int]
) -> tuple[xr.DataArray, xr.DataArray, xr.Dataset]:
    """Squared distances of runs at positions (unit, run): the mean, and without each unit."""
    first, second = pair_indices(positions.shape[1])
    each = (positions[:, first] - positions[:, second]) ** 2
    deleted = (each.sum(axis=0) - each) / (len(each) - 1)
    return (
        xr.DataArray(each.mean(axis=0)[None], {"step": [3]}, ("step", "pair")),
        xr.DataArray(deleted[:, None], {"step": [3]}, ("unit", "step", "pair")),
        runs_of(arms),
    )


@pytest.fixture
def parts() -> tuple[xr.DataArray, xr.DataArray, xr.Dataset]:
    rng = np.random.default_rng(0)
    apart = np.repeat([0.0, 2.0], list(ARMS.values()))
    return distances(apart + rng.standard_normal((12, 7)), ARMS)


def test_distance_of_arms_is_what_is_left_when_that_of_seeds_is_taken_away(parts) -> None:
    estimate, _, runs = parts
    at = arm_excess("x", *parts, long_name="x").isel(contrast=0, step=0)
    first, second = pair_indices(7)
    arm = runs["arm"].values
    pairs = estimate.values[0]
    within = [pairs[(arm[first] == a) & (arm[second] == a)].mean() for a in ARMS]
    between = pairs[arm[first] != arm[second]].mean()
    assert float(at["excess_x"]) == pytest.approx(between - sum(within) / 2)
    assert float(at["seed_x"]) == pytest.approx(sum(within) / 2)
    low, high = at["excess_x_ci"].values
    assert low < 4 < high


def test_the_squared_distance_of_arms_without_noise_is_exact() -> None:
    still = np.tile(np.repeat([0.0, 3.0], 3), (5, 1))
    at = arm_excess("x", *distances(still, {"dense": 3, "switch": 3}), long_name="x")
    np.testing.assert_allclose(at["excess_x"], 9)
    np.testing.assert_allclose(at["excess_x_run_ci"], 9)


def test_interval_over_runs_deletes_runs_with_all_their_pairs(parts) -> None:
    estimate, deleted, runs = parts
    whole = arm_excess("x", *parts, long_name="x").isel(contrast=0, step=0)
    first, second = pair_indices(7)
    values = {"dense": [], "switch": []}
    for run, arm in enumerate(runs["arm"].values):
        kept = np.flatnonzero((first != run) & (second != run))
        sizes = {a: n - (a == arm) for a, n in ARMS.items()}
        without = arm_excess(
            "x", estimate.isel(pair=kept), deleted.isel(pair=kept), runs_of(sizes), long_name="x"
        )
        values[str(arm)].append(float(without["excess_x"].squeeze()))
    parts_of_variance = [(len(v) - 1) ** 2 / len(v) * np.var(v, ddof=1) for v in values.values()]
    low, high = whole["excess_x_run_ci"].values
    assert low < float(whole["excess_x"]) < high
    # between the normal quantile and Student's t of the smaller arm
    half = (high - low) / 2 / np.sqrt(sum(parts_of_variance))
    assert 1.96 < half < 4.31


def test_two_runs_of_an_arm_allow_no_interval_over_runs_and_one_no_excess() -> None:
    rng = np.random.default_rng(0)
    two = arm_excess("x", *distances(rng.random((9, 5)), {"dense": 3, "switch": 2}), long_name="x")
    assert two["excess_x_run_ci"].isnull().all()
    assert two["excess_x_ci"].notnull().all()
    one = arm_excess("x", *distances(rng.random((9, 4)), {"dense": 3, "switch": 1}), long_name="x")
    assert one.sizes["contrast"] == 0


def test_intervals_over_runs_hold_the_true_excess_more_often_than_they_need_to() -> None:
    """Arms whose seeds scatter alike: 95% intervals hold 0 in 94% or more of cases."""
    rng = np.random.default_rng(0)
    held = 0
    for _ in range(200):
        seeds = rng.standard_normal((40, 6)) * 0.5
        at = arm_excess("x", *distances(seeds, {"dense": 3, "switch": 3}), long_name="x")
        low, high = at["excess_x_run_ci"].squeeze().values
        held += low < 0 < high
    assert held >= 188
