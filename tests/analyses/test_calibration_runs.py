"""Intervals over training runs cover, and tests over runs hold their level, in 2,000 replicates.

As in `test_calibration.py`, counts are pinned by seeds, and what must not be done must fail.
"""

import numpy as np
import pytest
from scipy import stats

from analyses.statistics.correlation import fisher_z
from analyses.statistics.multibootstrap import multibootstrap
from analyses.statistics.pairs import pair_indices
from analyses.statistics.permutation import label_assignments, label_test
from analyses.statistics.runs import (
    contrast_without_each_run,
    jackknife_runs,
    log_r_contrast,
    mean_without_each_run,
)

R = 2000


def hits(ci, truth) -> int:
    return int(((ci[..., 0] <= truth) & (truth <= ci[..., 1])).sum())


def correlations(arm, *, reliability=(0.9, 0.7), effect=0.0, spread=0.2, rng, n: int = R):
    """r (n, run, run) of runs T + A_arm + s_i e_i on 400 tokens; r between arms is 1 - effect of
    the geometric mean of r within."""
    text = np.random.default_rng(0).standard_normal((1 + len(reliability), 400))
    text -= text.mean(axis=1, keepdims=True)
    shared, *parts = np.linalg.qr(text.T)[0].T * 20
    signal = np.stack([np.sqrt(1 - effect) * shared + np.sqrt(effect) * part for part in parts])
    sd = np.sqrt(1 / np.array(reliability) - 1)[arm]
    loss = rng.standard_normal((n, len(arm), 400), dtype=np.float32)
    loss *= (sd * np.exp(spread * rng.standard_normal((n, len(arm)))))[..., None].astype("f4")
    loss += signal[arm].astype("f4")
    loss -= loss.mean(axis=-1, keepdims=True)
    loss /= np.sqrt((loss**2).sum(axis=-1, keepdims=True))
    return (loss @ np.swapaxes(loss, -1, -2)).astype(float)


def mean_z(r, arm, kind: int):
    """Mean z over the pairs with `kind` runs of arm 1 (replicate), and without each run."""
    first, second = pair_indices(len(arm))
    own = np.flatnonzero(arm[first] + arm[second] == kind)
    z = fisher_z(r[:, first[own], second[own]])
    return z.mean(axis=-1), mean_without_each_run(z, first[own], second[own], n_runs=len(arm))


BIG = np.repeat([0, 1], 10)


@pytest.fixture(scope="module")
def truth():
    """Mean z within arm 1 and between arms over other seeds, from pairs of 4,000 x 20 runs."""
    r = correlations(BIG, rng=np.random.default_rng(100), n=4000)
    return {kind: mean_z(r, BIG, kind)[0].mean() for kind in (1, 2)}


@pytest.mark.parametrize("n_runs", [3, 5, 10])
def test_jackknife_over_runs_of_an_arm_holds_its_level(n_runs: int, truth) -> None:
    arm = np.ones(n_runs, dtype=int)
    r = correlations(arm, rng=np.random.default_rng([10, n_runs]))
    assert hits(jackknife_runs(*mean_z(r, arm, 2), arm).ci, truth[2]) in range(1874, 1940)


@pytest.mark.parametrize("sizes", [(3, 3), (5, 5), (2, 6), (3, 6)])
def test_jackknife_over_runs_of_two_arms_holds_its_level(sizes, truth) -> None:
    arm = np.repeat([0, 1], sizes)
    r = correlations(arm, rng=np.random.default_rng([11, *sizes]))
    assert hits(jackknife_runs(*mean_z(r, arm, 1), arm).ci, truth[1]) >= 1874


def test_two_noisy_runs_beside_many_are_a_little_too_few(truth) -> None:
    """Degrees of freedom of all runs together are the negative control."""
    arm = np.repeat([0, 1], [6, 2])
    estimate, deleted = mean_z(correlations(arm, rng=np.random.default_rng(12)), arm, 1)
    found = jackknife_runs(estimate, deleted, arm)
    assert 1800 < hits(found.ci, truth[1]) < 1924
    margin = stats.t.ppf(0.975, 6) * found.standard_error
    assert hits(np.stack([estimate - margin, estimate + margin], -1), truth[1]) < 0.87 * R


@pytest.mark.parametrize("n", [3, 5])
def test_interval_of_delta_over_runs_is_cautious(n: int) -> None:
    arm = np.repeat([0, 1], n)
    r = correlations(arm, rng=np.random.default_rng([13, n]))
    ci = jackknife_runs(log_r_contrast(r, arm), contrast_without_each_run(r, arm), arm).ci
    assert hits(ci, 0.0) > 1924


