import numpy as np
import pytest

from analyses.statistics.permutation import document_permutations, permutation_p


def test_every_row_is_an_order_of_all_documents() -> None:
    orders = document_permutations(7, n_resamples=50, rng=np.random.default_rng(0))
    np.testing.assert_array_equal(np.sort(orders, axis=1), np.tile(np.arange(7), (50, 1)))
    assert len(np.unique(orders, axis=0)) > 40


def test_p_counts_the_observed_value_among_the_draws() -> None:
    null = np.arange(9.0)[:, None]
    np.testing.assert_allclose(permutation_p(np.array([8.5]), null), 1 / 10)
    np.testing.assert_allclose(permutation_p(np.array([7.0]), null), 3 / 10)
    np.testing.assert_allclose(permutation_p(np.array([-1.0]), null), 1.0)


def test_draw_equal_but_for_rounding_counts_as_reached() -> None:
    assert permutation_p(np.array(0.1 + 0.2), np.array([0.3])) == 1.0


def test_missing_value_has_no_p() -> None:
    assert np.isnan(permutation_p(np.array(np.nan), np.full(5, np.nan)))


def test_too_few_documents_or_draws_are_refused() -> None:
    rng = np.random.default_rng(0)
    with pytest.raises(ValueError, match="at least 2, the data have 1"):
        document_permutations(1, n_resamples=10, rng=rng)
    with pytest.raises(ValueError, match="n_resamples is 0"):
        document_permutations(5, n_resamples=0, rng=rng)
