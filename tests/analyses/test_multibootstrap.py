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


def test_its_interval_is_too_narrow_for_two_runs_and_near_the_level_for_ten() -> None:
    """Variance between seeds alone: a percentile interval of two runs cannot hold its level."""
    rng = np.random.default_rng(0)
    hits = dict.fromkeys((2, 10), 0)
    for n_runs in hits:
        for _ in range(600):
            base, treatment = (np.tile(rng.standard_normal((n_runs, 1)), (1, 8)) for _ in range(2))
            ci = multibootstrap(base, treatment, paired=False, n_resamples=300, rng=rng).ci
            hits[n_runs] += bool(ci[0] <= 0 <= ci[1])
    assert hits[2] < 0.8 * 600
    assert hits[10] > 0.88 * 600


def test_arms_that_do_not_match_are_refused() -> None:
    rng = np.random.default_rng(0)
    with pytest.raises(ValueError, match="the same units"):
        multibootstrap(BASE, TREATMENT[:, :3], paired=False, n_resamples=9, rng=rng)
    with pytest.raises(ValueError, match="paired arms the same runs"):
        multibootstrap(BASE, TREATMENT[:2], paired=True, n_resamples=9, rng=rng)
