import numpy as np
import pytest
from sklearn.metrics import mutual_info_score

from analyses.statistics.information import conditional_information, conditional_miller_madow
from analyses.statistics.paths import (
    exchanged_units,
    grouped,
    null_information,
    tie,
    turned_within,
)
from analyses.statistics.top_paths import matched_order, top_paths

N_EXPERTS, N_IDS, N_TOKENS = 5, 7, 3000


def _choices(top_k: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Layers that go by the id and by each other, ids, and units."""
    rng = np.random.default_rng(0)
    label, unit = rng.integers(0, N_IDS, N_TOKENS), rng.integers(0, 6, N_TOKENS)
    experts = np.arange(N_EXPERTS)
    by_id = 0.5 * (experts == (label % N_EXPERTS)[:, None])
    first = np.argsort(rng.random((N_TOKENS, N_EXPERTS)) + by_id, axis=1)[:, -top_k:]
    kept = 0.5 * (experts == first[:, :1])
    second = np.argsort(rng.random((N_TOKENS, N_EXPERTS)) + kept, axis=1)[:, -top_k:]
    return first, second, label, unit


def _looped(first: np.ndarray, second: np.ndarray, label: np.ndarray) -> np.ndarray:
    table = np.zeros((N_IDS, N_EXPERTS, N_EXPERTS))
    for a, b, z in zip(first, second, label, strict=True):
        for i in a:
            for j in b:
                table[z, i, j] += 1
    return table


@pytest.mark.parametrize("top_k", [1, 2])
@pytest.mark.parametrize("by_label", [True, False])
@pytest.mark.parametrize("size", [2**22, 60])
def test_ties_agree_with_tables_counted_by_a_loop(
    top_k: int, by_label: bool, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("_CELLS", "_PAIRS"):
        monkeypatch.setattr(f"analyses.statistics.paths.{name}", size)
    first, second, label, unit = _choices(top_k)
    label = label if by_label else np.zeros_like(label)
    found = tie(first, second, grouped(label, unit), n_experts=N_EXPERTS)
    table = _looped(first, second, label)
    assert found.information == pytest.approx(float(conditional_information(table)))
    corrected = float(conditional_miller_madow(table)) if top_k == 1 else np.nan
    assert found.miller_madow == pytest.approx(corrected, nan_ok=True)
    kept = unit != 2
    without = _looped(first[kept], second[kept], label[kept])
    assert found.information_deleted[2] == pytest.approx(float(conditional_information(without)))
    of_kept = tie(first[kept], second[kept], grouped(label[kept], unit[kept]), n_experts=N_EXPERTS)
    assert found.open_entropy_deleted[2] == pytest.approx(of_kept.open_entropy)


def test_information_agrees_with_scikit_learn_and_is_symmetric() -> None:
    first, second, _, unit = _choices(1)
    at = grouped(np.zeros_like(unit), unit)
    expected = mutual_info_score(first[:, 0], second[:, 0])
    assert tie(first, second, at, n_experts=N_EXPERTS).information == pytest.approx(expected)
    assert tie(second, first, at, n_experts=N_EXPERTS).information == pytest.approx(expected)


def test_copied_layer_has_all_its_entropy_and_names_do_not_matter() -> None:
    first, _, label, unit = _choices(1)
    for labels in (label, np.zeros_like(label)):
        found = tie(first, (first + 2) % N_EXPERTS, grouped(labels, unit), n_experts=N_EXPERTS)
        assert found.information == pytest.approx(found.open_entropy)


def test_balanced_table_has_no_information() -> None:
    first, second = np.divmod(np.arange(N_EXPERTS**2 * 4) % N_EXPERTS**2, N_EXPERTS)
    at = grouped(np.zeros(len(first), dtype=int), np.arange(len(first)) % 3)
    found = tie(first[:, None], second[:, None], at, n_experts=N_EXPERTS)
    assert found.information == 0
    assert found.open_entropy == pytest.approx(np.log(N_EXPERTS))


def test_two_lookups_of_the_id_leave_exactly_nothing_given_it() -> None:
    _, _, label, unit = _choices(1)
    maps = np.random.default_rng(1).integers(0, N_EXPERTS, (2, N_IDS))
    first, second = maps[0][label][:, None], maps[1][label][:, None]
    at = grouped(label, unit)
    found = tie(first, second, at, n_experts=N_EXPERTS)
    orders = turned_within(at, n_resamples=5, rng=np.random.default_rng(0))
    null = null_information(first, second, at, orders, n_experts=N_EXPERTS)
    assert found.information == found.miller_madow == found.open_entropy == 0
    assert (null == 0).all()
    everywhere = grouped(np.zeros_like(label), unit)
    assert tie(first, second, everywhere, n_experts=N_EXPERTS).information > 0.5


@pytest.mark.parametrize("top_k", [1, 2])
def test_null_given_the_id_knows_the_bias_that_miller_madow_does_not(top_k: int) -> None:
    """Layers that go by the id alone, with few occurrences of each id."""
    rng, n_ids, n = np.random.default_rng(2), 150, 3000
    label, unit = rng.integers(0, n_ids, n), np.repeat(np.arange(30), 100)
    lean = rng.standard_normal((2, n_ids, N_EXPERTS))
    adjusted, plug_in, corrected = [], [], []
    for _ in range(20):
        first, second = (
            np.argsort(of[label] + rng.gumbel(size=(n, N_EXPERTS)), axis=1)[:, -top_k:]
            for of in lean
        )
        at = grouped(label, unit)
        found = tie(first, second, at, n_experts=N_EXPERTS)
        orders = turned_within(at, n_resamples=10, rng=rng)
        null = null_information(first, second, at, orders, n_experts=N_EXPERTS)
        plug_in.append(found.information)
        corrected.append(found.miller_madow)
        adjusted.append(found.information - null.mean())
    error = np.std(adjusted) / np.sqrt(20)
    assert abs(np.mean(adjusted)) < 3 * error + 1e-3
    assert np.mean(plug_in) > 20 * error
    assert top_k > 1 or np.mean(corrected) > 10 * error  # it takes away too little


def test_null_over_units_keeps_topics_and_cuts_the_tie() -> None:
    """Both layers follow topics of units: no tie of tokens, but far more than tokens would give."""
    rng = np.random.default_rng(3)
    unit = np.repeat(np.arange(30), 100)
    at, found, by_unit, by_token = grouped(np.zeros_like(unit), unit), [], [], []
    for _ in range(100):
        topics = rng.integers(0, N_EXPERTS, (2, 30))
        drawn = rng.integers(0, N_EXPERTS, (2, len(unit)))
        kept = rng.random((2, len(unit))) < 0.4
        first, second = np.where(kept, topics[:, unit], drawn)[..., None]
        found.append(tie(first, second, at, n_experts=N_EXPERTS).information)
        orders = exchanged_units(at, n_resamples=20, rng=rng)
        by_unit.append(null_information(first, second, at, orders, n_experts=N_EXPERTS).mean())
        tokens = [rng.permutation(len(unit))]
        by_token.append(null_information(first, second, at, tokens, n_experts=N_EXPERTS)[0])
    error = np.std(np.subtract(found, by_unit)) / np.sqrt(100)
    assert abs(np.mean(found) - np.mean(by_unit)) < 3 * error
    assert np.mean(found) - np.mean(by_token) > 10 * error


def test_turns_stay_within_labels_and_leave_no_token_in_place() -> None:
    _, _, label, unit = _choices(1)
    at = grouped(np.where(label == 3, -1, label), unit)
    assert 3 not in at.label
    for order in turned_within(at, n_resamples=3, rng=np.random.default_rng(0)):
        np.testing.assert_array_equal(np.sort(order), np.arange(len(order)))
        np.testing.assert_array_equal(at.label[order], at.label)
        assert (order != np.arange(len(order))).all()


def test_exchanged_units_stay_whole() -> None:
    unit = np.repeat([0, 1, 2], [3, 5, 4])
    at = grouped(np.zeros(12, dtype=int), unit)
    for order in exchanged_units(at, n_resamples=10, rng=np.random.default_rng(0)):
        assert (np.diff(order) == 1).sum() >= 9
        np.testing.assert_array_equal(np.sort(order), np.arange(12))


def test_matched_order_finds_planted_partners() -> None:
    rng = np.random.default_rng(4)
    partner, size = rng.permutation(6), np.array([60, 50, 40, 30, 20, 10])
    joint = rng.integers(0, 4, (6, 6))
    joint[np.arange(6), partner] += size
    rows, columns = matched_order(joint)
    np.testing.assert_array_equal(columns, partner[rows])
    assert (np.diff(joint[rows, columns]) <= 0).all()


def test_paths_picked_by_accident_fall_back_on_the_other_half() -> None:
    rng = np.random.default_rng(5)
    unit, pick = np.repeat(np.arange(20), 30), np.arange(20) % 2 == 0
    first = rng.integers(0, 4, (3, len(unit)))
    first[:, rng.random(len(unit)) < 0.2] = np.array([[1], [3], [2]])
    top = top_paths(first, unit, pick, n_experts=4, n_top=6)
    assert top.path[0].tolist() == [1, 3, 2]
    there = ~pick[unit]
    looped = [(p == first[:, there].T).all(axis=1).mean() for p in top.path]
    alone = [np.prod([(first[i, there] == e).mean() for i, e in enumerate(p)]) for p in top.path]
    np.testing.assert_allclose(top.share, looped)
    np.testing.assert_allclose(top.independent, alone)
    assert top.share[0] > 3 * top.independent[0]
    assert top.chosen[1:].mean() > 1.2 * top.share[1:].mean()
    kept = there & (unit != 3)  # the second of the units that were not picked on
    expected = (top.path[0] == first[:, kept].T).all(axis=1).mean()
    assert top.share_deleted[1, 0] == pytest.approx(expected)
    few = top_paths(np.zeros((2, 600), dtype=int), unit, pick, n_experts=4, n_top=3)
    assert few.path[:, 0].tolist() == [0, -1, -1]
    assert few.share[0] == few.independent[0] == 1
    assert np.isnan(few.share[1:]).all()
