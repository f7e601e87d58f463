"""Importance of experts and what is observed of them, against slow loops and known answers."""

import numpy as np
import pytest
from scipy import stats

from analyses.statistics.importance import (
    all_and_without_each,
    best_elsewhere,
    id_specialization,
    left_out_means,
    observed_of_experts,
    permuted_spearman,
    served_sums,
    spearman,
)
from analyses.statistics.information import mutual_information
from analyses.statistics.top_domain import top_domain_contrast

N, K, UNITS, T = 5, 2, 6, 400


@pytest.fixture(scope="module")
def tokens() -> dict[str, np.ndarray]:
    """Two choices of five experts for 400 tokens of 6 units in 2 domains; expert 4 is dead."""
    rng = np.random.default_rng(0)
    prob = rng.dirichlet(np.ones(N), T)
    prob[:, 4] = 0
    prob /= prob.sum(axis=1, keepdims=True)
    return {
        "prob": prob,
        "choice": np.argsort(-prob, axis=1)[:, :K].astype(np.int16),
        "loss": rng.gamma(2.0, size=T),
        "unit": rng.permutation(np.arange(T) % UNITS),
        "label": rng.integers(0, 150, T),
        "domain": np.array([0, 1, 0, 1, 1, 0]),
    }


def observed(tokens: dict[str, np.ndarray], kept: np.ndarray) -> dict[str, np.ndarray]:
    """What is observed of the experts on some of the tokens, one expert and token at a time."""
    choice, prob = tokens["choice"][kept], tokens["prob"][kept]
    loss, domain = tokens["loss"][kept], tokens["domain"][tokens["unit"][kept]]
    found: dict[str, list[float]] = {}
    share = np.bincount(np.repeat(domain, K), minlength=2) / (K * len(domain))
    for e in range(N):
        own = [t for t in range(len(choice)) if e in choice[t]]
        mean = {
            "gate": [prob[t, e] for t in own],
            "token_entropy": [stats.entropy(prob[t]) for t in own],
            "token_loss": [loss[t] for t in own],
        }
        of_domain = np.bincount(domain[own], minlength=2)
        values = {
            "load": len(own) / (K * len(choice)),
            "gate_mass": sum(mean["gate"]) / len(choice),
            "domain_specialization": stats.entropy(of_domain, share) if own else np.nan,
        } | {name: np.mean(v) if v else np.nan for name, v in mean.items()}
        for name, value in values.items():
            found.setdefault(name, []).append(value)
    return {name: np.array(values) for name, values in found.items()}


def test_what_is_observed_equals_a_slow_loop_with_and_without_each_unit(tokens) -> None:
    sums = served_sums(
        tokens["choice"], tokens["prob"], tokens["loss"], tokens["unit"], n_units=UNITS
    )
    whole, deleted = all_and_without_each(sums, tokens["domain"])
    fast = observed_of_experts(*whole, top_k=K)
    for name, values in observed(tokens, np.ones(T, dtype=bool)).items():
        np.testing.assert_allclose(fast[name], values, err_msg=name, atol=1e-12)
    fast = observed_of_experts(*deleted, top_k=K)
    for unit in range(UNITS):
        for name, values in observed(tokens, tokens["unit"] != unit).items():
            np.testing.assert_allclose(fast[name][unit], values, err_msg=name, atol=1e-12)


def test_domain_specialization_weighted_by_load_is_the_information_about_the_domain(tokens) -> None:
    sums = served_sums(
        tokens["choice"], tokens["prob"], tokens["loss"], tokens["unit"], n_units=UNITS
    )
    (total, table), _ = all_and_without_each(sums, tokens["domain"])
    found = observed_of_experts(total, table, top_k=K)
    information = np.nansum(found["load"] * found["domain_specialization"])
    assert information == pytest.approx(float(mutual_information(table)))
    assert found["load"].sum() == pytest.approx(1)


