from itertools import combinations, product

import numpy as np
import pytest
from numpy.typing import NDArray

from analyses.statistics import coactivation as together
from analyses.statistics.fixed_size_sets import drawn_probability, joint_inclusion
from analyses.statistics.pairs import pair_indices

N, K = 6, 3


def _by_enumeration(weight: NDArray, top_k: int) -> tuple[NDArray, NDArray]:
    """Inclusion of experts and of pairs if a set's probability is the product of its weights."""
    n = len(weight)
    sets = list(combinations(range(n), top_k))
    p = np.array([np.prod(weight[list(chosen)]) for chosen in sets])
    chosen = np.array([[i in s for i in range(n)] for s in sets], dtype=float)
    joint = chosen.T @ (chosen * (p / p.sum())[:, None])
    return joint.diagonal(), joint[pair_indices(n)]


def _drawn(weight: NDArray, top_k: int, n: int, rng: np.random.Generator) -> NDArray:
    """Sets of the null, (token, top_k), drawn from the list of all."""
    sets = np.array(list(combinations(range(len(weight)), top_k)))
    p = weight[sets].prod(axis=1)
    return sets[rng.choice(len(sets), size=n, p=p / p.sum())]


def _curveball(choice: NDArray, n_trades: int, rng: np.random.Generator) -> NDArray:
    """Tokens trade experts, two at a time; keeps k per token and every load exactly.

    Strona et al. (2014), doi:10.1038/ncomms5114.
    """
    sets = [set(row) for row in choice.tolist()]
    for a, b in rng.integers(len(sets), size=(n_trades, 2)).tolist():
        if a == b:
            continue
        common, differing = sets[a] & sets[b], sorted(sets[a] ^ sets[b])
        given = set(rng.permutation(differing)[: len(differing) // 2].tolist())
        sets[a], sets[b] = common | given, common | (set(differing) - given)
    return np.array([sorted(s) for s in sets])


def _excess(choice: NDArray, n_units: int, *, n_experts: int) -> together.Excess:
    unit = np.arange(len(choice)) * n_units // len(choice)
    counts = together.unit_counts(choice, unit, n_experts=n_experts)
    return together.beyond_loads(counts, top_k=choice.shape[1])


def _spread(excess: together.Excess) -> together.Product:
    scaled = together.scaled_excess(excess)
    return together.unbiased_product(scaled, scaled, excess.tokens)


@pytest.mark.parametrize("top_k", [1, 2, 3, 5])
def test_null_agrees_with_enumerating_all_sets(top_k: int) -> None:
    weight = np.array([0.2, 0.5, 1.0, 1.0, 3.0, 20.0])
    share, joint = _by_enumeration(weight, top_k)
    p = drawn_probability(share, top_k=top_k)
    np.testing.assert_allclose(joint_inclusion(p, top_k=top_k), joint, 1e-8, 1e-14)
    ratio = p / (1 - p) / weight
    np.testing.assert_allclose(ratio / ratio[0], 1, rtol=1e-8)


def test_even_loads_have_the_closed_form_of_drawing_without_replacement() -> None:
    for n, k in ((8, 2), (64, 8), (256, 8)):
        p = drawn_probability(np.full(n, k / n), top_k=k)
        expected = k * (k - 1) / (n * (n - 1))
        np.testing.assert_allclose(joint_inclusion(p, top_k=k), expected, rtol=1e-10)


@pytest.mark.parametrize("concentration", [0.1, 1.0, 50.0])
def test_pairs_of_an_expert_add_up_to_its_load_for_256_experts(concentration: float) -> None:
    rng = np.random.default_rng(0)
    share = rng.dirichlet(np.full(256, concentration), size=2) + 1e-7
    for _ in range(30):
        share = np.minimum(share * 8 / share.sum(axis=1, keepdims=True), 0.99)
    p = drawn_probability(share, top_k=8)
    of_expert = together.square(joint_inclusion(p, top_k=8), diagonal=0.0).sum(axis=-1)
    np.testing.assert_allclose(of_expert, 7 * share, rtol=1e-7)


def test_experts_of_no_token_and_of_all_tokens_are_left_where_they_are() -> None:
    share = np.array([1.0, 0.5, 0.3, 0.2, 0.0])
    p = drawn_probability(share, top_k=2)
    assert p[[0, 4]].tolist() == [1.0, 0.0]
    joint = together.square(joint_inclusion(p, top_k=2), diagonal=0.0)
    # with one place taken, only the first expert is met
    np.testing.assert_allclose(joint[0], [0, 0.5, 0.3, 0.2, 0], atol=1e-9)
    np.testing.assert_allclose(joint[1:, 1:], 0, atol=1e-9)
    nearly = np.array([1 - 1e-6, 1 - 1e-6, 1e-6, 1e-6])
    p = drawn_probability(nearly, top_k=2)
    assert joint_inclusion(p, top_k=2)[0] == pytest.approx(1, abs=1e-5)


def test_slow_convergence_of_two_rivals_is_overcome() -> None:
    share = np.array([0.98, 0.01, 0.01])
    p = drawn_probability(share, top_k=1)
    odds = p / (1 - p)
    np.testing.assert_allclose(odds / odds.sum(), share, rtol=1e-8)


def test_counts_agree_with_a_loop_over_all_pairs_of_each_token() -> None:
    rng = np.random.default_rng(1)
    choice, unit = _drawn(rng.random(N), K, 40, rng), rng.permutation(np.arange(40) % 3)
    # the order of experts in a token's row, its rank, does not matter
    shuffled = rng.permuted(choice, axis=1)
    counts = together.unit_counts(shuffled, unit, n_experts=N)
    expected = np.zeros((3, N, N))
    for row, u in zip(shuffled.tolist(), unit, strict=True):
        for i, j in product(row, row):
            expected[u, i, j] += 1
    np.testing.assert_array_equal(counts.pairs, expected[(slice(None), *pair_indices(N))])
    np.testing.assert_array_equal(counts.experts, np.einsum("uii->ui", expected))
    conditional = together.conditional_share(counts.pairs, counts.experts)
    np.testing.assert_allclose(conditional.sum(axis=-1), K - 1)
    assert conditional[0, 1, 2] == expected[0, 1, 2] / expected[0, 1, 1]


def test_expectation_is_that_of_swaps_that_keep_loads_exactly() -> None:
    rng = np.random.default_rng(2)
    choice = _drawn(np.array([0.3, 0.5, 1.0, 1.5, 3.0, 6.0]), 2, 150, rng)
    choice[:40] = [0, 1]  # partners, whom the swaps part
    excess, drawn = _excess(choice, 3, n_experts=N), []
    for _ in range(250):
        choice = _curveball(choice, 600, rng)
        counts = together.unit_counts(choice, np.zeros(150, dtype=int), n_experts=N)
        drawn.append(counts.pairs[0])
    assert excess.observed[0] > 1.5 * excess.expected[0]
    error = np.std(drawn, axis=0) / np.sqrt(len(drawn))
    # loads that are kept on average only change an expectation by less than one token
    np.testing.assert_array_less(np.abs(np.mean(drawn, axis=0) - excess.expected), 4 * error + 0.5)


def test_parts_of_units_add_up_and_deleting_one_is_computing_without_it() -> None:
    rng = np.random.default_rng(3)
    choice = _drawn(rng.random(N) + 0.2, K, 300, rng)
    unit = np.repeat([0, 1, 2, 3], [30, 60, 90, 120])
    counts = together.unit_counts(choice, unit, n_experts=N)
    kept = together.unit_counts(choice[unit > 0], unit[unit > 0] - 1, n_experts=N)
    for beyond in (together.beyond_loads, together.beyond_unit_loads):
        excess, without = beyond(counts, top_k=K), beyond(kept, top_k=K)
        np.testing.assert_allclose(excess.lift_deleted[0], together.lift(without), rtol=1e-7)
        difference = excess.observed - excess.expected
        np.testing.assert_allclose(excess.of_unit.sum(axis=0), difference, atol=1.5)
        np.testing.assert_allclose(excess.expected.sum(), 300 * K * (K - 1) / 2)
    np.testing.assert_allclose(excess.of_unit.sum(axis=0), difference)  # exact within units


def test_experts_that_like_a_topic_are_no_partners_once_loads_are_kept_within_units() -> None:
    rng, likes = np.random.default_rng(4), np.array([4.0, 4.0, 4.0, 1.0, 1.0, 1.0])
    choice = np.concatenate(
        [_drawn(likes if u % 2 else likes[::-1], 2, 400, rng) for u in range(20)]
    )
    counts = together.unit_counts(choice, np.arange(8000) // 400, n_experts=N)
    loads, within = together.beyond_loads(counts, top_k=2), together.beyond_unit_loads(
        counts, top_k=2
    )  # fmt: skip
    assert together.lift(loads)[0] > 1.3
    assert np.abs(together.z_score(loads)).max() > 10
    np.testing.assert_allclose(together.lift(within), 1, atol=0.15)
    assert np.abs(together.z_score(within)).max() < 4
    assert _spread(within).estimate < 0.02 * _spread(loads).estimate


def test_lift_of_planted_partners_is_found() -> None:
    rng, sets = np.random.default_rng(5), np.array(list(combinations(range(N), 2)))
    share = np.full(len(sets), 1.0)
    share[[0, 9, 14]] = 3.0  # 01, 23 and 45: loads stay even
    choice = sets[rng.choice(len(sets), size=60_000, p=share / share.sum())]
    excess = _excess(choice, 20, n_experts=N)
    lift = share / share.mean()
    np.testing.assert_allclose(together.lift(excess), lift, rtol=0.05)
    assert _spread(excess).estimate == pytest.approx(((lift - 1) ** 2).mean(), rel=0.05)
    order = together.partners_side_by_side(together.lift(excess))
    place = np.argsort(order)
    assert np.abs(np.diff(place)[::2]).tolist() == [1, 1, 1]


def test_pair_never_seen_has_the_error_of_a_binomial_count() -> None:
    sets = np.array([s for s in combinations(range(N), 2) if s != (0, 1)])
    choice = sets[np.random.default_rng(6).integers(len(sets), size=6000)]
    excess = _excess(choice, 30, n_experts=N)
    share = excess.expected[0] / 6000
    assert together.standard_error(excess)[0] < np.sqrt(excess.expected[0])
    z = -np.sqrt(excess.expected[0] / (1 - share))
    assert together.z_score(excess)[0] == pytest.approx(z)


def test_dead_expert_has_no_lift_and_disturbs_nothing() -> None:
    rng = np.random.default_rng(7)
    choice = _drawn(np.ones(N), 2, 2000, rng)
    excess, with_dead = (_excess(choice, 10, n_experts=n) for n in (N, N + 1))
    lifts = together.square(together.lift(with_dead))
    assert np.isnan(lifts[N]).all()
    np.testing.assert_allclose(lifts[:N, :N], together.square(together.lift(excess)), rtol=1e-7)
    assert _spread(with_dead).estimate == pytest.approx(_spread(excess).estimate)
    p = together.largest_p(with_dead, n_resamples=99, rng=rng)
    assert np.isfinite(p).sum() == N * (N - 1) / 2


def _repeated(block: int, rng: np.random.Generator) -> NDArray:
    """Sets of the null in 20 units of 100 tokens, each set standing `block` times in a row."""
    return np.repeat(_drawn(np.ones(8), 2, 2000 // block, rng), block, axis=0)


def test_null_is_kept_where_tokens_of_a_unit_depend_on_each_other() -> None:
    rng, rejected, naive, spread = np.random.default_rng(8), 0, 0, []
    for _ in range(300):
        excess = _excess(_repeated(5, rng), 20, n_experts=8)
        p = together.largest_p(excess, n_resamples=99, rng=rng)
        rejected += p.min() <= 0.05
        binomial = np.sqrt(excess.expected * (1 - excess.expected / 2000))
        naive += np.abs((excess.observed - excess.expected) / binomial).max() > 3.3  # .05 / 28
        spread.append(_spread(excess).estimate / together.noise(
            together.scaled_excess(excess), excess.tokens))  # fmt: skip
    assert rejected / 300 < 0.05
    assert naive / 300 > 0.5  # the negative control: tokens taken for independent
    assert abs(np.mean(spread)) < 4 * np.std(spread) / np.sqrt(300) + 0.03


def test_errors_of_independent_tokens_are_those_of_simulation() -> None:
    rng = np.random.default_rng(9)
    excesses = [_excess(_repeated(1, rng), 20, n_experts=8) for _ in range(150)]
    simulated = np.std([e.observed - e.expected for e in excesses])
    error = np.sqrt(np.mean([together.standard_error(e) ** 2 for e in excesses]))
    assert error == pytest.approx(simulated, rel=0.05)


def test_interval_of_spread_covers_it() -> None:
    rng, sets, covered = np.random.default_rng(10), np.array(list(combinations(range(N), 2))), 0
    share = np.full(len(sets), 1.0)
    share[[0, 9, 14]] = 2.0
    truth = ((share / share.mean() - 1) ** 2).mean()
    for _ in range(300):
        drawn = sets[rng.choice(len(sets), size=1500, p=share / share.sum())]
        found = _spread(_excess(np.repeat(drawn, 2, axis=0), 30, n_experts=N))
        error = np.sqrt(29 / 30 * ((found.deleted - found.deleted.mean()) ** 2).sum())
        covered += abs(found.estimate - truth) < 2.045 * error
    assert 0.9 < covered / 300 < 0.99


def test_product_agrees_with_a_loop_over_different_units() -> None:
    rng = np.random.default_rng(11)
    a, b = rng.standard_normal((2, 5, 4))
    tokens = np.array([1.0, 2.0, 3.0, 4.0, 5.0])

    def slow(units: list[int]) -> float:
        share = tokens / tokens.sum()
        different = [(u, v) for u in units for v in units if u != v]
        return sum(a[u] @ b[v] for u, v in different) / sum(
            share[u] * share[v] for u, v in different
        )

    found = together.unbiased_product(a, b, tokens)
    assert found.estimate == pytest.approx(slow([0, 1, 2, 3, 4]))
    expected = [slow([u for u in range(5) if u != out]) for out in range(5)]
    np.testing.assert_allclose(found.deleted, expected)
    assert np.isnan(together.unbiased_product(a[:2], b[:2], tokens[:2]).deleted).all()
    # units that deviate alike, each by its size, leave no noise, and the square of their sum
    alike = tokens[:, None] * a[0]
    whole = together.unbiased_product(alike, alike, tokens)
    np.testing.assert_allclose(whole.estimate, 15**2 * a[0] @ a[0])
    np.testing.assert_allclose(whole.deleted, whole.estimate)
    assert together.noise(alike, tokens) == pytest.approx(0, abs=1e-12)
