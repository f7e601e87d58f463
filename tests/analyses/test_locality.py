import itertools

import numpy as np
import pytest

from analyses.statistics.locality import lags, load_chance, repetitions, set_weights, uniform_chance


def _drawn(*, n_experts: int, top_k: int, shape: tuple[int, int] = (6, 20)) -> np.ndarray:
    scores = np.random.default_rng(0).random((*shape, n_experts)) ** np.linspace(1, 3, n_experts)
    return np.argsort(scores, axis=-1)[..., ::-1][..., :top_k]


@pytest.mark.parametrize(("n_experts", "top_k"), [(5, 1), (6, 2), (70, 3)])
def test_every_sum_agrees_with_a_loop_over_pairs(n_experts: int, top_k: int) -> None:
    choice = _drawn(n_experts=n_experts, top_k=top_k)
    token = np.random.default_rng(1).integers(0, 4, choice.shape[:2])
    found = repetitions(choice, token, [1, 2, 8], n_experts=n_experts)
    for s, (ids, of_sequence) in enumerate(zip(token, choice, strict=True)):
        for c in range(1 if top_k == 1 else 2):
            width = (1, top_k)[c]
            for p, kept in enumerate((lambda t, u: True, lambda t, u, ids=ids: ids[t] != ids[u])):
                agree = {
                    (t, u): bool(set(of_sequence[t][:width]) & set(of_sequence[u][:width]))
                    for t, u in itertools.combinations(range(20), 2)
                    if kept(t, u)
                }
                share = np.mean(list(agree.values()))
                for i, lag in enumerate((1, 2, 8)):
                    at_lag = [a for (t, u), a in agree.items() if u - t == lag]
                    assert found.agree[s, c, p, i] == sum(at_lag)
                    assert found.pairs[s, p, i] == len(at_lag)
                    assert found.expected[s, c, p, i] == pytest.approx(share * len(at_lag))


def test_chance_in_a_sequence_has_its_closed_form() -> None:
    choice = _drawn(n_experts=5, top_k=1)
    found = repetitions(choice, np.zeros((6, 20)), [1], n_experts=5)
    n_i = (choice == np.arange(5)).sum(axis=1)
    closed = ((n_i**2).sum(axis=1) - 20) / (20 * 19)
    np.testing.assert_allclose(found.expected[:, 0, 0, 0] / 19, closed)
    assert (found.pairs[:, 1] == 0).all()  # one id: no pair of two


def test_chance_in_a_sequence_is_the_mean_over_shuffled_positions() -> None:
    rng, choice = np.random.default_rng(2), _drawn(n_experts=6, top_k=2, shape=(1, 12))
    token = np.zeros((1, 12), dtype=int)
    orders = [rng.permutation(12) for _ in range(4000)]
    shuffled = np.concatenate([choice[:, order] for order in orders])
    found = repetitions(shuffled, np.repeat(token, 4000, axis=0), [1, 4], n_experts=6)
    np.testing.assert_allclose(found.expected[1:], found.expected[:1].repeat(3999, axis=0))
    np.testing.assert_allclose(found.agree.mean(axis=0), found.expected[0], rtol=0.02)


def test_excess_over_the_sequence_sums_to_zero_over_all_lags() -> None:
    choice = _drawn(n_experts=6, top_k=2)
    found = repetitions(choice, np.zeros((6, 20)), range(1, 20), n_experts=6)
    excess = (found.agree - found.expected)[:, :, 0].sum(axis=-1)
    np.testing.assert_allclose(excess, 0, atol=1e-9)


def test_small_blocks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    choice, token = _drawn(n_experts=6, top_k=2), np.tile(np.arange(20) % 3, (6, 1))
    whole = repetitions(choice, token, [1, 3], n_experts=6)
    monkeypatch.setattr("analyses.statistics.locality._BLOCK", 1)
    for part, expected in zip(repetitions(choice, token, [1, 3], n_experts=6), whole, strict=True):
        np.testing.assert_array_equal(part, expected)


@pytest.mark.parametrize(
    ("n_experts", "top_k", "known"),
    [(8, 1, 0.125), (8, 2, 0.4643), (64, 8, 0.6791), (256, 8, 0.2271), (64, 6, 0.4601)],
)
def test_even_loads_give_the_uniform_chance(n_experts: int, top_k: int, known: float) -> None:
    assert uniform_chance(n_experts, top_k)[-1] == pytest.approx(known, abs=5e-5)
    of_loads = load_chance(np.full((2, n_experts), 7.0), top_k=top_k)
    np.testing.assert_allclose(of_loads, uniform_chance(n_experts, top_k)[-1])


def test_one_choice_agrees_by_the_sum_of_squared_loads() -> None:
    counts = np.array([[5.0, 3, 2], [10, 0, 0]])
    np.testing.assert_allclose(load_chance(counts, top_k=1), [0.38, 1.0])


def test_chance_of_sets_agrees_with_all_sets_enumerated() -> None:
    weight = np.random.default_rng(3).gamma(1.0, size=6)
    sets = list(itertools.combinations(range(6), 3))
    p = np.array([np.prod(weight[list(s)]) for s in sets])
    p /= p.sum()
    inclusion = np.array([sum(q for q, s in zip(p, sets, strict=True) if i in s) for i in range(6)])
    both = np.array([[bool(set(a) & set(b)) for b in sets] for a in sets])
    assert float(load_chance(inclusion, top_k=3)) == pytest.approx(p @ both @ p)
    found = set_weights(inclusion, top_k=3)
    np.testing.assert_allclose(found / found[0], weight / weight[0], rtol=1e-6)


def test_unused_experts_and_experts_of_all_tokens_are_borne() -> None:
    unused = load_chance(np.array([0.0, 0, 5, 5, 5, 5]), top_k=2)
    assert float(unused) == pytest.approx(uniform_chance(4, 2)[-1])
    assert float(load_chance(np.array([9.0, 3, 3, 3]), top_k=2)) == pytest.approx(1, abs=1e-6)


def test_lags_reach_to_half_a_sequence() -> None:
    assert [lags(n) for n in (2, 3, 24, 128)] == [
        [1], [1], [1, 2, 4, 8], [1, 2, 4, 8, 16, 32, 64],
    ]  # fmt: skip
    with pytest.raises(ValueError, match="sequences of 1 token have no neighbours"):
        lags(1)
