import numpy as np
import pytest
from scipy import stats

from analyses.statistics.correlation import (
    average_ranks,
    document_moments,
    fisher_z,
    mean_squared_difference,
    partial_r,
    pearson_r,
    r2_interval,
)
from analyses.statistics.documents import document_slices
from analyses.statistics.resampling import leave_one_out

# four documents of (x, y) tokens, and what exact arithmetic makes of them
DOCUMENTS = (
    ((1, 2), (2, 2), (4, 5)),
    ((0, 1), (3, 2)),
    ((5, 6), (2, 4), (1, 1), (7, 5)),
    ((2, 3), (6, 9)),
)
VALUES = np.array([token for tokens in DOCUMENTS for token in tokens], dtype=float).T
LABELS = np.repeat(np.arange(4), [len(tokens) for tokens in DOCUMENTS])


def _losses(n_models: int = 4, n_tokens: int = 600) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    values = rng.gamma(2.0, 1.0, n_tokens) + rng.standard_normal((n_models, n_tokens))
    return values, rng.integers(0, 20, n_tokens)


def test_exact_case_has_its_known_correlation() -> None:
    moments = document_moments(VALUES, LABELS)
    assert pearson_r(moments.sum(axis=0))[0, 1] == pytest.approx(0.8360496271029484, rel=1e-13)


def test_weights_on_documents_act_as_repetition() -> None:
    moments = document_moments(VALUES, LABELS)
    r = pearson_r(np.tensordot([2.0, 0.0, 1.0, 1.0], moments, axes=1))[0, 1]
    assert r**2 == pytest.approx(0.7210032957217217, rel=1e-13)


def test_all_pairs_agree_with_scipy() -> None:
    values, labels = _losses()
    r = pearson_r(document_moments(values, labels).sum(axis=0))
    for i, j in np.ndindex(r.shape):
        assert r[i, j] == pytest.approx(stats.pearsonr(values[i], values[j]).statistic, rel=1e-12)


def test_first_entry_of_a_moment_matrix_counts_tokens() -> None:
    values, labels = _losses()
    np.testing.assert_array_equal(document_moments(values, labels)[:, 0, 0], np.bincount(labels))


def test_order_of_tokens_does_not_matter() -> None:
    values, labels = _losses()
    order = np.argsort(labels, kind="stable")
    np.testing.assert_allclose(
        document_moments(values, labels), document_moments(values[:, order], labels[order])
    )


def test_shift_and_scale_of_a_models_losses_do_not_matter() -> None:
    values, labels = _losses()
    moved = values * np.array([[1.0], [3.0], [0.1], [1.0]]) + np.array([[0.0], [9], [-2], [1e6]])
    before = pearson_r(document_moments(values, labels).sum(axis=0))
    after = pearson_r(document_moments(moved, labels).sum(axis=0))
    np.testing.assert_allclose(after, before, rtol=1e-9)


def test_float32_losses_far_from_zero_keep_their_digits() -> None:
    values, labels = _losses()
    stored = (values + 1000).astype(np.float32)
    expected = np.corrcoef(stored.astype(np.float64))
    actual = pearson_r(document_moments(stored, labels).sum(axis=0))
    np.testing.assert_allclose(actual, expected, rtol=1e-10)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_value_that_is_not_finite_spoils_its_own_row_only(bad: float) -> None:
    values, labels = _losses()
    clean = pearson_r(document_moments(values, labels).sum(axis=0))
    values[1, 7] = bad
    r = pearson_r(document_moments(values, labels).sum(axis=0))
    assert np.isnan(r[1]).all()
    assert np.isnan(r[:, 1]).all()
    np.testing.assert_array_equal(
        np.delete(np.delete(r, 1, 0), 1, 1), clean[[0, 2, 3]][:, [0, 2, 3]]
    )


@pytest.mark.parametrize("constant", [0.0, 0.1, 1e8])
def test_constant_losses_have_no_correlation(constant: float) -> None:
    values, labels = _losses()
    values[2] = constant
    r = pearson_r(document_moments(values, labels).sum(axis=0))
    assert np.isnan(r[2]).all()
    assert np.isfinite(r[0, 1])


def test_equal_losses_have_a_finite_z() -> None:
    values, labels = _losses()
    values[1] = values[0]
    z = fisher_z(pearson_r(document_moments(values, labels).sum(axis=0)))
    assert np.isfinite(z).all()
    assert np.tanh(z[0, 1]) == pytest.approx(1.0, abs=1e-12)


def test_interval_of_r2_starts_at_zero_where_r_may_have_either_sign() -> None:
    ci = r2_interval(np.arctanh([[0.2, 0.5], [-0.5, -0.2], [-0.1, 0.3], [-0.4, 0.1]]))
    np.testing.assert_allclose(ci, [[0.04, 0.25], [0.04, 0.25], [0.0, 0.09], [0.0, 0.16]])


def test_labels_must_cover_every_token_and_number() -> None:
    with pytest.raises(ValueError, match=r"shape \(3,\) for 11 tokens"):
        document_moments(VALUES, LABELS[:3])
    with pytest.raises(ValueError, match="document 1 of 3 has no token"):
        document_slices(np.array([0, 2]), n_tokens=2)
    with pytest.raises(ValueError, match="no tokens"):
        document_slices(np.array([], dtype=int), n_tokens=0)


