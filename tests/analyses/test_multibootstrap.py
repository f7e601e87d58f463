import numpy as np
import pytest

from analyses.statistics.multibootstrap import multibootstrap

# 3 seeds, 4 examples; every resample enumerated
BASE = np.array([[1, 0, 1, 1], [0, 0, 1, 1], [1, 1, 0, 1]], dtype=float)
TREATMENT = np.array([[1, 1, 1, 1], [1, 0, 1, 1], [1, 1, 1, 0]], dtype=float)


@pytest.mark.parametrize(
    ("paired", "variance", "not_above_zero"),
    [(True, 0.04282407407407408, 0.2701099537037037),
     (False, 0.05092592592592592, 0.2734803669410151)],
)  # fmt: skip
def test_draws_have_the_exact_mean_and_variance(paired, variance, not_above_zero) -> None:
    found = multibootstrap(
        BASE, TREATMENT, paired=paired, n_resamples=200_000, rng=np.random.default_rng(0)
    )
    assert found.estimate == pytest.approx(1 / 6)
    assert found.draws.mean() == pytest.approx(1 / 6, abs=0.002)
    assert found.draws.var() == pytest.approx(variance, rel=0.02)
    assert (found.draws <= 1e-12).mean() == pytest.approx(not_above_zero, abs=0.005)


def test_units_of_many_tokens_count_for_more() -> None:
    rng = np.random.default_rng(0)
    count = np.array([10.0, 1.0])
    base, treatment = np.zeros((3, 2)), np.tile([10.0, 0.0], (3, 1))
    found = multibootstrap(base, treatment, count=count, paired=False, n_resamples=4000, rng=rng)
    assert found.estimate == pytest.approx(10 / 11)
    # both units the first: 1; both the second: 0; one of each: 10/11
    np.testing.assert_allclose(np.unique(found.draws.round(6)), [0, round(10 / 11, 6), 1])


@pytest.mark.parametrize(
    ("n_runs", "paired", "covered"),
    [(2, False, 0.67), (3, False, 0.78), (5, False, 0.88), (10, False, 0.93), (3, True, 0.74)],
)
def test_its_interval_is_too_narrow_for_few_runs_by_as_much_as_is_said(
    n_runs: int, paired: bool, covered: float
) -> None:
    """Variance between seeds alone."""
    rng = np.random.default_rng(0)
    n_replicates, hits = 600, 0
    for _ in range(n_replicates):
        arms = (np.tile(rng.standard_normal((n_runs, 1)), (1, 4)) for _ in range(2))
        low, high = multibootstrap(*arms, paired=paired, n_resamples=300, rng=rng).ci
        hits += bool(low <= 0 <= high)
    assert hits / n_replicates == pytest.approx(covered, abs=0.05)


def test_missing_losses_of_a_run_leave_no_interval() -> None:
    base = BASE.copy()
    base[1, 2] = np.nan
    found = multibootstrap(
        base, TREATMENT, paired=True, n_resamples=50, rng=np.random.default_rng(0)
    )
    assert np.isnan(found.estimate)
    assert np.isnan(found.ci).all()


def test_arms_that_do_not_match_are_refused() -> None:
    rng = np.random.default_rng(0)
    with pytest.raises(ValueError, match="the same units"):
        multibootstrap(BASE, TREATMENT[:, :3], paired=False, n_resamples=9, rng=rng)
    with pytest.raises(ValueError, match="paired arms the same runs"):
        multibootstrap(BASE, TREATMENT[:2], paired=True, n_resamples=9, rng=rng)
