"""KL and JS divergence: known answers, scipy, invariances, and what float16 does to them."""

import numpy as np
import pytest
from scipy.spatial.distance import jensenshannon
from scipy.stats import entropy

from analyses.statistics.divergence import (
    distributions,
    divergence_sums,
    js_divergence,
    kl_divergence,
)

LN2 = np.log(2)


def log_probs(*shape: int, spread: float = 2.0, seed: int = 0) -> np.ndarray:
    logits = spread * np.random.default_rng(seed).standard_normal(shape)
    return logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))


def summed(
    log_prob: np.ndarray, cell: list[int] | None = None, reference: np.ndarray | None = None
):
    n_tokens, n_ids = log_prob.shape[1:]
    cell = [0] * n_tokens if cell is None else cell
    reference = np.zeros((1, n_ids)) if reference is None else reference
    return divergence_sums(log_prob, np.array(cell), n_cells=max(cell) + 1, reference=reference)


def test_known_divergences_in_nats() -> None:
    p = np.log([[0.5, 0.25, 0.125, 0.125], [0.7, 0.1, 0.1, 0.1]])
    q = np.log([[0.25, 0.25, 0.25, 0.25], [0.1, 0.7, 0.1, 0.1]])
    kl, js = [0.1732867951399863, 1.1675460894331877], [0.04247475919884931, 0.25310161544280674]
    np.testing.assert_allclose(kl_divergence(p, q), kl, rtol=1e-13)
    np.testing.assert_allclose(kl_divergence(q, p), kl, rtol=1e-13)
    np.testing.assert_allclose(js_divergence(p, q), js, rtol=1e-13)


def test_divergences_are_those_of_scipy() -> None:
    log_p, log_q = log_probs(2, 40, 30)
    p, q = np.exp(log_p), np.exp(log_q)
    np.testing.assert_allclose(kl_divergence(log_p, log_q), entropy(p, q, axis=-1), rtol=1e-12)
    np.testing.assert_allclose(
        js_divergence(log_p, log_q), jensenshannon(p, q, axis=-1) ** 2, rtol=1e-10
    )


def test_equal_losses_may_hide_distributions_far_apart() -> None:
    p, q = np.log([[0.4, 0.6, 0.0001], [0.4, 0.0001, 0.6]])
    assert p[0] == q[0]
    assert js_divergence(p, q) > 0.4
    assert js_divergence(p, p) == 0 == kl_divergence(p, p)


def test_an_impossible_id_makes_kl_infinite_and_leaves_js_finite() -> None:
    with np.errstate(divide="ignore"):
        p, q = np.log([0.5, 0.5, 0.0]), np.log([1.0, 0.0, 0.0])
    assert kl_divergence(p, q) == np.inf
    assert kl_divergence(q, p) == pytest.approx(LN2)
    assert js_divergence(p, q) == pytest.approx(jensenshannon([0.5, 0.5, 0], [1, 0, 0]) ** 2)
    sums = summed(np.stack([p, q, p])[:, None])
    assert sums.kl[0, 0, 1] == np.inf
    assert sums.kl[0, 0, 2] == 0
    assert sums.js[0, 0, 1] == pytest.approx(js_divergence(p, q))
    np.testing.assert_allclose(sums.reference[0, 0, :2], [np.log(1.5), np.log(3)])


def test_disjoint_distributions_are_ln_2_apart() -> None:
    with np.errstate(divide="ignore"):
        p, q = np.log([[1.0, 0.0], [0.0, 1.0]])
    assert js_divergence(p, q) == pytest.approx(LN2, abs=1e-15)


def test_a_constant_added_to_logarithms_and_the_order_of_ids_do_not_matter() -> None:
    p, q = log_probs(2, 5, 30)
    order = np.random.default_rng(1).permutation(30)
    for divergence in (kl_divergence, js_divergence):
        np.testing.assert_allclose(divergence(p + 3, q - 700), divergence(p, q), rtol=1e-10)
        np.testing.assert_allclose(divergence(p[:, order], q[:, order]), divergence(p, q))
    np.testing.assert_allclose(js_divergence(p, q), js_divergence(q, p), rtol=1e-12)


def test_renormalised_distributions_sum_to_one() -> None:
    p, log_p = distributions(log_probs(6, 50).astype("float16"))
    assert p.dtype == log_p.dtype == np.float64
    np.testing.assert_allclose(p.sum(axis=-1), 1, rtol=1e-14)
    np.testing.assert_allclose(np.exp(log_p), p, rtol=1e-13)


def test_sums_are_those_of_a_slow_loop() -> None:
    log_prob, reference = log_probs(4, 9, 20), log_probs(2, 20, seed=5)
    cell = [0, 2, 2, 1, 0, 0, 2, 1, 4]
    sums = summed(log_prob, cell, reference)
    for c in range(5):
        tokens = [t for t in range(9) if cell[t] == c]
        for i in range(4):
            own = log_prob[i, tokens]
            for k in range(2):
                expected = sum(entropy(np.exp(x), np.exp(reference[k])) for x in own)
                assert sums.reference[c, k, i] == pytest.approx(expected, rel=1e-10)
            for j in range(4):
                other = log_prob[j, tokens]
                both = kl_divergence(own, other) + kl_divergence(other, own)
                assert sums.kl[c, i, j] == pytest.approx(both.sum() / 2, abs=1e-12)
                js = js_divergence(own, other).sum()
                assert sums.js[c, i, j] == pytest.approx(js, abs=1e-12)


def test_blocks_do_not_change_the_sums(monkeypatch: pytest.MonkeyPatch) -> None:
    log_prob, cell = log_probs(3, 50, 16), [t % 7 for t in range(50)]
    whole = summed(log_prob, cell)
    monkeypatch.setattr("analyses.statistics.divergence._ELEMENTS", 100)
    for ours, theirs in zip(summed(log_prob, cell), whole, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-13)


def test_a_model_with_a_missing_token_is_missing_in_all_its_pairs_alone() -> None:
    log_prob = log_probs(3, 6, 10)
    whole = summed(log_prob)
    log_prob[1, 4] = np.nan
    sums = summed(log_prob, [0, 1, 1, 0, 0, 1])
    for values in (sums.kl, sums.js):
        assert np.isnan(values[:, 1]).all()
        assert np.isnan(values[:, :, 1]).all()
    assert np.isnan(sums.reference[..., 1]).all()
    np.testing.assert_allclose(sums.kl.sum(axis=0)[0, 2], whole.kl[0, 0, 2])


@pytest.mark.parametrize("spread", [1.0, 2.5])
def test_float16_moves_a_mean_kl_by_less_than_a_ten_thousandth_of_a_nat(spread: float) -> None:
    """Distributions over 2,048 ids as flat, and as peaked, as those of trained models.

    A single position moves by up to 0.001 nats, but errors of rounding average out.
    """
    rng = np.random.default_rng(0)
    shared = spread * rng.standard_normal((300, 2048))
    logits = shared + 0.5 * rng.standard_normal((2, 300, 2048))
    log_p, log_q = logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
    for divergence in (kl_divergence, js_divergence):
        exact = divergence(log_p, log_q)
        stored = divergence(log_p.astype("float16"), log_q.astype("float16"))
        assert 0.02 < exact.mean() < 0.5
        assert abs(stored.mean() - exact.mean()) < 2e-5
        assert 1e-5 < np.abs(stored - exact).max() < 1e-3
