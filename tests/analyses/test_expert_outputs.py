"""What experts have in common: copies, rotations, strangers, and planted differences."""

import numpy as np
import pytest
from scipy.stats import ortho_group

from analyses.statistics.expert_outputs import (
    effective_ranks,
    largest_participation,
    log_norms,
    mean_cosine,
    own_token_ratios,
)

N_UNITS, EACH = 12, 30
UNIT = np.repeat(np.arange(N_UNITS), EACH)
N = len(UNIT)


def random(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape)


def test_copies_have_cosine_1_and_opposites_minus_1() -> None:
    x = random(N, 5) + 3
    same, _ = mean_cosine(np.stack([x, 2 * x + 1, x]), UNIT)
    np.testing.assert_allclose([same.estimate, *same.deleted], 1)
    opposite, _ = mean_cosine(np.stack([x, 7 - x]), UNIT)
    np.testing.assert_allclose(opposite.estimate, -1)


def test_independent_experts_have_cosine_0_whatever_their_means() -> None:
    found, chance = mean_cosine(random(4, N, 16) + 5, UNIT)
    # sd of the mean of 360 x 6 cosines of 16 features
    assert abs(found.estimate) < 4 / np.sqrt(N * 6 * 16)
    assert abs(chance) < 0.01
    assert np.isnan(mean_cosine(random(1, N, 5), UNIT)[0].estimate)


def test_mean_cosine_and_its_chance_are_those_of_a_slow_loop() -> None:
    unit = np.array([0, 0, 0, 1, 1, 2, 2, 2, 2, 3])
    common = random(1, 10, 4) + random(4, 4, seed=2)[unit]
    output = random(3, 10, 4, seed=1) + common
    centred = output - output.mean(axis=1, keepdims=True)
    n = centred / np.linalg.norm(centred, axis=2, keepdims=True)
    pairs = [(i, j) for i in range(3) for j in range(3) if i != j]
    at = np.array([[n[i, t] @ n[j, t] for i, j in pairs] for t in range(10)]).mean(axis=1)
    apart = [
        n[i, s] @ n[j, t]
        for i, j in pairs for s in range(10) for t in range(10) if unit[s] != unit[t]
    ]  # fmt: skip
    found, chance = mean_cosine(output, unit)
    np.testing.assert_allclose(found.estimate, at.mean())
    np.testing.assert_allclose(found.deleted, [at[unit != u].mean() for u in range(4)])
    np.testing.assert_allclose(chance, np.mean(apart))


