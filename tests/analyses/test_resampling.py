import numpy as np
import pytest
from scipy import stats

from analyses.statistics.correlation import document_moments, fisher_z, pearson_r
from analyses.statistics.resampling import (
    bootstrap,
    bootstrap_weights,
    jackknife,
    leave_one_out,
)

VALUES = np.array(
    [(1, 2), (2, 2), (4, 5), (0, 1), (3, 2), (5, 6), (2, 4), (1, 1), (7, 5), (2, 3), (6, 9)],
    dtype=float,
).T
LABELS = np.array([0, 0, 0, 1, 1, 2, 2, 2, 2, 3, 3])


def _z(values: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    moments = document_moments(values, labels)
    return (
        fisher_z(pearson_r(moments.sum(axis=0))),
        fisher_z(pearson_r(leave_one_out(moments))),
    )


def test_exact_case_has_its_known_error_and_interval() -> None:
    z, deleted = _z(VALUES, LABELS)
    np.testing.assert_allclose(
        np.tanh(deleted[:, 0, 1]),
        [0.8184079555762492, 0.8291561975888501, 0.9198284282133259, 0.8348761287693746],
        rtol=1e-12,
    )
    found = jackknife(z[0, 1], deleted[:, 0, 1])
    assert found.standard_error == pytest.approx(0.30727920014769755, rel=1e-12)
    np.testing.assert_allclose(
        np.tanh(found.ci), [0.22603248605552084, 0.9750532462474969], rtol=1e-12
    )


def test_leaving_a_document_out_equals_computing_without_it() -> None:
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(9), rng.integers(2, 30, 9))
    values = rng.gamma(2.0, 1.0, len(labels)) + rng.standard_normal((3, len(labels)))
    _, deleted = _z(values, labels)
    for d in range(9):
        kept = values[:, labels != d]
        slow = np.arctanh(stats.pearsonr(kept[0], kept[2]).statistic)
        assert deleted[d, 0, 2] == pytest.approx(slow, rel=1e-10)


def test_jackknife_of_a_mean_is_students_interval() -> None:
    x = np.random.default_rng(0).standard_normal(12)
    found = jackknife(x.mean(), leave_one_out(x) / 11, level=0.9)
    expected = stats.ttest_1samp(x, 0).confidence_interval(0.9)
    np.testing.assert_allclose(found.ci, [expected.low, expected.high])


def test_mean_over_pairs_deletes_the_same_document_from_all() -> None:
    rng = np.random.default_rng(0)
    shared = rng.standard_normal((10, 1))
    deleted = np.concatenate([shared, -shared], axis=1)
    assert jackknife(np.zeros(()), deleted.mean(axis=1)).standard_error == pytest.approx(0.0)
    assert (jackknife(np.zeros(2), deleted).standard_error > 0.5).all()


def test_one_document_allows_no_interval() -> None:
    for refused in (
        lambda: leave_one_out(np.ones((1, 3))),
        lambda: jackknife(np.ones(3), np.ones((1, 3))),
        lambda: bootstrap_weights(1, n_resamples=5, rng=np.random.default_rng(0)),
    ):
        with pytest.raises(ValueError, match="at least 2, the data have 1; add works"):
            refused()


def test_interval_covers_the_truth_and_one_over_tokens_does_not() -> None:
    # tokens of a document share an effect: x = a_d + e_t, y likewise, both parts correlated
    rng = np.random.default_rng(0)
    n_replicates, n_documents, n_tokens = 2000, 50, 8
    between, within = (np.linalg.cholesky([[1, r], [r, 1]]) for r in (0.8, 0.4))
    truth = np.arctanh((0.8 * 4 + 0.4) / 5)
    effects = 2 * rng.standard_normal((n_replicates, n_documents, 1, 2)) @ between.T
    tokens = rng.standard_normal((n_replicates, n_documents, n_tokens, 2)) @ within.T
    values = np.moveaxis((effects + tokens).reshape(n_replicates, -1, 2), -1, 1)
    labels = np.repeat(np.arange(n_documents), n_tokens)
    hits = token_hits = 0
    for replicate in values:
        z, deleted = _z(replicate, labels)
        low, high = jackknife(z[0, 1], deleted[:, 0, 1]).ci
        hits += low <= truth <= high
        margin = 1.96 / np.sqrt(n_documents * n_tokens - 3)
        token_hits += abs(z[0, 1] - truth) <= margin
    assert 1874 <= hits <= 1924  # 95%, two-sided test at the 1% level
    assert token_hits < 0.75 * n_replicates


def _r2(moments: np.ndarray) -> np.ndarray:
    return pearson_r(moments)[..., 0, 1] ** 2


