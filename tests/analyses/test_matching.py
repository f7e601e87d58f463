from itertools import permutations, product

import numpy as np
import pytest
from numpy.typing import NDArray

from analyses.statistics import lookup_agreement as lookup
from analyses.statistics import matching, unit_cka
from analyses.statistics.permutation import document_permutations, permutation_p

N_EXPERTS = 4


def _slices(unit: NDArray) -> list[slice]:
    ends = np.cumsum(np.bincount(unit))
    return [slice(e - n, e) for e, n in zip(ends, np.bincount(unit), strict=True)]


def _top2(seed: int, *, n_units: int = 6, length: int = 15) -> tuple[NDArray, NDArray, NDArray]:
    """Top-2 choices of two routers that are alike in part, and units of unequal length."""
    rng = np.random.default_rng(seed)
    unit = np.repeat(np.arange(n_units), rng.integers(length // 2, length, n_units))
    first = rng.random((len(unit), N_EXPERTS)).argsort(axis=1)[:, :2]
    other = rng.random((len(unit), N_EXPERTS)).argsort(axis=1)[:, :2]
    second = np.where(rng.random((len(unit), 1)) < 0.6, np.array([2, 3, 1, 0])[first], other)
    return first, second, unit


def _agreement(first: NDArray, second: NDArray, unit: NDArray, half: NDArray, n: int) -> float:
    top_k = first.shape[1]
    tables = matching.unit_tables(first, second, unit, n_experts=n)
    halves = matching.half_tables(tables, half)
    pi = matching.crossed_matching(halves, top_k=top_k)
    return float(matching.matched_counts(halves, pi).sum() / (top_k * len(unit)))


def test_tables_count_the_tokens_that_have_both_experts() -> None:
    first, second, unit = _top2(0)
    tables = matching.unit_tables(first, second, unit, n_experts=N_EXPERTS)
    for u, i, j in product(range(6), range(N_EXPERTS), range(N_EXPERTS)):
        both = (first == i).any(axis=1) & (second == j).any(axis=1) & (unit == u)
        assert tables[u, i, j] == both.sum()


def test_phi_is_the_correlation_of_inclusion() -> None:
    first, second, unit = _top2(0)
    table = matching.unit_tables(first, second, unit, n_experts=N_EXPERTS).sum(axis=0)
    phi = matching.inclusion_phi(table, top_k=2)
    for i, j in np.ndindex(phi.shape):
        a, b = (first == i).any(axis=1), (second == j).any(axis=1)
        assert phi[i, j] == pytest.approx(np.corrcoef(a, b)[0, 1])


def test_phi_of_an_expert_that_no_token_chose_is_zero() -> None:
    phi = matching.inclusion_phi(np.array([[5, 2, 0], [1, 9, 0], [0, 0, 0]]), top_k=1)
    np.testing.assert_array_equal(phi[2], 0)
    np.testing.assert_array_equal(phi[:, 2], 0)


def test_matching_is_the_best_of_all() -> None:
    first, second, unit = _top2(1)
    table = matching.unit_tables(first, second, unit, n_experts=N_EXPERTS).sum(axis=0)
    phi = matching.inclusion_phi(table, top_k=2)
    orders = list(permutations(range(N_EXPERTS)))
    best = max(orders, key=lambda pi: sum(phi[i, j] for i, j in enumerate(pi)))
    assert tuple(matching.matching(table, top_k=2)) == best


@pytest.mark.parametrize(("n_experts", "top_k"), [(8, 1), (64, 4)])
def test_planted_permutation_is_recovered_through_ten_percent_noise(
    n_experts: int, top_k: int
) -> None:
    rng = np.random.default_rng(0)
    planted, unit = rng.permutation(n_experts), np.repeat(np.arange(10), 400)
    draws = rng.random((len(unit), n_experts)).argsort(axis=1)
    first, spare = draws[:, :top_k], draws[:, top_k : 2 * top_k]
    noisy = rng.random(first.shape) < 0.1
    second = planted[np.where(noisy, spare, first)]
    half = np.arange(10) % 2 == 0
    tables = matching.unit_tables(first, second, unit, n_experts=n_experts)
    pi = matching.crossed_matching(matching.half_tables(tables, half), top_k=top_k)
    np.testing.assert_array_equal(pi, [planted, planted])
    agreement = _agreement(first, second, unit, half, n_experts)
    assert agreement == pytest.approx(0.9, abs=0.015)


def test_agreement_of_top_2_agrees_with_a_loop_over_tokens() -> None:
    first, second, unit = _top2(2)
    half = np.array([True, False, False, True, False, True])
    total = 0
    for scored in (half, ~half):
        table = np.zeros((N_EXPERTS, N_EXPERTS))
        for t in np.flatnonzero(~scored[unit]):
            for i, j in product(first[t], second[t]):
                table[i, j] += 1
        pi = matching.matching(table, top_k=2)
        total += sum(len(set(pi[first[t]]) & set(second[t])) for t in np.flatnonzero(scored[unit]))
    assert _agreement(first, second, unit, half, N_EXPERTS) == pytest.approx(total / len(unit) / 2)


def test_names_of_experts_do_not_matter() -> None:
    first, second, unit = _top2(3)
    half, renamed = np.arange(6) < 3, np.array([3, 0, 2, 1])
    expected = _agreement(first, second, unit, half, N_EXPERTS)
    assert _agreement(renamed[first], second, unit, half, N_EXPERTS) == pytest.approx(expected)
    assert _agreement(first[:, ::-1], renamed[second], unit, half, N_EXPERTS) == pytest.approx(
        expected
    )
    assert _agreement(second, first, unit, half, N_EXPERTS) == pytest.approx(expected)


def test_matching_on_the_tokens_that_are_scored_exceeds_chance_and_crossing_does_not() -> None:
    rng, n, unit, half = (
        np.random.default_rng(0),
        8,
        np.repeat(np.arange(10), 15),
        np.arange(10) < 5,
    )
    same, crossed = [], []
    for _ in range(200):
        first, second = rng.integers(0, n, (2, len(unit), 1))
        table = matching.unit_tables(first, second, unit, n_experts=n).sum(axis=0)
        pi = matching.matching(table, top_k=1)
        same.append(matching.matched_counts(table, pi) / len(unit))
        crossed.append(_agreement(first, second, unit, half, n))
    error = np.std(crossed) / np.sqrt(len(crossed))
    assert np.mean(same) > 1 / n + 0.05
    assert abs(np.mean(crossed) - 1 / n) < 3 * error


def test_uneven_loads_move_agreement_off_one_over_n_and_chance_moves_along() -> None:
    rng, n, unit, half = (
        np.random.default_rng(1),
        8,
        np.repeat(np.arange(10), 40),
        np.arange(10) < 5,
    )
    load = 0.5 ** np.arange(1, n + 1)
    found, chance = [], []
    for _ in range(60):
        first, second = rng.choice(n, p=load / load.sum(), size=(2, len(unit), 1))
        found.append(_agreement(first, second, unit, half, n))
        orders = document_permutations(10, n_resamples=10, rng=rng)
        draws = matching.null_agreement(
            np.stack([first, second]), [(0, 1)], _slices(unit), half, orders, n_experts=n
        )
        chance.append(np.mean(list(draws)))
    kappa = (np.array(found) - chance) / (1 - np.array(chance))
    assert np.mean(found) < 0.85 / n  # phi pairs experts that are chosen often with rare ones
    assert abs(kappa.mean()) < 3 * kappa.std() / np.sqrt(len(kappa))


def test_exchanging_units_in_their_own_order_gives_back_the_agreement() -> None:
    first, second, unit = _top2(4)
    half = np.arange(6) % 2 == 0
    (found,) = matching.null_agreement(
        np.stack([second, first]), [(1, 0), (0, 1)], _slices(unit), half, np.arange(6)[None],
        n_experts=N_EXPERTS,
    )  # fmt: skip
    assert found == pytest.approx(_agreement(first, second, unit, half, N_EXPERTS))


def test_units_exchange_whole_blocks_of_choices() -> None:
    first, second, unit = _top2(5)
    half, order = np.arange(6) % 2 == 0, np.array([4, 0, 3, 1, 5, 2])
    moved = np.concatenate([second[unit == u] for u in order])
    (found,) = matching.null_agreement(
        np.stack([first, second]), [(0, 1)], _slices(unit), half, order[None], n_experts=N_EXPERTS
    )
    assert found[0] == pytest.approx(_agreement(first, moved, unit, half, N_EXPERTS))


def test_p_is_uniform_when_units_have_habits_that_the_routers_do_not_share() -> None:
    rng, n = np.random.default_rng(0), 3
    unit, half = np.repeat(np.arange(16), 20), np.arange(16) % 2 == 0
    p_units, p_tokens = [], []
    for _ in range(200):
        habit = rng.integers(0, n, (2, 16))[:, unit]
        choice = np.where(rng.random(habit.shape) < 0.6, habit, rng.integers(0, n, habit.shape))
        choice = choice[..., None]
        observed = np.array(_agreement(*choice, unit, half, n))
        orders = document_permutations(16, n_resamples=39, rng=rng)
        null = matching.null_agreement(
            choice, [(0, 1)], _slices(unit), half, orders, n_experts=n
        )  # fmt: skip
        p_units.append(permutation_p(observed, np.concatenate(list(null))))
        shuffled = [
            _agreement(choice[0], rng.permutation(choice[1]), unit, half, n) for _ in range(19)
        ]
        p_tokens.append(permutation_p(observed, np.array(shuffled)))
    assert 8 <= np.sum(np.array(p_units) <= 0.1) <= 32  # 20 expected; 99.8% of a binomial
    assert 79 <= np.sum(np.array(p_units) <= 0.5) <= 122
    assert np.mean(np.array(p_tokens) <= 0.1) > 0.2  # tokens in the place of units reject too often


@pytest.mark.parametrize(("n_rows", "n_columns", "n"), [(8, 8, 3000), (5, 2, 7), (1, 4, 9)])
def test_expected_information_is_that_of_sklearn(n_rows: int, n_columns: int, n: int) -> None:
    from sklearn.metrics.cluster import contingency_matrix, expected_mutual_information

    rng = np.random.default_rng(0)
    rows, columns = np.minimum(rng.geometric(0.4, n), n_rows), rng.integers(0, n_columns, n)
    table = contingency_matrix(rows, columns)
    found = matching.expected_information(table.sum(axis=1), table.sum(axis=0))
    assert found == pytest.approx(expected_mutual_information(table, n), rel=1e-8, abs=1e-15)


def test_ami_is_that_of_sklearn_and_does_not_mind_names() -> None:
    from sklearn.metrics import adjusted_mutual_info_score

    first, second, unit = _top2(6)
    a, b = first[:, 0], second[:, 0]
    expected = adjusted_mutual_info_score(a, b)
    for names in (np.arange(4), np.array([1, 3, 0, 2])):
        tables = matching.unit_tables(a[:, None], names[b][:, None], unit, n_experts=N_EXPERTS)
        estimate, deleted = matching.adjusted_information(tables)
        assert estimate == pytest.approx(expected)
        without = [adjusted_mutual_info_score(a[unit != u], b[unit != u]) for u in range(6)]
        np.testing.assert_allclose(deleted, without, atol=0.005)


def test_ami_is_1_for_renamed_experts_and_0_for_unrelated_ones() -> None:
    rng, unit = np.random.default_rng(0), np.repeat(np.arange(5), 400)
    first, second = rng.integers(0, N_EXPERTS, (2, 2000, 1))
    alike = matching.unit_tables(first, 3 - first, unit, n_experts=N_EXPERTS)
    apart = matching.unit_tables(first, second, unit, n_experts=N_EXPERTS)
    assert matching.adjusted_information(alike)[0] == pytest.approx(1)
    assert matching.adjusted_information(apart)[0] == pytest.approx(0, abs=0.01)


def _with_ids(seed: int) -> tuple[NDArray, NDArray, NDArray, NDArray, NDArray]:
    """Top-2 choices, units, ids of which the last occurs once, and halves of the units."""
    first, second, unit = _top2(seed)
    label = np.random.default_rng(seed).integers(0, 5, len(unit))
    label[0] = 5
    return first, second, unit, label, np.array([True, False, False, True, False, True])


def test_floor_is_the_mean_overlap_of_two_tokens_of_an_id() -> None:
    first, second, unit, label, half = _with_ids(0)
    in_first = half[unit]
    pi = np.array([[1, 0, 3, 2], [2, 3, 1, 0]])
    counts = [lookup.id_counts(c, label, in_first, n_experts=N_EXPERTS) for c in (first, second)]
    sums = lookup.floor_sums((first, second), (counts[0], counts[1]), pi, label, unit, in_first)
    expected = np.zeros(6)
    for t in range(len(unit)):
        own = 0 if in_first[t] else 1
        other = np.flatnonzero(in_first != in_first[t])
        mapped = pi[own][first]
        same = other[label[other] == label[t]]
        pairs = [(s, r) for s in same for r in same if s != r]
        if len(same) < 2:  # only loads are known
            pairs = [(s, r) for s in other for r in other]
        overlaps = [len(set(mapped[s]) & set(second[r])) for s, r in pairs]
        expected[unit[t]] += np.mean(overlaps)
    np.testing.assert_allclose(sums, expected)


def test_lookup_is_the_agreement_of_the_commonest_experts_of_each_id() -> None:
    rng = np.random.default_rng(0)
    label, unit = rng.integers(0, 6, 300), np.repeat(np.arange(6), 50)
    half, n, pi = np.arange(6) < 3, 3, np.array([[2, 0, 1], [1, 2, 0]])
    first, second = ((label * m + (rng.random(300) < 0.3)) % n for m in (1, 2))
    in_first = half[unit]
    counts = [
        lookup.id_counts(c[:, None], label, in_first, n_experts=n) for c in (first, second)
    ]  # fmt: skip
    sums = lookup.lookup_sums(counts[0], counts[1], pi, label, unit, in_first)
    expected = np.zeros(6)
    for t in range(300):
        same = (in_first != in_first[t]) & (label == label[t])
        a, b = (np.bincount(c[same], minlength=n).argmax() for c in (first, second))
        expected[unit[t]] += pi[0 if in_first[t] else 1][a] == b
    np.testing.assert_allclose(sums, expected)


def test_an_id_that_the_other_half_lacks_is_looked_up_where_most_tokens_go() -> None:
    choice, label = np.array([[1], [1], [0], [2]]), np.array([0, 0, 1, 2])
    found = lookup.id_counts(choice, label, np.array([True, True, True, False]), n_experts=3)
    np.testing.assert_array_equal(found.usual[0].argmax(axis=1), [1, 0, 1])
    np.testing.assert_array_equal(found.usual[1].argmax(axis=1), [2, 2, 2])


def test_two_lookups_agree_as_much_as_token_ids_say_and_no_more() -> None:
    rng, n = np.random.default_rng(0), 8
    label, unit = np.minimum(rng.geometric(0.1, 4000), 60) - 1, np.repeat(np.arange(8), 500)
    maps, half = rng.integers(0, n, (2, 60)), np.arange(8) % 2 == 0
    first, second = maps[:, label][..., None]
    in_first = half[unit]
    tables = matching.unit_tables(first, second, unit, n_experts=n)
    pi = matching.crossed_matching(matching.half_tables(tables, half), top_k=1)
    counts = [lookup.id_counts(c, label, in_first, n_experts=n) for c in (first, second)]
    agreement = _agreement(first, second, unit, half, n)
    known = (pi, label, unit, in_first)
    floor = lookup.floor_sums((first, second), (counts[0], counts[1]), *known).sum() / 4000
    usual = lookup.lookup_sums(counts[0], counts[1], *known).sum() / 4000
    assert agreement > 1.5 / n  # unrelated, and yet frequent ids can be laid on each other
    assert floor == pytest.approx(agreement, abs=0.005)
    assert usual == pytest.approx(agreement, abs=0.005)


def _cka(x: NDArray, y: NDArray, unit: NDArray) -> unit_cka.Similarity:
    slices, tokens = _slices(unit), np.bincount(unit)
    similar = [
        unit_cka.similarity(unit_cka.feature_products(a, b, slices), tokens)
        for a, b in ((x, y), (x, x), (y, y))
    ]
    return unit_cka.cka(*similar)


def test_cka_of_tokens_that_are_units_is_the_debiased_cka_of_the_published_demo() -> None:
    random = np.random.RandomState(1337)
    x = random.randn(100, 10)
    y = random.randn(100, 10) + x
    found = _cka(x - x.mean(axis=0), y - y.mean(axis=0), np.arange(100)).estimate
    assert found == pytest.approx(0.51346, abs=0.002)


def test_similarity_leaves_out_pairs_of_one_unit() -> None:
    rng, unit = np.random.default_rng(0), np.repeat(np.arange(4), [3, 2, 4, 3])
    x, y = rng.standard_normal((12, 3)), rng.standard_normal((12, 2))
    products = unit_cka.feature_products(x, y, _slices(unit))
    tokens = np.bincount(unit)
    apart = unit[:, None] != unit
    gram = (x @ x.T) * (y @ y.T)
    within = gram[~apart].sum()
    expected = gram[apart].sum() - (unit_cka.centring_excess(tokens) - 1) * within
    assert unit_cka.similarity(products, tokens).estimate == pytest.approx(expected)


def test_centring_excess_of_equal_units_has_a_closed_form() -> None:
    assert unit_cka.centring_excess(np.full(8, 32)) == pytest.approx(1 + 1 / 7)
    w = np.array([1, 5, 2, 9]) / 17
    together = w[:, None] + w - (w**2).sum()
    pairs = np.outer(w, w) * together**2
    within = (w**2 * (1 - np.diag(together)) ** 2).sum()
    found = unit_cka.centring_excess(np.array([1, 5, 2, 9]))
    assert found == pytest.approx(1 + (pairs.sum() - np.trace(pairs)) / within)


def test_cka_of_a_rotated_and_scaled_copy_is_1() -> None:
    rng, unit = np.random.default_rng(0), np.repeat(np.arange(6), 10)
    x = rng.standard_normal((60, 5))
    x -= x.mean(axis=0)
    rotation, _ = np.linalg.qr(rng.standard_normal((5, 5)))
    assert _cka(x, 3 * x @ rotation, unit).estimate == pytest.approx(1)


def test_independent_texts_of_like_tokens_score_0_only_if_units_are_left_out() -> None:
    rng, unit = np.random.default_rng(0), np.repeat(np.arange(20), [6] * 15 + [18] * 5)
    by_units, by_tokens = [], []
    for _ in range(60):
        habits = rng.standard_normal((2, 20, 10))[:, unit]
        x, y = habits + 0.7 * rng.standard_normal((2, len(unit), 10))
        x, y = x - x.mean(axis=0), y - y.mean(axis=0)
        by_units.append(_cka(x, y, unit).estimate)
        by_tokens.append(_cka(x, y, np.arange(len(unit))).estimate)
    assert abs(np.mean(by_units)) < 3 * np.std(by_units) / np.sqrt(60)
    assert np.mean(by_tokens) > 0.2


def test_deleted_cka_is_close_to_that_without_the_unit() -> None:
    rng, unit = np.random.default_rng(0), np.repeat(np.arange(30), 20)
    x = rng.standard_normal((600, 4)) + rng.standard_normal((30, 4))[unit]
    y = x @ rng.standard_normal((4, 3)) + rng.standard_normal((600, 3))
    whole = _cka(x - x.mean(axis=0), y - y.mean(axis=0), unit)
    for u in (0, 13):
        a, b, left = x[unit != u], y[unit != u], unit[unit != u]
        without = _cka(a - a.mean(axis=0), b - b.mean(axis=0), left - (left > u)).estimate
        assert whole.deleted[u] == pytest.approx(without, abs=0.003)


def test_products_of_choices_are_those_of_their_centred_indicators() -> None:
    first, second, unit = _top2(7)
    x, y = (
        (c[..., None] == np.arange(N_EXPERTS)).any(axis=1).astype(float) for c in (first, second)
    )
    slow = unit_cka.feature_products(x - x.mean(axis=0), y - y.mean(axis=0), _slices(unit))
    tables = matching.unit_tables(first, second, unit, n_experts=N_EXPERTS)
    np.testing.assert_allclose(unit_cka.choice_products(tables, top_k=2), slow, atol=1e-12)


def test_cka_of_a_constant_router_is_missing() -> None:
    unit = np.repeat(np.arange(3), 4)
    found = _cka(np.zeros((12, 2)), np.random.default_rng(0).standard_normal((12, 2)), unit)
    assert np.isnan(found.estimate)
    assert np.isnan(found.deleted).all()
