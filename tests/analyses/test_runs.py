import numpy as np
import pytest
from scipy import stats

from analyses.statistics.pairs import pair_indices
from analyses.statistics.resampling import Jackknife
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


def difference_of_means(a: np.ndarray, b: np.ndarray) -> Jackknife:
    deleted = np.concatenate([
        (a.sum() - a) / (len(a) - 1) - b.mean(),
        a.mean() - (b.sum() - b) / (len(b) - 1),
    ])  # fmt: skip
    arm = np.array(["a"] * len(a) + ["b"] * len(b))
    return jackknife_runs(np.asarray(a.mean() - b.mean()), deleted, arm)


def test_jackknife_of_a_difference_of_equal_arms_is_welchs_interval() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal(5), 3 * rng.standard_normal(5)
    expected = stats.ttest_ind(a, b, equal_var=False).confidence_interval(0.95)
    np.testing.assert_allclose(difference_of_means(a, b).ci, [expected.low, expected.high])


def test_a_large_arm_lends_a_small_one_no_degrees_of_freedom() -> None:
    rng = np.random.default_rng(0)
    a, b = 0.1 * rng.standard_normal(3), rng.standard_normal(10)
    found = difference_of_means(a, b)
    welch = stats.ttest_ind(a, b, equal_var=False)
    assert welch.df > 8
    assert found.standard_error == pytest.approx((a.mean() - b.mean()) / welch.statistic)
    margin = stats.t.ppf(0.975, 4) * found.standard_error  # as for three runs in both arms
    np.testing.assert_allclose(found.ci, found.estimate + margin * np.array([-1, 1]))


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


@pytest.mark.parametrize(
    ("between", "within", "corrected"),
    [
        (0.7937253933193772, (0.7, 0.9), 1.0),
        (0.5, (0.8, 0.7), 0.6681531047810609),
        (0.9, (0.8, 0.8), 1.125),  # sampling error may put it above 1; it is not clipped
    ],
)
def test_contrast_is_the_correction_for_attenuation(between, within, corrected) -> None:
    arm = np.array([0, 1, 0, 1, 1])
    r = np.where(arm[:, None] == arm, np.array(within)[arm], between)
    assert np.exp(log_r_contrast(r, arm)) == pytest.approx(corrected, rel=1e-12)


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


def correlations(
    arm: np.ndarray, rng: np.random.Generator, *, own: float = 0.0, n_replicates: int = 2000
) -> np.ndarray:
    """Correlations (replicate, run, run) of L_m(t) = T(t) + A_arm(t) + e_m(t), one text for all.

    The second arm is noisier, and seeds differ in how noisy they are. A has standard deviation own.
    """
    text = np.random.default_rng(3).standard_normal((3, 100))
    noise = np.array([0.4, 0.7])[arm] * np.exp(0.2 * rng.standard_normal((n_replicates, len(arm))))
    losses = text[0] + own * text[1:][arm] + noise[..., None] * rng.standard_normal(
        (n_replicates, len(arm), 100)
    )  # fmt: skip
    losses -= losses.mean(axis=-1, keepdims=True)
    losses /= np.sqrt((losses**2).sum(axis=-1, keepdims=True))
    return losses @ np.swapaxes(losses, -1, -2)


def mean_of_pairs(r: np.ndarray, arm: np.ndarray, n_second: int) -> tuple[np.ndarray, np.ndarray]:
    """Mean z of the pairs that have `n_second` runs of the second arm, and without each run."""
    first, second = pair_indices(len(arm))
    chosen = arm[first] + arm[second] == n_second
    first, second = first[chosen], second[chosen]
    z = np.arctanh(r[:, first, second])
    return z.mean(axis=-1), mean_without_each_run(z, first, second, n_runs=len(arm))


def hits(found: Jackknife, truth: float) -> int:
    return int(((found.ci[:, 0] <= truth) & (truth <= found.ci[:, 1])).sum())


# means of pairs are unbiased whatever the number of runs, so that many runs tell the truth
MANY = np.repeat([0, 1], 10)


@pytest.mark.parametrize("n_runs", [3, 5, 10])
def test_interval_of_an_arm_covers_what_other_seeds_would_give_and_one_of_pairs_does_not(
    n_runs: int,
) -> None:
    rng = np.random.default_rng(0)
    truth = mean_of_pairs(correlations(MANY, rng), MANY, 2)[0].mean()
    arm = np.ones(n_runs, dtype=int)
    r = correlations(arm, rng)
    assert 1874 <= hits(jackknife_runs(*mean_of_pairs(r, arm, 2), arm), truth) <= 1935
    pairs = np.arctanh(r[:, *pair_indices(n_runs)])
    n_pairs = pairs.shape[1]
    margin = stats.t.ppf(0.975, n_pairs - 1) * pairs.std(axis=1, ddof=1) / np.sqrt(n_pairs)
    assert (np.abs(pairs.mean(axis=1) - truth) <= margin).mean() < 0.87


@pytest.mark.parametrize("counts", [(2, 2), (3, 3), (6, 6), (3, 6), (6, 3)])
def test_interval_of_two_arms_covers_what_other_seeds_would_give(counts: tuple[int, int]) -> None:
    rng = np.random.default_rng(0)
    truth = mean_of_pairs(correlations(MANY, rng), MANY, 1)[0].mean()
    arm = np.repeat([0, 1], counts)
    found = jackknife_runs(*mean_of_pairs(correlations(arm, rng), arm, 1), arm)
    assert 1874 <= hits(found, truth) <= 1970


@pytest.mark.parametrize("own", [0.0, 0.3])
@pytest.mark.parametrize("counts", [(3, 3), (4, 8)])
def test_interval_of_the_contrast_errs_on_the_wide_side(counts: tuple[int, int], own) -> None:
    """Pairs have noise of their own beside that of their runs; deleting runs counts it twice."""
    rng = np.random.default_rng(0)
    truth = log_r_contrast(correlations(MANY, rng, own=own), MANY).mean()
    arm = np.repeat([0, 1], counts)
    r = correlations(arm, rng, own=own)
    found = jackknife_runs(log_r_contrast(r, arm), contrast_without_each_run(r, arm), arm)
    assert 1900 <= hits(found, truth) < 2000
