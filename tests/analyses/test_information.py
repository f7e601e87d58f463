import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import adjusted_mutual_info_score, mutual_info_score

from analyses.statistics.information import (
    adjusted_mutual_information,
    conditional_information,
    conditional_miller_madow,
    contingency,
    entropy,
    miller_madow,
    mutual_information,
    share_beyond_chance,
)


def test_uniform_counts_have_maximal_entropy() -> None:
    assert entropy(np.full(8, 5)) == pytest.approx(np.log(8))


def test_one_used_outcome_has_no_entropy() -> None:
    assert entropy(np.array([0, 7, 0])) == 0.0


def test_no_counts_have_no_entropy_defined() -> None:
    np.testing.assert_array_equal(entropy(np.array([[0, 0], [1, 1]])), [np.nan, np.log(2)])


def test_entropy_agrees_with_scipy_on_fractional_weights() -> None:
    weights = np.random.default_rng(0).random((5, 9))
    np.testing.assert_allclose(entropy(weights), stats.entropy(weights, axis=-1))


def test_independent_table_has_no_information() -> None:
    assert mutual_information(np.outer([1, 2, 3], [4, 5])) == pytest.approx(0.0, abs=1e-12)


def test_balanced_lookup_has_the_log_of_its_size() -> None:
    assert mutual_information(np.eye(8) * 6) == pytest.approx(np.log(8))


def test_information_agrees_with_sklearn() -> None:
    rng = np.random.default_rng(0)
    x = rng.integers(0, 5, 300)
    y = (x + rng.integers(0, 3, 300)) % 4
    table = contingency(x, y, shape=(5, 4))
    assert mutual_information(table) == pytest.approx(mutual_info_score(x, y))


def test_information_ignores_order_of_labels_and_axes() -> None:
    table = np.random.default_rng(0).integers(0, 9, (4, 6))
    shuffled = table[::-1][:, [3, 1, 0, 5, 4, 2]]
    assert mutual_information(shuffled) == pytest.approx(mutual_information(table))
    assert mutual_information(table.T) == pytest.approx(mutual_information(table))


def test_stacked_tables_are_measured_one_by_one() -> None:
    tables = np.random.default_rng(0).integers(1, 9, (2, 3, 4, 5))
    stacked = mutual_information(tables)
    assert stacked.shape == (2, 3)
    assert stacked[1, 2] == pytest.approx(mutual_information(tables[1, 2]))


def test_miller_madow_takes_away_the_bias_of_independent_labels() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.integers(0, 6, (400, 500)), rng.integers(0, 7, (400, 500))
    tables = np.stack([contingency(*pair, shape=(6, 7)) for pair in zip(x, y, strict=True)])
    bias = (6 - 1) * (7 - 1) / (2 * 500)
    assert mutual_information(tables).mean() == pytest.approx(bias, rel=0.1)
    assert abs(miller_madow(tables).mean()) < 0.1 * bias


def test_conditional_information_is_the_weighted_mean_over_the_condition() -> None:
    tables = np.random.default_rng(0).integers(0, 9, (5, 3, 4))
    tables[2] = 0
    total = sum(t.sum() * mutual_information(t) for t in tables if t.sum())
    assert conditional_information(tables) == pytest.approx(total / tables.sum())


def test_conditional_information_obeys_the_chain_rule() -> None:
    tables = np.random.default_rng(0).integers(0, 9, (5, 3, 4))
    both = mutual_information(tables.reshape(15, 4))
    first = mutual_information(tables.sum(axis=1))
    assert conditional_information(tables) == pytest.approx(both - first)


def test_what_the_condition_explains_leaves_no_conditional_information() -> None:
    # x and y agree only because both follow z
    tables = np.einsum("zx,zy->zxy", [[9, 1], [1, 9]], [[8, 2], [2, 8]])
    assert mutual_information(tables.sum(axis=0)) > 0.1
    assert conditional_information(tables) == pytest.approx(0.0, abs=1e-12)


def test_conditional_miller_madow_takes_away_the_bias_of_every_condition() -> None:
    tables = np.random.default_rng(0).multinomial(60, np.full(12, 1 / 12), (300, 8))
    tables = tables.reshape(300, 8, 3, 4)
    bias = 2 * 3 / (2 * 60)
    assert conditional_information(tables).mean() == pytest.approx(bias, rel=0.1)
    assert abs(conditional_miller_madow(tables).mean()) < 0.1 * bias


def test_adjusted_information_agrees_with_sklearn() -> None:
    rng = np.random.default_rng(0)
    x = rng.integers(0, 5, 300)
    y = np.where(rng.random(300) < 0.5, x, rng.integers(0, 5, 300)) % 4
    table = contingency(x, y, shape=(6, 5))  # with a row and a column that are empty
    expected = adjusted_mutual_info_score(x, y)
    assert adjusted_mutual_information(table) == pytest.approx(expected)


def test_adjusted_information_is_one_for_a_renaming_and_zero_on_average_by_chance() -> None:
    assert adjusted_mutual_information(np.eye(5)[[3, 1, 0, 2, 4]] * 7) == pytest.approx(1.0)
    rng = np.random.default_rng(0)
    draws = [
        adjusted_mutual_information(contingency(*rng.integers(0, 4, (2, 60)), shape=(4, 4)))
        for _ in range(200)
    ]
    assert abs(np.mean(draws)) < 0.01 < np.std(draws)


def test_share_is_zero_at_chance_one_at_the_limit_and_missing_without_room() -> None:
    share = share_beyond_chance(np.array([0.3, 2.0, 1.15, 0.0]), 0.3, np.array([2, 2, 2, 0.3]))
    np.testing.assert_allclose(share, [0.0, 1.0, 0.5, np.nan])


def test_label_outside_the_table_is_refused() -> None:
    with pytest.raises(ValueError, match="labels from -1 to 1 do not fit a table of 2"):
        contingency(np.array([0, 1]), np.array([-1, 1]), shape=(2, 2))
    with pytest.raises(ValueError, match="labels from 0 to 2 do not fit a table of 2"):
        contingency(np.array([0, 2]), np.array([0, 1]), shape=(2, 2))
