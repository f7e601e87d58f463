import numpy as np
import pytest
from scipy import stats

from analyses.statistics.bands import simultaneous
from analyses.statistics.resampling import Jackknife, jackknife, leave_one_out


def curve(values: np.ndarray) -> Jackknife:
    """Jackknife of the mean of each column, (unit, place)."""
    return jackknife(values.mean(axis=0), leave_one_out(values) / (len(values) - 1))


def band(found: Jackknife, **keywords) -> tuple[np.ndarray, np.ndarray]:
    settings = {"n_resamples": 20_000, "rng": np.random.default_rng(0)} | keywords
    return simultaneous(found, **settings)


def test_band_of_one_place_is_the_pointwise_interval() -> None:
    found = curve(np.random.default_rng(0).standard_normal((15, 1)))
    ci, critical = band(found)
    assert critical.item() == pytest.approx(stats.t.ppf(0.975, 14), rel=0.03)
    np.testing.assert_allclose(ci, found.ci, rtol=0.03)


def test_places_that_move_together_need_no_wider_band() -> None:
    one = np.random.default_rng(0).standard_normal((15, 1))
    _, critical = band(curve(np.tile(one, (1, 20)) * np.arange(1, 21)))
    assert critical.item() == pytest.approx(stats.t.ppf(0.975, 14), rel=0.03)


def test_independent_places_need_the_quantile_of_the_largest_t() -> None:
    """With many units, max |t| of 20 independent places is that of 20 normals."""
    found = curve(np.random.default_rng(0).standard_normal((800, 20)))
    _, critical = band(found)
    expected = stats.norm.ppf((1 + 0.95 ** (1 / 20)) / 2)
    assert critical.item() == pytest.approx(expected, rel=0.02)


def test_curves_have_bands_of_their_own_along_the_axis() -> None:
    rng = np.random.default_rng(0)
    together = np.tile(rng.standard_normal((30, 1)), (1, 8))
    apart = rng.standard_normal((30, 8))
    values = np.stack([together, apart], axis=1)
    ci, critical = band(curve(values), axis=-1)
    assert ci.shape == (2, 8, 2)
    assert critical.shape == (2, 1)
    assert critical[0, 0] < critical[1, 0] - 0.3
    _, swapped = band(curve(np.swapaxes(values, 1, 2)), axis=0)
    np.testing.assert_allclose(swapped.T, critical, rtol=0.05)


def test_missing_places_have_no_band_and_widen_no_other() -> None:
    values = np.random.default_rng(0).standard_normal((20, 5))
    _, critical = band(curve(values))
    values[:, 2] = np.nan
    ci, fewer = band(curve(values))
    assert np.isnan(ci[2]).all()
    assert np.isfinite(np.delete(ci, 2, axis=0)).all()
    assert fewer.item() <= critical.item()


def test_no_draws_make_a_band_narrower_than_the_pointwise_interval() -> None:
    found = curve(np.random.default_rng(0).standard_normal((15, 3)))
    for seed in range(20):
        rng = np.random.default_rng(seed)
        ci, _ = simultaneous(found, level=0.9, n_resamples=3, rng=rng)
        narrow = jackknife(found.estimate, found.deleted, level=0.9).ci
        assert (ci[:, 0] <= narrow[:, 0]).all()
        assert (ci[:, 1] >= narrow[:, 1]).all()


def test_band_covers_a_whole_curve_and_pointwise_intervals_do_not() -> None:
    rng = np.random.default_rng(0)
    n_units, n_places, n_replicates = 20, 12, 1000
    hits = pointwise = 0
    for _ in range(n_replicates):
        walk = rng.standard_normal((n_units, n_places)).cumsum(axis=1)
        found = curve(walk)
        ci, _ = simultaneous(found, n_resamples=300, rng=rng)
        hits += bool(((ci[:, 0] <= 0) & (ci[:, 1] >= 0)).all())
        pointwise += bool(((found.ci[:, 0] <= 0) & (found.ci[:, 1] >= 0)).all())
    assert 930 <= hits <= 968
    assert pointwise < 900
