import numpy as np
import pytest
import xarray as xr
from scipy import stats

from analyses.comparison.arm_means import arm_means, arm_ratios
from analyses.comparison.summary import PLAIN, R

ARMS = ["dense", "dense", "dense", "switch", "switch", "hash"]
N_UNITS, N_TOKENS = 7, 30


@pytest.fixture(scope="module")
def runs() -> xr.Dataset:
    return xr.Dataset(coords={"run": list("abcdef"), "arm": ("run", ARMS)})


@pytest.fixture(scope="module")
def tokens() -> tuple[np.ndarray, np.ndarray]:
    """Values (run, unit, token) and which tokens count (unit, token)."""
    rng = np.random.default_rng(0)
    return rng.gamma(2.0, 1.0, (6, N_UNITS, N_TOKENS)), rng.random((N_UNITS, N_TOKENS)) < 0.6


def _ratios(tokens: tuple[np.ndarray, np.ndarray], runs: xr.Dataset, **options) -> xr.Dataset:
    values, counted = tokens
    numerator = xr.DataArray((values * counted).sum(axis=-1).T, dims=("unit", "run"))
    denominator = xr.DataArray(counted.sum(axis=-1), dims="unit")
    return arm_ratios("x", numerator, denominator, runs, long_name="mean of x", **options)


def test_run_and_arm_are_means_over_the_counted_tokens(tokens, runs: xr.Dataset) -> None:
    values, counted = tokens
    found = _ratios(tokens, runs)
    expected = values[:, counted].mean(axis=1)
    np.testing.assert_allclose(found["run_x"], expected)
    assert found["each_arm"].values.tolist() == ["dense", "switch", "hash"]
    np.testing.assert_allclose(
        found["arm_x"], [expected[:3].mean(), expected[3:5].mean(), expected[5]]
    )
    assert found["arm_n_runs"].values.tolist() == [3, 2, 1]


def test_interval_over_units_is_that_of_deleting_each_in_turn(tokens, runs: xr.Dataset) -> None:
    values, counted = tokens
    found = _ratios(tokens, runs)
    deleted = []
    for unit in range(N_UNITS):
        kept = np.arange(N_UNITS) != unit
        deleted.append(values[:3, kept][:, counted[kept]].mean(axis=1).mean())
    error = np.sqrt((N_UNITS - 1) / N_UNITS * np.sum((deleted - np.mean(deleted)) ** 2))
    margin = stats.t.ppf(0.975, N_UNITS - 1) * error
    mean = values[:3][:, counted].mean()
    ci = found["arm_x_ci"].sel(each_arm="dense")
    np.testing.assert_allclose(ci, [mean - margin, mean + margin])


def test_interval_over_runs_is_students_and_needs_two_runs(tokens, runs: xr.Dataset) -> None:
    found = _ratios(tokens, runs, level=0.9)
    for arm, own in (("dense", slice(0, 3)), ("switch", slice(3, 5))):
        values = found["run_x"].values[own]
        expected = stats.t.interval(0.9, len(values) - 1, values.mean(), stats.sem(values))
        np.testing.assert_allclose(found["arm_x_run_ci"].sel(each_arm=arm), expected)
    assert found["arm_x_run_ci"].sel(each_arm="hash").isnull().all()


def test_measure_is_averaged_on_the_inner_scale(runs: xr.Dataset) -> None:
    z = xr.DataArray(np.linspace(0.2, 1.4, 6), dims="run")
    deleted = z + xr.DataArray(np.linspace(-0.01, 0.01, 4), dims="unit")
    found = arm_means("r", z, deleted, runs, scale=R, long_name="correlation")
    assert float(found["arm_r"][0]) == pytest.approx(np.tanh(z.values[:3].mean()))
    plain = arm_means("r", z, deleted, runs, scale=PLAIN, long_name="z")
    np.testing.assert_allclose(found["arm_r_ci"], np.tanh(plain["arm_r_ci"]))
    np.testing.assert_allclose(found["arm_r_run_ci"], np.tanh(plain["arm_r_run_ci"]))


def test_other_dimensions_are_kept(runs: xr.Dataset) -> None:
    rng = np.random.default_rng(1)
    numerator = xr.DataArray(
        rng.random((5, 6, 3)), dims=("unit", "run", "bin"), coords={"bin": [1.0, 2.0, 4.0]}
    )
    denominator = xr.DataArray(rng.integers(1, 9, (5, 3)), dims=("unit", "bin"))
    found = arm_ratios("x", numerator, denominator, runs, long_name="x")
    assert found["arm_x_ci"].dims == ("each_arm", "bin", "ci_bound")
    one = arm_ratios("x", numerator[..., 1], denominator[:, 1], runs, long_name="x")
    np.testing.assert_allclose(found["arm_x_ci"].sel(bin=2.0), one["arm_x_ci"])


def test_mean_over_no_token_is_missing(runs: xr.Dataset) -> None:
    nothing = xr.DataArray(np.zeros((4, 6)), dims=("unit", "run"))
    found = arm_ratios("x", nothing, nothing, runs, long_name="x")
    assert found["arm_x"].isnull().all()
    assert found["arm_x_ci"].isnull().all()