@pytest.mark.parametrize(("n_directions", "rank"), [(1, 1), (3, 3)])
def test_directions_of_equal_variance_are_counted(n_directions: int, rank: int) -> None:
    basis = ortho_group.rvs(8, random_state=0)[:n_directions]
    x = np.tile(np.vstack([np.eye(n_directions), -np.eye(n_directions)]), (20, 1)) @ basis
    unit = np.repeat(np.arange(4), len(x) // 4)
    found = effective_ranks(x + 3, unit)
    np.testing.assert_allclose(found.estimate, rank, rtol=1e-6)


def test_ranks_are_those_of_the_singular_values() -> None:
    x = random(N, 6) * np.array([5, 3, 1, 0.5, 0.1, 0.01])
    s = np.linalg.svd(x - x.mean(axis=0), compute_uv=False)
    p = s / s.sum()
    expected = [(s**2).sum() ** 2 / (s**4).sum(), np.exp(-(p * np.log(p)).sum())]
    np.testing.assert_allclose(effective_ranks(x, UNIT).estimate, expected)
    rotated = 4 * x @ ortho_group.rvs(6, random_state=1) + 2
    np.testing.assert_allclose(effective_ranks(rotated, UNIT).estimate, expected)


def test_ranks_without_a_unit_are_exact_to_first_order() -> None:
    units = np.repeat(np.arange(60), 30)
    x = random(len(units), 5) * np.array([3, 2, 1, 1, 0.5])
    found = effective_ranks(x, units)
    exact = np.array([effective_ranks(x[units != u], _renumbered(units, u)).estimate
                      for u in range(60)])  # fmt: skip
    # the change by a unit is found up to a few percent of its spread
    change, true = (d - found.estimate for d in (found.deleted, exact))
    assert np.abs(change - true).max() < 0.2 * np.abs(true).max()
    np.testing.assert_allclose(change.std(axis=0), true.std(axis=0), rtol=0.05)


def _renumbered(unit: np.ndarray, without: int) -> np.ndarray:
    return np.unique(unit[unit != without], return_inverse=True)[1]


def test_white_features_show_the_largest_participation_on_average() -> None:
    found = [
        effective_ranks(random(100, 20, seed=i), np.repeat(np.arange(4), 25)).estimate[0]
        for i in range(40)
    ]
    assert abs(np.mean(found) - largest_participation(100, 20)) < 0.1
    assert largest_participation(10**9, 20) == pytest.approx(20)


def test_the_same_output_everywhere_has_no_rank() -> None:
    assert np.isnan(effective_ranks(np.ones((N, 3)), UNIT).estimate).all()


def test_norm_is_the_root_of_the_mean_square() -> None:
    output = random(2, N, 4) * np.array([1, 10])[:, None, None]
    norm, found = log_norms(output, UNIT)
    np.testing.assert_allclose(norm, np.sqrt((output**2).sum(axis=2)))
    rms = np.sqrt((norm**2).mean(axis=1))
    np.testing.assert_allclose(found.estimate, np.log(rms).mean())
    kept = np.sqrt((norm[:, UNIT != 3] ** 2).mean(axis=1))
    np.testing.assert_allclose(found.deleted[3], np.log(kept).mean())


def test_planted_ratio_is_found_and_what_all_experts_do_is_taken_away() -> None:
    rng = np.random.default_rng(0)
    own = rng.integers(0, 4, N)
    chosen = own == np.arange(4)[:, None]
    loud = np.exp(rng.standard_normal(N))  # at some tokens every expert gives much
    norm = loud * np.array([1, 2, 4, 8.0])[:, None] * np.where(chosen, 3, 1)
    found = own_token_ratios(norm, chosen, UNIT)
    # own tokens: log 3; other tokens: one of the three others is raised, a third of log 3 less
    np.testing.assert_allclose(found.estimate[1], np.log(3) * (1 + 1 / 3))
    np.testing.assert_allclose(found.deleted[:, 1], np.log(3) * (1 + 1 / 3))
    log = np.log(norm)
    slow = np.mean([log[e][chosen[e]].mean() - log[e][~chosen[e]].mean() for e in range(4)])
    np.testing.assert_allclose(found.estimate[0], slow)
    kept = UNIT != 5
    slow = np.mean(
        [log[e][chosen[e] & kept].mean() - log[e][~chosen[e] & kept].mean() for e in range(4)]
    )
    np.testing.assert_allclose(found.deleted[5, 0], slow)


def test_routes_that_know_nothing_give_ratio_1() -> None:
    rng = np.random.default_rng(0)
    chosen = rng.integers(0, 4, N) == np.arange(4)[:, None]
    found = own_token_ratios(np.exp(0.3 * rng.standard_normal((4, N))), chosen, UNIT)
    assert np.abs(found.estimate).max() < 0.06


def test_an_expert_with_tokens_in_one_unit_is_left_out() -> None:
    norm = np.exp(random(3, N))
    chosen = np.stack([UNIT == 0, UNIT > 5, (UNIT > 0) & (UNIT <= 5)])
    found = own_token_ratios(norm, chosen, UNIT)
    log = np.log(norm)
    slow = np.mean([log[e][chosen[e]].mean() - log[e][~chosen[e]].mean() for e in (1, 2)])
    np.testing.assert_allclose(found.estimate[0], slow)
    assert np.isfinite(found.deleted).all()
    assert np.isnan(own_token_ratios(norm[:1], chosen[:1], UNIT).estimate).all()