def slow_ids(choice: np.ndarray, label: np.ndarray) -> np.ndarray:
    """P(another occurrence of the token's id goes to the expert too) - P(a token does)."""
    found = []
    for e in range(N):
        serves = (choice == e).any(axis=1)
        same = []
        for t in np.flatnonzero(serves):
            others = (label == label[t]) & (np.arange(len(label)) != t)
            if others.any():
                same.append(serves[others].mean())
        found.append(np.mean(same) - serves.mean() if same else np.nan)
    return np.array(found)


def test_vocabulary_specialization_equals_a_slow_loop_with_and_without_each_unit(tokens) -> None:
    choice, label, unit = tokens["choice"], tokens["label"], tokens["unit"]
    estimate, deleted = id_specialization(choice, label, unit, n_experts=N, n_units=UNITS)
    np.testing.assert_allclose(estimate, slow_ids(choice, label))
    for u in range(UNITS):
        kept = unit != u
        np.testing.assert_allclose(deleted[u], slow_ids(choice[kept], label[kept]))


def test_a_token_lookup_has_vocabulary_specialization_one_less_its_load() -> None:
    rng = np.random.default_rng(0)
    label = rng.integers(0, 40, 500)
    choice = (label % N)[:, None]
    estimate, _ = id_specialization(choice, label, np.arange(500) % 4, n_experts=N, n_units=4)
    np.testing.assert_allclose(estimate, 1 - np.bincount(choice[:, 0]) / 500)


def test_a_choice_that_ignores_the_id_has_none_however_rare_ids_are() -> None:
    rng = np.random.default_rng(0)
    values = []
    for _ in range(200):
        choice, label = rng.integers(0, N, (300, 1)), rng.integers(0, 200, 300)
        unit = np.arange(300) % 4
        values.append(id_specialization(choice, label, unit, n_experts=N, n_units=4)[0])
    mean, error = np.mean(values), np.std(values) / np.sqrt(len(values))
    assert abs(mean) < 3 * error
    assert error < 0.01


def test_rank_correlation_is_that_of_scipy_ties_included() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.integers(0, 6, (20, 3, 9)), rng.integers(0, 6, (20, 1, 9))
    found = spearman(x, y)
    assert found.shape == (20, 3)
    for i, j in np.ndindex(found.shape):
        assert found[i, j] == pytest.approx(stats.spearmanr(x[i, j], y[i, 0]).statistic)


def test_experts_that_lack_a_value_are_left_out_of_the_ranking() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((2, 9))
    x[2], y[5] = np.nan, np.nan
    kept = np.isfinite(x) & np.isfinite(y)
    assert spearman(x, y) == pytest.approx(stats.spearmanr(x[kept], y[kept]).statistic)


@pytest.mark.parametrize(
    ("x", "y"), [([1, 1, 1, 1], [1, 2, 3, 4]), ([1, 2, np.nan, np.nan], [1, 2, 3, 4])]
)
def test_constant_or_too_few_values_have_no_rank_correlation(x, y) -> None:
    assert np.isnan(spearman(np.array(x), np.array(y)))


def test_permuted_correlations_have_the_moments_of_the_null() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((2, 3, 8))
    x[0, 7] = np.nan  # that row has 7 experts
    draws = permuted_spearman(x, y, n_resamples=4000, rng=rng)
    assert draws.shape == (4000, 3)
    np.testing.assert_allclose(draws.mean(axis=0), 0, atol=0.02)
    np.testing.assert_allclose(draws.var(axis=0), [1 / 6, 1 / 7, 1 / 7], rtol=0.06)
    assert abs(np.corrcoef(draws.T)[0, 1]) < 0.05  # rows are permuted by themselves


def test_p_of_a_mean_of_correlations_is_uniform_under_the_null() -> None:
    rng = np.random.default_rng(0)
    hits = 0
    for _ in range(300):
        x, y = rng.standard_normal((2, 4, 8))
        null = permuted_spearman(x, y, n_resamples=99, rng=rng).mean(axis=1)
        reached = np.abs(null) >= abs(spearman(x, y).mean()) - 1e-12
        hits += (1 + reached.sum()) / 100 <= 0.1
    assert 18 <= hits <= 42  # 30 expected; two-sided 98%