def _all_resamples(n: int) -> np.ndarray:
    """Weights of every ordered resample of n units, (n^n, n)."""
    chosen = np.stack(np.meshgrid(*[np.arange(n)] * n, indexing="ij"), axis=-1).reshape(-1, n)
    return (chosen[..., None] == np.arange(n)).sum(axis=1).astype(float)


def test_exact_cluster_bootstrap_has_its_known_distribution() -> None:
    moments = document_moments(VALUES, LABELS)
    found = bootstrap(moments, _r2, weights=_all_resamples(4))
    assert found.estimate == pytest.approx(0.6989789789789791, rel=1e-12)
    assert found.draws.mean() == pytest.approx(0.7336082387462856, rel=1e-12)
    assert found.draws.std() == pytest.approx(0.0929989385585535, rel=1e-12)
    np.testing.assert_allclose(found.ci, [0.6136363636363636, 0.95007183908046], rtol=1e-12)


def test_exact_bca_has_its_known_interval() -> None:
    moments = document_moments(VALUES, LABELS)
    found = bootstrap(moments, _r2, weights=_all_resamples(4), method="bca")
    np.testing.assert_allclose(found.ci, [0.5894797438296038, 0.9191891294741498], rtol=1e-9)


def test_weights_draw_as_many_units_as_there_are_evenly() -> None:
    weights = bootstrap_weights(10, n_resamples=4000, rng=np.random.default_rng(0))
    assert (weights.sum(axis=1) == 10).all()
    np.testing.assert_allclose(weights.mean(axis=0), 1, atol=0.06)
    np.testing.assert_allclose(weights.var(axis=0), 0.9, atol=0.1)


# a published sample; its intervals by R's boot at a million resamples
SAMPLE = [10, 12, 12.5, 12.5, 13.9, 15, 21, 22, 23, 34, 50, 81, 89, 121, 134, 213]


def _mean(sums: np.ndarray) -> np.ndarray:
    return sums[..., 1] / sums[..., 0]


@pytest.mark.parametrize(
    ("method", "expected"), [("percentile", [28.86, 84.21]), ("bca", [32.31, 91.43])]
)
def test_intervals_of_a_mean_agree_with_r(method, expected) -> None:
    sums = np.stack([np.ones(16), np.array(SAMPLE)], axis=-1)
    weights = bootstrap_weights(16, n_resamples=200_000, rng=np.random.default_rng(0))
    ci = bootstrap(sums, _mean, weights=weights, method=method).ci
    np.testing.assert_allclose(ci, expected, rtol=0.01)


@pytest.mark.parametrize("method", ["percentile", "bca"])
def test_interval_of_a_mean_is_that_of_scipy(method: str) -> None:
    """Units of one token: the same distribution of resamples, drawn by other code."""
    x = np.random.default_rng(0).gamma(2.0, 1.0, 40)
    weights = bootstrap_weights(40, n_resamples=50_000, rng=np.random.default_rng(1))
    sums = np.stack([np.ones(40), x], axis=-1)
    ours = bootstrap(sums, _mean, weights=weights, method=method, level=0.9)
    theirs = stats.bootstrap(
        (x,), np.mean, confidence_level=0.9, n_resamples=50_000, method=method,
        rng=np.random.default_rng(2),
    )  # fmt: skip
    spread = theirs.standard_error
    np.testing.assert_allclose(ours.ci, theirs.confidence_interval, atol=0.03 * spread)
    assert ours.draws.std() == pytest.approx(spread, rel=0.02)


def test_resamples_of_one_unit_alone_do_not_narrow_bootstrap_t() -> None:
    """A ninth of the resamples of three units have no spread, so its interval has no end."""
    sums = np.stack([np.ones(3), np.array([1.0, 2.0, 4.0])], axis=-1)
    ci = bootstrap(sums, _mean, weights=_all_resamples(3), method="t").ci
    assert not np.isfinite(ci).any()


@pytest.mark.parametrize("method", ["percentile", "t", "bca"])
def test_a_missing_estimate_has_no_bootstrap_interval_and_spoils_no_other(method: str) -> None:
    rng = np.random.default_rng(0)
    sums = np.stack([np.ones((12, 2)), rng.gamma(2.0, 1.0, (12, 2))], axis=-1)
    sums[:, 1, 1] = np.nan
    weights = bootstrap_weights(12, n_resamples=200, rng=rng)
    ci = bootstrap(sums, _mean, weights=weights, method=method).ci
    assert np.isnan(ci[1]).all()
    alone = bootstrap(sums[:, 0], _mean, weights=weights, method=method).ci
    np.testing.assert_allclose(ci[0], alone)


