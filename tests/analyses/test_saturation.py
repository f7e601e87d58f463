from types import SimpleNamespace

import numpy as np
import pytest
from numpy.typing import NDArray

from analyses.statistics import saturation as routes
from analyses.statistics import token_lookup

N_STEPS, N_TOKENS, N_UNITS, N_EXPERTS, TOP_K = 4, 90, 6, 5, 2
PAIRS = np.array([[0, 3], [1, 2], [2, 2]])


@pytest.fixture
def text() -> SimpleNamespace:
    """Top-2 routes that follow the token id in part; one id occurs once, units are interleaved."""
    rng = np.random.default_rng(0)
    label = np.concatenate([rng.integers(0, 7, N_TOKENS - 1), [7]])
    by_id = np.stack([rng.permutation(N_EXPERTS)[:TOP_K] for _ in range(8)])
    noise = rng.random((N_STEPS, N_TOKENS, N_EXPERTS)).argsort(axis=-1)[..., :TOP_K]
    follows = rng.random((N_STEPS, N_TOKENS, 1)) < 0.5
    choice = np.where(follows, by_id[label], noise).astype("int16")
    return SimpleNamespace(choice=choice, label=label, unit=np.arange(N_TOKENS) % N_UNITS)


def _shared(a: NDArray, b: NDArray) -> int:
    return len(set(a.tolist()) & set(b.tolist()))


def _matrices(choice: NDArray, unit: NDArray, n_experts: int) -> tuple[NDArray, NDArray]:
    sums = [part.sum(axis=0) for part in routes.unit_overlaps(choice, unit, n_experts=n_experts)]
    top_k = choice.shape[-1]
    return (
        routes.saturation(sums[0], sums[2], top_k=top_k),
        routes.load_chance(sums[1], sums[2], top_k=top_k),
    )


def _iid(n_tokens: int, n_experts: int, top_k: int) -> NDArray:
    rng = np.random.default_rng(1)
    return rng.random((3, n_tokens, n_experts)).argsort(axis=-1)[..., :top_k].astype("int16")


def test_a_checkpoint_is_saturated_with_itself(text: SimpleNamespace) -> None:
    alike, _ = _matrices(text.choice, text.unit, N_EXPERTS)
    np.testing.assert_array_equal(np.diag(alike), 1)
    np.testing.assert_array_equal(alike, alike.T)


def test_saturation_agrees_with_a_loop_over_sets(text: SimpleNamespace) -> None:
    alike, _ = _matrices(text.choice, text.unit, N_EXPERTS)
    for a, b in np.ndindex(alike.shape):
        slow = np.mean([_shared(*of) for of in zip(text.choice[a], text.choice[b], strict=True)])
        assert alike[a, b] == pytest.approx(slow / TOP_K)


def test_overlaps_with_chosen_checkpoints_are_those_of_the_whole_matrix(
    text: SimpleNamespace,
) -> None:
    whole = routes.unit_overlaps(text.choice, text.unit, n_experts=N_EXPERTS)
    others, step = np.array([3, 1]), np.arange(N_STEPS)
    part = routes.unit_overlaps(text.choice, text.unit, n_experts=N_EXPERTS, others=others)
    np.testing.assert_array_equal(part.common, whole.common[..., others])
    own = np.stack([step - 1, step[::-1]], axis=1)
    found = routes.overlaps_with(text.choice, text.unit, own)
    np.testing.assert_array_equal(found, whole.common[:, step[:, None], own])
    chance = routes.load_chance(whole.counts, whole.tokens, top_k=TOP_K)
    some = routes.load_chance(whole.counts, whole.tokens, top_k=TOP_K, others=others)
    np.testing.assert_allclose(some, chance[..., others])
    previous = routes.chance_with_previous(whole.counts, whole.tokens, top_k=TOP_K)
    np.testing.assert_allclose(previous[:, 1:], chance[:, step[1:], step[:-1]])
    assert np.isnan(previous[:, 0]).all()


def test_rank_of_a_choice_and_names_of_experts_do_not_matter(text: SimpleNamespace) -> None:
    expected = _matrices(text.choice, text.unit, N_EXPERTS)
    renamed = np.array([3, 1, 4, 0, 2], dtype="int16")[text.choice[..., ::-1]]
    for changed, same in zip(_matrices(renamed, text.unit, N_EXPERTS), expected, strict=True):
        np.testing.assert_allclose(changed, same)


