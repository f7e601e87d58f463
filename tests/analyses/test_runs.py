import numpy as np
import pytest
from scipy import stats

from analyses.statistics.pairs import pair_indices
from analyses.statistics.runs import (
    contrast_without_each_run,
    jackknife_runs,
    log_r_contrast,
    mean_without_each_run,
)


def test_mean_without_a_run_leaves_out_all_its_pairs() -> None:
    rng = np.random.default_rng(0)
    matrix = rng.random((2, 5, 5))
    first, second = pair_indices(5)
    without = mean_without_each_run(matrix[:, first, second], first, second, n_runs=5)
    for run in range(5):
        kept = np.delete(np.arange(5), run)
        pairs = [(i, j) for i in kept for j in kept if i < j]
        slow = np.mean([matrix[:, i, j] for i, j in pairs], axis=0)
        np.testing.assert_allclose(without[run], slow)


def test_nothing_is_left_of_one_pair_without_a_run_of_it() -> None:
    without = mean_without_each_run(np.ones(1), np.array([0]), np.array([1]), n_runs=2)
    assert np.isnan(without).all()


def test_jackknife_of_a_mean_over_runs_is_students_interval() -> None:
    x = np.random.default_rng(0).standard_normal(6)
    deleted = (x.sum() - x) / 5
    found = jackknife_runs(x.mean(), deleted, np.zeros(6), level=0.9)
    expected = stats.ttest_1samp(x, 0).confidence_interval(0.9)
    np.testing.assert_allclose(found.ci, [expected.low, expected.high])


def test_jackknife_of_a_difference_of_arms_is_welchs_interval() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal(4), 3 * rng.standard_normal(7)
    estimate = a.mean() - b.mean()
    deleted = np.concatenate([
        (a.sum() - a) / 3 - b.mean(),
        a.mean() - (b.sum() - b) / 6,
    ])  # fmt: skip
    arm = np.array(["a"] * 4 + ["b"] * 7)
    found = jackknife_runs(np.asarray(estimate), deleted, arm)
    expected = stats.ttest_ind(a, b, equal_var=False).confidence_interval(0.95)
    np.testing.assert_allclose(found.ci, [expected.low, expected.high])


def test_runs_deleted_from_a_u_statistic_have_arvesens_variance() -> None:
    """For a product kernel the jackknife of the pairwise mean is that of its Hoeffding part."""
    a = np.random.default_rng(0).normal(1.0, 0.1, 40)
    first, second = pair_indices(40)
    values = a[first] * a[second]
    without = mean_without_each_run(values, first, second, n_runs=40)
    found = jackknife_runs(values.mean(), without, np.zeros(40))
    linear = 2 * a.mean() * a.std(ddof=1) / np.sqrt(40)
    assert found.standard_error == pytest.approx(linear, rel=0.05)


def test_one_run_of_an_arm_allows_no_interval() -> None:
    found = jackknife_runs(np.array(1.0), np.array([1.0, 1.1, 0.9]), np.array(["a", "a", "b"]))
    assert np.isnan(found.ci).all()
    assert np.isnan(found.standard_error)


def test_equal_runs_give_an_interval_of_no_width() -> None:
    found = jackknife_runs(np.array(2.0), np.full(4, 2.0), np.array(["a", "a", "b", "b"]))
    np.testing.assert_array_equal(found.ci, [2.0, 2.0])


def test_noisy_measures_of_one_thing_have_no_contrast() -> None:
    a = np.array([0.9, 0.8, 0.95, 0.6, 0.7])
    r = np.outer(a, a)
    arm = np.array([0, 0, 0, 1, 1])
    assert log_r_contrast(r, arm) == pytest.approx(0)
    # disattenuation: observed .7937 with reliabilities .7 and .9 is a true correlation of 1
    assert 0.7937253933193772 / np.sqrt(0.7 * 0.9) == pytest.approx(1.0)


@pytest.mark.parametrize("own", [1.05, 0.97])
def test_what_is_shared_inside_arms_alone_is_the_contrast(own: float) -> None:
    a = np.array([0.9, 0.8, 0.85, 0.6, 0.7])
    arm = np.array([0, 0, 0, 1, 1])
    r = np.outer(a, a) * np.where(arm[:, None] == arm, own, 1.0)
    delta = log_r_contrast(np.stack([r, r]), arm)
    np.testing.assert_allclose(delta, -np.log(own))
    np.testing.assert_allclose(log_r_contrast(r, 1 - arm), -np.log(own))


def test_contrast_without_each_run_is_that_of_the_others() -> None:
    r = 0.5 + 0.4 * np.random.default_rng(0).random((6, 6))
    r = (r + r.T) / 2
    arm = np.array([0, 1, 0, 1, 1, 0])
    without = contrast_without_each_run(r, arm)
    for run in range(6):
        kept = np.delete(np.arange(6), run)
        assert without[run] == pytest.approx(log_r_contrast(r[np.ix_(kept, kept)], arm[kept]))


def test_no_contrast_of_correlations_that_are_not_positive_or_of_single_runs() -> None:
    r = np.full((4, 4), 0.5)
    assert np.isnan(log_r_contrast(r, np.array([0, 0, 0, 1])))
    r[0, 1] = r[1, 0] = -0.1
    assert np.isnan(log_r_contrast(r, np.array([0, 0, 1, 1])))
    assert np.isnan(contrast_without_each_run(np.full((4, 4), 0.5), np.array([0, 0, 1, 1]))).all()