def domains(specialists: bool) -> dict[str, np.ndarray]:
    """Twelve units in three domains; each of three experts serves one domain more than others."""
    rng = np.random.default_rng(0)
    domain = np.arange(12) % 3
    size = rng.integers(80, 120, 12).astype(float)
    own = domain[:, None] == np.arange(3)
    served = np.round(size[:, None] * np.where(own, 0.6, 0.2))
    per_token = np.where(own & specialists, 0.5, 0.1)[:, :, None] * [1.0, 2.0]
    change = size[:, None, None] * per_token
    tokens = np.tile(size[:, None], 3)
    first = np.arange(12) % 2 == 0
    return {"change": change, "tokens": tokens, "served": served, "size": size,
            "domain": domain, "first": first}  # fmt: skip


def test_a_planted_specialist_is_found_at_its_size() -> None:
    # own domain: 0.5 less the mean over experts there, 0.7/3; elsewhere: 0.1 less the same
    estimate, _ = top_domain_contrast(**domains(specialists=True))
    np.testing.assert_allclose(estimate, [0.4, 0.8])


def test_domains_that_suffer_from_any_knock_out_make_no_specialist() -> None:
    data = domains(specialists=False)
    data["change"] *= np.array([1.0, 5.0, 25.0])[data["domain"]][:, None, None]
    estimate, deleted = top_domain_contrast(**data)
    np.testing.assert_allclose(estimate, 0, atol=1e-12)
    np.testing.assert_allclose(deleted, 0, atol=1e-12)


def test_choosing_by_accident_gains_nothing() -> None:
    rng, values = np.random.default_rng(0), []
    for _ in range(300):
        data = domains(specialists=False)
        data["served"] = rng.poisson(30, (12, 3)).astype(float)
        # the same accident moves loads and changes
        data["change"] = (data["served"] + rng.standard_normal((12, 3)))[:, :, None]
        values.append(float(top_domain_contrast(**data)[0][0]))
    assert abs(np.mean(values)) < 3 * np.std(values) / np.sqrt(300)
    data["first"] = np.ones(12, dtype=bool)
    assert np.isnan(top_domain_contrast(**data)[0]).all()


def test_contrast_without_a_unit_is_that_of_the_remaining_ones() -> None:
    rng, data = np.random.default_rng(0), domains(specialists=True)
    data["change"] = data["change"] * rng.gamma(5.0, 0.2, data["change"].shape)
    _, deleted = top_domain_contrast(**data)
    for unit in (0, 5):
        kept = np.arange(12) != unit
        # choices are planted so clearly that they stay the same
        expected, _ = top_domain_contrast(**{name: v[kept] for name, v in data.items()})
        np.testing.assert_allclose(deleted[unit], expected)


def test_the_best_metric_is_judged_where_it_was_not_chosen() -> None:
    rho = np.array([[0.9, -0.5, 0.0], [0.0, -0.6, 0.0], [0.1, -0.7, 0.0]])
    metric, score = best_elsewhere(rho)
    assert metric.tolist() == [1, 1, 1]
    np.testing.assert_allclose(score, [0.5, 0.6, 0.7])
    rng = np.random.default_rng(0)
    scores = [best_elsewhere(rng.uniform(-1, 1, (4, 7)))[1].mean() for _ in range(400)]
    assert abs(np.mean(scores)) < 3 * np.std(scores) / 20
    metric, score = best_elsewhere(rho[:1])
    assert metric.tolist() == [-1]
    assert np.isnan(score).all()


def test_means_without_each_unit_are_those_of_the_others() -> None:
    rng = np.random.default_rng(0)
    sums, counts = rng.random((4, 3)), rng.integers(1, 9, (4, 3))
    mean, deleted = left_out_means(sums, counts)
    np.testing.assert_allclose(mean, sums.sum(0) / counts.sum(0))
    np.testing.assert_allclose(deleted[2], np.delete(sums, 2, 0).sum(0) / np.delete(counts, 2, 0).sum(0))  # fmt: skip  # noqa: E501