@pytest.mark.parametrize(("n_experts", "top_k"), [(8, 1), (64, 8)])
def test_kappa_of_independent_routers_is_zero(n_experts: int, top_k: int) -> None:
    choice = _iid(4000, n_experts, top_k)
    alike, chance = _matrices(choice, np.arange(4000) // 400, n_experts)
    off = ~np.eye(3, dtype=bool)
    np.testing.assert_allclose(chance, top_k / n_experts, rtol=0.02)
    np.testing.assert_allclose(alike[off], top_k / n_experts, atol=0.02)
    np.testing.assert_allclose(routes.beyond(alike, chance)[off], 0, atol=0.02)


def test_chance_is_the_mean_over_permutations_of_all_tokens(text: SimpleNamespace) -> None:
    _, chance = _matrices(text.choice, text.unit, N_EXPERTS)
    rng, drawn = np.random.default_rng(2), []
    for _ in range(2000):
        moved = text.choice[3][rng.permutation(N_TOKENS)]
        drawn.append(routes.overlap(text.choice[0], moved).mean() / TOP_K)
    error = np.std(drawn) / np.sqrt(len(drawn))
    assert abs(np.mean(drawn) - chance[0, 3]) < 4 * error


def test_chance_of_two_collapsed_routers_leaves_nothing_beyond() -> None:
    choice = np.zeros((2, 10, 1), dtype="int16")
    alike, chance = _matrices(choice, np.arange(10) // 5, 3)
    assert (chance == 1).all()
    assert np.isnan(routes.beyond(alike, chance)).all()


def test_overlaps_without_a_unit_equal_computing_without_it(text: SimpleNamespace) -> None:
    sums = routes.unit_overlaps(text.choice, text.unit, n_experts=N_EXPERTS)
    kept = text.unit != 2
    _, unit = np.unique(text.unit[kept], return_inverse=True)
    expected, _ = _matrices(text.choice[:, kept], unit, N_EXPERTS)
    left = [part.sum(axis=0) - part[2] for part in sums]
    np.testing.assert_allclose(routes.saturation(left[0], left[2], top_k=TOP_K), expected)


def _lookup(text: SimpleNamespace) -> token_lookup.Lookup:
    return token_lookup.lookup(text.choice, text.label, text.unit, PAIRS, n_experts=N_EXPERTS)


def test_floor_agrees_with_a_loop_over_other_tokens_of_the_id(text: SimpleNamespace) -> None:
    found = _lookup(text)
    for i, (a, b) in enumerate(PAIRS):
        expected, own = [], []
        for t in range(N_TOKENS):
            others = [s for s in range(N_TOKENS) if text.label[s] == text.label[t] and s != t]
            if others:
                first, second = text.choice[a], text.choice[b]
                expected.append(np.mean([_shared(first[t], second[s]) for s in others]) / TOP_K)
                own.append(_shared(first[t], second[t]) / TOP_K)
        assert found.floor[i] == pytest.approx(np.mean(expected))
        assert found.repeated[i] == pytest.approx(np.mean(own))


def test_floor_is_what_permuting_within_the_id_leaves(text: SimpleNamespace) -> None:
    rng, drawn = np.random.default_rng(3), np.zeros(8)
    first, second = text.choice[0], text.choice[3]
    order = np.arange(N_TOKENS)
    for _ in range(3000):
        for x in range(7):
            of_id = np.flatnonzero(text.label == x)
            order[of_id] = rng.permutation(of_id)
        drawn += np.bincount(text.label, routes.overlap(first, second[order]))
    n, own = np.bincount(text.label), np.bincount(text.label, routes.overlap(first, second))
    # a permutation leaves one token of an id in its place on average: those are taken out
    from_others = ((n * drawn / 3000 - own)[:7] / (n - 1)[:7]).sum() / (TOP_K * n[:7].sum())
    assert _lookup(text).floor[0] == pytest.approx(from_others, rel=0.01)


def test_floor_of_a_token_lookup_is_one_and_nothing_is_beyond_it(text: SimpleNamespace) -> None:
    by_id = _iid(8, N_EXPERTS, TOP_K)[0]
    text.choice = np.tile(by_id[text.label], (N_STEPS, 1, 1))
    found = _lookup(text)
    np.testing.assert_allclose(found.floor, 1)
    assert np.isnan(routes.beyond(found.repeated, found.floor)).all()


def test_routes_that_ignore_the_id_have_the_floor_of_chance() -> None:
    choice, label = _iid(6000, 8, 2), np.arange(6000) % 40
    pairs = np.array([[0, 1], [1, 2]])
    found = token_lookup.lookup(choice, label, np.arange(6000) // 600, pairs, n_experts=8)
    np.testing.assert_allclose(found.floor, 2 / 8, atol=0.005)


def test_floor_without_a_unit_equals_computing_without_it(text: SimpleNamespace) -> None:
    found = _lookup(text)
    for unit in range(N_UNITS):
        kept = text.unit != unit
        without = SimpleNamespace(
            choice=text.choice[:, kept],
            label=text.label[kept],
            unit=np.unique(text.unit[kept], return_inverse=True)[1],
        )
        np.testing.assert_allclose(found.floor_deleted[unit], _lookup(without).floor)
        np.testing.assert_allclose(found.repeated_deleted[unit], _lookup(without).repeated)


def test_text_without_a_repeated_id_has_no_floor(text: SimpleNamespace) -> None:
    text.label = np.arange(N_TOKENS)
    assert np.isnan(_lookup(text).floor).all()


def test_a_route_is_a_set_of_experts(text: SimpleNamespace) -> None:
    code = routes.route_codes(text.choice, n_experts=N_EXPERTS)
    np.testing.assert_array_equal(
        code, routes.route_codes(text.choice[..., ::-1], n_experts=N_EXPERTS)
    )
    sets = {frozenset(route) for route in text.choice.reshape(-1, TOP_K).tolist()}
    assert len(np.unique(code)) == len(sets)


def test_a_route_is_settled_from_where_it_equals_the_last_for_good() -> None:
    code = np.array([[1, 2, 1, 5], [1, 1, 2, 5], [1, 2, 1, 5], [1, 2, 1, 6]], dtype=np.uint64)
    assert routes.settled_from(code).tolist() == [0, 2, 2, 3]


def test_share_settled_by_chance_is_a_product_of_shares() -> None:
    rng = np.random.default_rng(0)
    code = rng.choice(4, p=[0.4, 0.3, 0.2, 0.1], size=(4, 50_000)).astype(np.uint64)
    chance = routes.settled_by_chance(code)
    q = np.array([0.4, 0.3, 0.2, 0.1])
    np.testing.assert_allclose(chance, [(q**n).sum() for n in (4, 3, 2, 1)], rtol=0.02)
    settled = routes.settled_from(code)
    np.testing.assert_allclose([(settled <= c).mean() for c in range(4)], chance, atol=0.005)


def test_share_settled_by_chance_agrees_with_a_product_over_all_routes() -> None:
    code = np.random.default_rng(3).integers(0, 6, (5, 40)).astype(np.uint64)
    code[1:, 0], code[-1, code[-1] == 2] = [9, 7, 8, 9], 1  # known at some checkpoints alone
    share = np.stack([[(of_step == route).mean() for route in range(10)] for of_step in code])
    expected = [share[step:].prod(axis=0).sum() for step in range(5)]
    np.testing.assert_allclose(routes.settled_by_chance(code), expected)


def test_change_rate_compares_with_a_step_at_least_one_doubling_back() -> None:
    x = np.log2(1.0 + np.array([0, 1, 3, 100, 103, 207]))
    alike = np.eye(6)
    alike[0, 1], alike[1, 2], alike[2, 3], alike[2, 4], alike[4, 5] = 0.9, 0.8, 0.3, 0.4, 0.6
    before = routes.doubling_before(x)
    assert before.tolist() == [-1, 0, 1, 2, 2, 4]
    rate = routes.change_rate(alike[before, np.arange(6)], x)
    expected = [np.nan, 0.1, 0.2, 0.7 / (x[3] - 2), 0.6 / (x[4] - 2), 0.4]
    np.testing.assert_allclose(rate, expected)
