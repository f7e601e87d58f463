import numpy as np
import pytest
from scipy import stats

from analyses.statistics.correlation import document_moments, fisher_z, pearson_r
from analyses.statistics.resampling import jackknife, leave_one_out

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
    with pytest.raises(ValueError, match="at least 2 documents, the data have 1"):
        leave_one_out(np.ones((1, 3)))
    with pytest.raises(ValueError, match="at least 2 documents, the data have 1"):
        jackknife(np.ones(3), np.ones((1, 3)))


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
