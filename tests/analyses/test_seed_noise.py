import numpy as np
import pytest
from scipy import stats

from analyses.statistics.seed_noise import beyond_noise, chance_share, critical_values


def _groups(n_first: int, n_second: int, *, shift: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    spread = rng.gamma(2.0, 1.0, 4000)
    first = shift + spread * rng.standard_normal((n_first, 4000))
    return first, 2 * spread * rng.standard_normal((n_second, 4000))


@pytest.mark.parametrize("n_runs", [(2, 2), (2, 4), (4, 4), (3, 9)])
def test_it_is_welchs_test_but_for_values_next_to_the_limit(n_runs: tuple[int, int]) -> None:
    first, second = _groups(*n_runs, shift=1.5)
    found = beyond_noise(first, second)
    scipys = stats.ttest_ind(first, second, equal_var=False)
    limit = stats.t.ppf(0.975, scipys.df)
    np.testing.assert_array_equal(found[np.abs(scipys.statistic) < limit], False)
    np.testing.assert_array_equal(found[np.abs(scipys.statistic) > 1.03 * limit], True)
    assert 0.05 < found.mean() < 0.95


def test_quantiles_at_whole_degrees_of_freedom_are_exact() -> None:
    known = [12.7062, 4.3027, 3.1824, 2.7764]
    np.testing.assert_allclose(critical_values(6), known, atol=1e-4)


@pytest.mark.parametrize(
    ("n_runs", "low", "high"),
    [((2, 2), 0.015, 0.03), ((4, 4), 0.035, 0.05), ((20, 20), 0.045, 0.055)],
)
def test_chance_is_5_percent_with_many_runs_and_less_with_few(
    n_runs: tuple[int, int], low: float, high: float
) -> None:
    assert low < chance_share(*n_runs) < high


def test_chance_at_another_level() -> None:
    assert chance_share(20, 20, level=0.8) == pytest.approx(0.2, abs=0.01)


def test_runs_that_do_not_differ_are_not_beyond_noise() -> None:
    same = np.ones((3, 5))
    assert not beyond_noise(same, same).any()


def test_order_of_runs_and_of_groups_does_not_matter() -> None:
    first, second = _groups(3, 4, shift=1.0)
    found = beyond_noise(first, second)
    np.testing.assert_array_equal(found, beyond_noise(second, first[::-1]))