def test_runs_of_mixed_arms_are_a_sample_of_their_kind_not_of_their_arms() -> None:
    """Deleting a run changes the mix of arms; errors by arm leave that out and are too small."""
    arm = np.repeat([0, 1, 2], 3)
    world = {"reliability": (0.7, 0.75, 0.65), "effect": 0.03, "spread": 0.1}
    together = np.ones(9, dtype=int)
    big = mean_z(correlations(arm, **world, rng=np.random.default_rng(14), n=8000), together, 2)
    estimate, deleted = mean_z(
        correlations(arm, **world, rng=np.random.default_rng(15)), together, 2
    )
    goal = big[0].mean()
    assert hits(jackknife_runs(estimate, deleted, together).ci, goal) >= 1900
    assert hits(jackknife_runs(estimate, deleted, arm).ci, goal) < 0.93 * R


def test_multibootstrap_of_two_runs_is_too_narrow() -> None:
    """Negative control: percentiles of two runs cannot hold a level."""
    rng = np.random.default_rng(16)
    covered = 0
    for _ in range(1000):
        base, treatment = (np.tile(rng.standard_normal((2, 1)), (1, 4)) for _ in range(2))
        ci = multibootstrap(base, treatment, paired=True, n_resamples=199, rng=rng).ci
        covered += hits(ci, 0.0)
    assert covered < 0.8 * 1000


def label_p(contrast, r, arm, alternative):
    """p of `label_test` in every replicate, its statistics computed for all replicates at once."""
    rng = np.random.default_rng(0)
    assignments, _ = label_assignments(arm, n_resamples=999, rng=rng)
    null = np.stack([contrast(r, labels) for labels in assignments], axis=1)
    p = []
    for row in null:
        values = iter(row)
        test = label_test(
            lambda labels, v=values: next(v), arm, alternative=alternative, n_resamples=999, rng=rng
        )
        p.append(test.p)
    return np.array(p)


def raw_contrast(r, arm):
    """How far the mean r between arms lies above that within arm 1, the MoE."""
    first, second = pair_indices(len(arm))
    kind, pairs = arm[first] + arm[second], r[..., first, second]
    return pairs[..., kind == 1].mean(axis=-1) - pairs[..., kind == 2].mean(axis=-1)


@pytest.mark.parametrize(
    ("n", "reliability", "attainable", "largest"),
    [(3, (0.8, 0.8), 2 / 20, 0.12), (3, (0.9, 0.7), 2 / 20, 0.15), (4, (0.9, 0.7), 2 / 70, 0.045)],
)
def test_label_test_of_delta_is_near_its_level(n, reliability, attainable, largest) -> None:
    """Runs of arms that differ in noise are not quite exchangeable: 3 + 3 then reject in 13%."""
    arm = np.repeat([0, 1], n)
    rng = np.random.default_rng([20, n])
    r = correlations(arm, reliability=reliability, spread=0.1, rng=rng)
    rate = (label_p(log_r_contrast, r, arm, "less") <= attainable + 1e-9).mean()
    assert 0.8 * attainable < rate < largest


def test_label_test_of_delta_sees_an_arm_effect_of_two_percent() -> None:
    arm = np.repeat([0, 1], 4)
    r = correlations(arm, effect=0.02, spread=0.1, rng=np.random.default_rng(21), n=500)
    assert (label_p(log_r_contrast, r, arm, "less") <= 0.05).mean() > 0.8


def test_raw_contrast_rejects_where_arms_share_all_that_they_know() -> None:
    """Negative control: MoE-dense above MoE-MoE is what noisier MoE seeds alone give."""
    arm = np.repeat([0, 1], 4)
    r = correlations(arm, spread=0.1, rng=np.random.default_rng(22), n=500)
    assert (label_p(raw_contrast, r, arm, "greater") <= 0.05).mean() > 0.9


def test_pairs_taken_as_independent_reject_too_often() -> None:
    """Negative control: Welch's t over pairs, with arms that differ in nothing."""
    arm = np.repeat([0, 1], 5)
    r = correlations(arm, reliability=(0.8, 0.8), rng=np.random.default_rng(23))
    first, second = pair_indices(10)
    kind, z = arm[first] + arm[second], fisher_z(r[:, first, second])
    p = stats.ttest_ind(z[:, kind == 1], z[:, kind == 2], axis=1, equal_var=False).pvalue
    assert (p <= 0.05).mean() > 0.15
    assert (label_p(raw_contrast, r[:600], arm, "two-sided") <= 0.05).mean() < 0.075