def test_an_estimate_beyond_all_draws_has_no_bca_interval() -> None:
    """A maximum: no draw lies above the estimate, so that its bias is infinite."""

    def largest(sums: np.ndarray) -> np.ndarray:
        return (sums > 0).sum(axis=-1).astype(float)

    weights = bootstrap_weights(8, n_resamples=200, rng=np.random.default_rng(0))
    weights[(weights > 0).all(axis=1)] = np.eye(8)[0] * 8
    assert np.isnan(bootstrap(np.eye(8), largest, weights=weights, method="bca").ci).all()


def test_percentiles_of_few_documents_are_narrower_than_the_jackknife() -> None:
    rng = np.random.default_rng(0)
    truth, n_replicates = np.arctanh(0.5), 400
    hits = dict.fromkeys(("jackknife", "percentile", "t"), 0)
    mixing = np.linalg.cholesky([[1, 0.5], [0.5, 1]])
    for _ in range(n_replicates):
        values = mixing @ rng.standard_normal((2, 80))
        moments = document_moments(values, np.repeat(np.arange(10), 8))
        weights = bootstrap_weights(10, n_resamples=200, rng=rng)
        found = {
            m: bootstrap(moments, _z01, weights=weights, method=m) for m in ("percentile", "t")
        }
        found["jackknife"] = jackknife(_z01(moments.sum(axis=0)), _z01(leave_one_out(moments)))
        for name, interval in found.items():
            hits[name] += bool(interval.ci[0] <= truth <= interval.ci[1])
    # of 380 expected; two-sided 1% acceptance is 368 to 390
    assert hits["percentile"] < 360
    assert 368 <= hits["jackknife"] <= 390
    assert hits["percentile"] + 10 < hits["t"]


def _z01(moments: np.ndarray) -> np.ndarray:
    return fisher_z(pearson_r(moments))[..., 0, 1]


def test_bootstrap_t_is_that_of_a_slow_loop() -> None:
    rng = np.random.default_rng(0)
    x = rng.gamma(2.0, 1.0, 15)
    sums = np.stack([np.ones(15), x], axis=-1)
    weights = bootstrap_weights(15, n_resamples=3000, rng=rng)
    ci = bootstrap(sums, _mean, weights=weights, method="t").ci
    t = []
    for w in weights.astype(int):
        sample = np.repeat(x, w)
        t.append((sample.mean() - x.mean()) / (sample.std(ddof=1) / np.sqrt(15)))
    high, low = np.quantile(t, [0.025, 0.975])
    error = x.std(ddof=1) / np.sqrt(15)
    np.testing.assert_allclose(ci, [x.mean() - low * error, x.mean() - high * error], rtol=1e-9)


@pytest.mark.parametrize("method", ["percentile", "t", "bca"])
def test_every_bootstrap_of_many_pairs_is_that_of_each_pair(method: str) -> None:
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(12), 6)
    values = rng.gamma(2.0, 1.0, 72) + rng.standard_normal((3, 72))
    moments = document_moments(values, labels)
    weights = bootstrap_weights(12, n_resamples=300, rng=rng)
    together = bootstrap(moments, lambda m: fisher_z(pearson_r(m)), weights=weights, method=method)
    alone = bootstrap(
        document_moments(values[[0, 2]], labels),
        lambda m: fisher_z(pearson_r(m))[..., 0, 1],
        weights=weights,
        method=method,
    )
    np.testing.assert_allclose(together.ci[0, 2], alone.ci, rtol=1e-9)
    np.testing.assert_allclose(together.draws[:, 0, 2], alone.draws, rtol=1e-9)


def test_bootstrap_t_of_a_correlation_deletes_only_units_that_a_resample_holds() -> None:
    """Without the wide unit, a resample that never held it would have negative variances."""
    rng = np.random.default_rng(0)
    values = rng.standard_normal((2, 6, 5)) + rng.standard_normal((6, 5))
    values[:, 2] *= 20
    moments = document_moments(values.reshape(2, -1), np.repeat(np.arange(6), 5))
    weights = bootstrap_weights(6, n_resamples=80, rng=rng)
    t = []
    for w in weights.astype(int):
        sample = np.repeat(moments, w, axis=0)
        deleted = _z01(leave_one_out(sample))
        error = np.sqrt(5 / 6 * ((deleted - deleted.mean()) ** 2).sum())
        t.append((_z01(sample.sum(axis=0)) - _z01(moments.sum(axis=0))) / error)
    found = jackknife(_z01(moments.sum(axis=0)), _z01(leave_one_out(moments)))
    expected = found.estimate - np.quantile(t, [0.975, 0.025]) * found.standard_error
    ci = bootstrap(moments, _z01, weights=weights, method="t").ci
    np.testing.assert_allclose(ci, expected, rtol=1e-9)