def test_pearson_of_ranks_is_spearman() -> None:
    values, labels = _losses()
    values[1] = np.round(values[1])  # ties
    r = pearson_r(document_moments(average_ranks(values), labels).sum(axis=0))
    for i, j in np.ndindex(r.shape):
        assert r[i, j] == pytest.approx(stats.spearmanr(values[i], values[j]).statistic, rel=1e-12)
    exact = pearson_r(document_moments(average_ranks(VALUES), LABELS).sum(axis=0))
    assert exact[0, 1] == pytest.approx(0.874128248948431, rel=1e-13)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_ranks_are_those_of_scipy(dtype: type) -> None:
    values = np.random.default_rng(0).integers(-9, 9, (3, 500)).astype(dtype) / 7
    values[2] = 1.0
    np.testing.assert_array_equal(average_ranks(values), stats.rankdata(values, axis=-1))


def test_ranks_of_a_row_that_is_not_finite_are_missing() -> None:
    values, _ = _losses()
    values[2, 5] = np.inf
    ranks = average_ranks(values)
    assert np.isnan(ranks[2]).all()
    assert np.isfinite(ranks[[0, 1, 3]]).all()


def test_squared_differences_survive_the_centring() -> None:
    values, labels = _losses()
    values += np.array([[0.0], [3.0], [-1.0], [1e3]])
    moments = document_moments(values, labels)
    slow = ((values[:, None] - values) ** 2).mean(axis=-1)
    mean = values.mean(axis=-1)
    actual = mean_squared_difference(moments.sum(axis=0), mean)
    np.testing.assert_allclose(actual, slow, rtol=1e-9, atol=1e-9)
    kept = labels != 4
    without = mean_squared_difference(moments.sum(axis=0) - moments[4], mean)
    slow = ((values[:, None, kept] - values[:, kept]) ** 2).mean(axis=-1)
    np.testing.assert_allclose(without, slow, rtol=1e-9, atol=1e-9)


def _residuals(rows: np.ndarray, controls: np.ndarray) -> np.ndarray:
    design = np.concatenate([np.ones((1, rows.shape[1])), controls]).T
    return rows - (design @ np.linalg.lstsq(design, rows.T, rcond=None)[0]).T


def test_partial_correlation_is_that_of_least_squares_residuals() -> None:
    values, labels = _losses(n_models=6)
    moments = document_moments(values, labels).sum(axis=0)
    for n_controls in (0, 1, 3):
        m = 6 - n_controls
        expected = np.corrcoef(_residuals(values[:m], values[m:]))
        actual = partial_r(moments, n_controls=n_controls)
        np.testing.assert_allclose(actual, expected, rtol=1e-10)


def test_partial_correlation_without_each_document_is_that_of_the_others() -> None:
    values, labels = _losses(n_models=6)
    deleted = partial_r(leave_one_out(document_moments(values, labels)), n_controls=3)
    for document in range(20):
        kept = values[:, labels != document]
        expected = np.corrcoef(_residuals(kept[:3], kept[3:]))
        np.testing.assert_allclose(deleted[document], expected, rtol=1e-9)


def test_powers_of_a_control_of_any_scale_keep_their_digits() -> None:
    values, labels = _losses(n_models=3)
    surprisal = np.random.default_rng(1).normal(10.0, 1.0, 600)
    controls = np.stack([surprisal, surprisal**2, 1e-6 * surprisal**3, 1e6 * np.arange(600)])
    moments = document_moments(np.concatenate([values + 0.3 * surprisal, controls]), labels)
    z = (controls - controls.mean(axis=1, keepdims=True)) / controls.std(axis=1, keepdims=True)
    expected = np.corrcoef(_residuals(values, z))
    np.testing.assert_allclose(partial_r(moments.sum(axis=0), n_controls=4), expected, rtol=1e-7)


def test_a_control_that_varies_in_one_document_drops_out_without_it() -> None:
    values, labels = _losses(n_models=3)
    control = np.where(labels == 4, np.random.default_rng(1).standard_normal(600), 0.7)
    moments = document_moments(np.concatenate([values, control[None]]), labels)
    deleted = partial_r(leave_one_out(moments), n_controls=1)
    np.testing.assert_allclose(deleted[4], np.corrcoef(values[:, labels != 4]), rtol=1e-10)


def test_a_control_that_is_not_finite_leaves_nothing() -> None:
    values, labels = _losses()
    values[3, 9] = np.nan
    assert np.isnan(partial_r(document_moments(values, labels).sum(axis=0), n_controls=1)).all()


def test_partial_correlation_of_a_common_cause_is_near_zero() -> None:
    rng = np.random.default_rng(0)
    cause = rng.standard_normal(20_000)
    values = np.stack([cause + rng.standard_normal(20_000), cause + rng.standard_normal(20_000)])
    rows = np.concatenate([values, cause[None]])
    moments = document_moments(rows, np.zeros(20_000, dtype=int)).sum(axis=0)
    assert pearson_r(moments)[0, 1] == pytest.approx(0.5, abs=0.02)
    assert abs(partial_r(moments, n_controls=1)[0, 1]) < 0.02


@pytest.mark.parametrize("extra", ["constant", "copy", "sum"])
def test_a_control_with_nothing_of_its_own_changes_nothing(extra: str) -> None:
    values, labels = _losses(n_models=5)
    useless = {"constant": np.full(600, 3.0), "copy": values[3], "sum": values[3] - 2 * values[4]}
    before = partial_r(document_moments(values, labels).sum(axis=0), n_controls=2)
    rows = np.concatenate([values, useless[extra][None]])
    after = partial_r(document_moments(rows, labels).sum(axis=0), n_controls=3)
    np.testing.assert_allclose(after, before, rtol=1e-9)


def test_a_row_that_the_controls_explain_has_no_partial_correlation() -> None:
    values, labels = _losses()
    values[1] = 2 * values[3] - 1
    r = partial_r(document_moments(values, labels).sum(axis=0), n_controls=1)
    assert np.isnan(r[1]).all()
    assert np.isfinite(r[0, 2])
