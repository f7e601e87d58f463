import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats

from analyses.statistics.router_entropy import decomposition, loss_relation, uncertainty

N_UNITS, N_EXPERTS = 10, 6


def _router(n_tokens: int = 300) -> tuple[NDArray, NDArray]:
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 1.5, (n_tokens, N_EXPERTS))
    prob = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    return prob, np.arange(n_tokens) % N_UNITS


def test_uniform_router_has_maximal_entropy_and_tells_nothing() -> None:
    found = uncertainty(np.full((20, 8), 1 / 8), np.arange(20) % 2)
    parts = decomposition(found.sums.sum(axis=0))
    np.testing.assert_allclose(found.entropy, np.log(8))
    assert parts["router_entropy"] == pytest.approx(np.log(8))
    assert parts["token_information"] == pytest.approx(0, abs=1e-12)
    assert parts["margin"] == 0


def test_balanced_lookup_has_no_entropy_at_a_token_and_ln_n_of_information() -> None:
    found = uncertainty(np.eye(8)[np.arange(24) % 8], np.arange(24) // 8)
    parts = decomposition(found.sums.sum(axis=0))
    assert parts["token_entropy"] == 0
    assert parts["token_information"] == pytest.approx(np.log(8))
    assert parts["margin"] == 1


def test_collapsed_router_has_neither_entropy_nor_information() -> None:
    found = uncertainty(np.eye(8)[np.zeros(6, int)], np.arange(6) // 3)
    parts = decomposition(found.sums.sum(axis=0))
    assert [parts[name] for name in ("router_entropy", "token_information")] == [0, 0]


def test_information_is_the_mean_divergence_from_the_mean_distribution() -> None:
    prob, unit = _router()
    found = uncertainty(prob, unit)
    parts = decomposition(found.sums.sum(axis=0))
    np.testing.assert_allclose(found.entropy, stats.entropy(prob, axis=1))
    divergence = [stats.entropy(p, prob.mean(axis=0)) for p in prob]
    assert parts["token_information"] == pytest.approx(np.mean(divergence))
    two = np.sort(prob, axis=1)[:, -2:]
    assert parts["margin"] == pytest.approx((two[:, 1] - two[:, 0]).mean())


def test_router_that_ignores_its_input_has_exactly_no_information() -> None:
    prob, unit = _router()
    found = uncertainty(np.tile(prob[:1], (len(prob), 1)), unit)
    assert decomposition(found.sums.sum(axis=0))["token_information"] == pytest.approx(0, abs=1e-12)


def test_sums_of_units_are_those_of_their_tokens() -> None:
    prob, unit = _router()
    sums = uncertainty(prob, unit).sums
    own = uncertainty(prob[unit == 3], np.zeros((unit == 3).sum(), int)).sums[0]
    np.testing.assert_allclose(sums[3], own)


def test_rounding_to_half_precision_hardly_matters() -> None:
    prob, unit = _router()
    exact, rounded = (uncertainty(p, unit) for p in (prob, prob.astype("float16")))
    np.testing.assert_allclose(rounded.entropy, exact.entropy, atol=2e-3)
    np.testing.assert_allclose(rounded.sums[:, 3:].sum(axis=1), rounded.sums[:, 0])


@pytest.fixture
def related() -> dict[str, NDArray]:
    """Entropy and loss of 600 tokens that share their difficulty and nothing else."""
    rng = np.random.default_rng(1)
    difficulty = rng.gamma(2.0, 1.0, 600)
    return {
        "entropy": difficulty + rng.normal(0, 0.5, 600),
        "loss": difficulty + rng.normal(0, 0.5, 600),
        "controls": np.stack([difficulty, difficulty**2]),
        "unit": np.repeat(np.arange(30), 20),
    }


def _relation(at: dict[str, NDArray]) -> dict[str, tuple[NDArray, NDArray]]:
    rows = np.stack([at["entropy"], np.full_like(at["entropy"], 1.25)])
    return loss_relation(rows, at["loss"], at["unit"], controls=at["controls"])


def test_relation_agrees_with_scipy_and_with_least_squares(related: dict[str, NDArray]) -> None:
    found = {name: np.tanh(z[0]) for name, (z, _) in _relation(related).items()}
    entropy, loss = related["entropy"], related["loss"]
    assert found["entropy_loss_r"] == pytest.approx(stats.pearsonr(entropy, loss)[0])
    assert found["entropy_loss_rho"] == pytest.approx(stats.spearmanr(entropy, loss)[0])
    design = np.stack([np.ones(600), *related["controls"]], axis=1)
    left = [y - design @ np.linalg.lstsq(design, y, rcond=None)[0] for y in (entropy, loss)]
    assert found["entropy_loss_partial_r"] == pytest.approx(stats.pearsonr(*left)[0])


def test_what_difficulty_alone_makes_vanishes_when_it_is_held_fixed(
    related: dict[str, NDArray],
) -> None:
    found = _relation(related)
    assert found["entropy_loss_r"][0][0] > 1
    assert abs(found["entropy_loss_partial_r"][0][0]) < 3 / np.sqrt(600)


def test_relation_without_a_unit_equals_computing_without_it(related: dict[str, NDArray]) -> None:
    kept = related["unit"] != 7
    without = {name: values[..., kept] for name, values in related.items()}
    _, without["unit"] = np.unique(without["unit"], return_inverse=True)
    for name in ("entropy_loss_r", "entropy_loss_partial_r"):
        deleted = _relation(related)[name][1][7, 0]
        assert deleted == pytest.approx(_relation(without)[name][0][0])


def test_router_of_constant_entropy_has_no_correlation(related: dict[str, NDArray]) -> None:
    assert all(np.isnan(z[1]) for z, _ in _relation(related).values())
