import numpy as np
import pytest

from analyses.statistics import load
from analyses.statistics.information import entropy
from analyses.statistics.permutation import permutation_p
from analyses.statistics.routing import document_choices


@pytest.mark.parametrize(
    ("counts", "top_k", "fair", "violation", "gini"),
    [
        ([5] * 8, 1, 1.0, 0.0, 0.0),
        ([5] * 64, 8, 1.0, 0.0, 0.0),
        ([9] + [0] * 7, 1, 0.0, 7.0, 1 - 1 / 8),
        ([6, 6, 0, 0, 0, 0, 0, 0], 2, 0.0, 3.0, 1 - 2 / 8),
        ([2, 2, 2, 2, 0, 0, 0, 0], 1, np.log(4) / np.log(8), 1.0, 0.5),
    ],
)
def test_measures_of_load_have_their_closed_forms(
    counts: list[int], top_k: int, fair: float, violation: float, gini: float
) -> None:
    values = np.array(counts)
    assert load.fair_index(values, top_k=top_k) == pytest.approx(fair, abs=1e-12)
    assert load.max_violation(values) == pytest.approx(violation)
    assert load.gini(values) == pytest.approx(gini)


def test_load_that_cannot_but_be_even_has_no_fair_index() -> None:
    assert np.isnan(load.fair_index(np.array([[7, 7, 7], [2, 2, 2]]), top_k=3)).all()


def test_gini_is_half_the_relative_mean_absolute_difference() -> None:
    counts = np.random.default_rng(0).integers(0, 50, 9)
    total = sum(abs(int(a) - int(b)) for a in counts for b in counts)
    assert load.gini(counts) == pytest.approx(total / (2 * 9**2 * counts.mean()))


def test_names_of_experts_do_not_matter() -> None:
    rng = np.random.default_rng(0)
    counts = rng.integers(0, 50, (3, 16))
    renamed = counts[:, rng.permutation(16)]
    for measure in (load.max_violation, load.gini, load.dead_experts):
        np.testing.assert_allclose(measure(renamed), measure(counts))
    np.testing.assert_allclose(load.fair_index(renamed, top_k=2), load.fair_index(counts, top_k=2))


def test_starved_experts_have_less_than_a_tenth_of_an_even_share() -> None:
    counts = np.array([0, 1, 24, 26, 949])  # of 1,000: a tenth of an even share is 20
    assert load.dead_experts(counts) == 1
    assert load.starved_experts(counts / counts.sum()) == 2


@pytest.mark.parametrize("top_k", [1, 3])
def test_entropy_of_even_routing_is_what_independent_tokens_give(top_k: int) -> None:
    rng, n_experts, n_tokens = np.random.default_rng(0), 8, 200
    drawn = []
    for _ in range(2000):
        choice = rng.random((n_tokens, n_experts)).argsort(axis=1)[:, :top_k]
        drawn.append(entropy(np.bincount(choice.ravel(), minlength=n_experts)))
    expected = load.even_entropy(n_tokens, n_experts=n_experts, top_k=top_k)
    error = np.std(drawn) / np.sqrt(len(drawn))
    # the next term of the expansion is of order 1 / T², 3e-5 here
    assert abs(np.mean(drawn) - expected) < 3 * error + 3e-5
    assert np.log(n_experts) - expected > 20 * error


def test_renamed_experts_keep_the_choices_and_the_concentration_of_each_unit() -> None:
    rng = np.random.default_rng(0)
    one = rng.integers(0, 9, (1, 6))
    draws = load.renamed_counts(one, n_resamples=50, rng=rng)
    np.testing.assert_array_equal(np.sort(draws, axis=1), np.tile(np.sort(one), (50, 1)))


def test_renamed_experts_spread_as_much_as_the_units_are_concentrated() -> None:
    rng = np.random.default_rng(0)
    counts = rng.integers(0, 30, (12, 5)) * rng.integers(0, 2, (12, 5))
    draws = load.renamed_counts(counts, n_resamples=20_000, rng=rng)
    # each unit adds the variance of one of its counts taken at random
    variance = counts.var(axis=1).sum()
    np.testing.assert_allclose(draws.mean(axis=0), counts.sum() / 5, atol=0.04 * variance**0.5)
    np.testing.assert_allclose(draws.var(axis=0), variance, rtol=0.05)


def test_draws_do_not_depend_on_the_size_of_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    counts = np.arange(12).reshape(4, 3)

    def draws() -> np.ndarray:
        return load.renamed_counts(counts, n_resamples=7, rng=np.random.default_rng(0))

    whole = draws()
    monkeypatch.setattr(load, "_BLOCK", 24)
    np.testing.assert_array_equal(draws(), whole)


def _p(choice: np.ndarray, unit: np.ndarray, rng: np.random.Generator) -> float:
    counts = document_choices(choice, unit, n_experts=4)
    null = load.gini(load.renamed_counts(counts, n_resamples=99, rng=rng))
    return float(permutation_p(load.gini(counts.sum(axis=0)), null))


def test_p_of_uneven_load_is_uniform_if_units_alone_favour_experts() -> None:
    rng, p = np.random.default_rng(0), []
    unit = np.repeat(np.arange(15), 20)
    for _ in range(400):
        favourite = rng.integers(0, 4, 15)[unit]
        choice = np.where(rng.random(300) < 0.6, favourite, rng.integers(0, 4, 300))
        p.append(_p(choice[:, None], unit, rng))
    # 20 of 400 are expected, and 11 to 31 are the middle 99%
    assert 11 <= (np.array(p) <= 0.05).sum() <= 31
    assert np.mean(p) == pytest.approx(0.5, abs=0.04)


def test_an_expert_that_all_units_favour_is_found() -> None:
    rng = np.random.default_rng(0)
    unit = np.repeat(np.arange(15), 20)
    choice = np.where(rng.random(300) < 0.3, 2, rng.integers(0, 4, 300))
    assert _p(choice[:, None], unit, rng) == 0.01


def test_null_without_a_draw_is_refused() -> None:
    with pytest.raises(ValueError, match="n_resamples is 0; use 1 or more"):
        load.renamed_counts(np.ones((2, 2), int), n_resamples=0, rng=np.random.default_rng(0))
