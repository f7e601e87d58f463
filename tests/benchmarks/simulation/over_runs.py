"""Coverage of intervals over training runs: other seeds, this text."""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtrit
from simulation.cells import Cell, Task, covered
from simulation.run_world import Arms, correlations

from analyses.statistics.correlation import fisher_z
from analyses.statistics.multibootstrap import multibootstrap
from analyses.statistics.pairs import pair_indices
from analyses.statistics.resampling import Jackknife
from analyses.statistics.runs import (
    contrast_without_each_run,
    jackknife_runs,
    log_r_contrast,
    mean_without_each_run,
)

RELIABILITY = (0.9, 0.7)
WORLDS = {
    "seeds alike, one factor": Arms(RELIABILITY, 0.0, 0.0),
    "seeds differ, one factor": Arms(RELIABILITY, 0.0, 0.2),
    "seeds differ, arm effect 5%": Arms(RELIABILITY, 0.05, 0.2),
}
ONE_ARM = (3, 4, 5, 6, 8, 10)
EQUAL = ((2, 2), (3, 3), (4, 4), (5, 5), (6, 6), (10, 10))
UNEQUAL = ((2, 6), (6, 2), (3, 6), (6, 3), (3, 10), (10, 3))
MIXED = Arms((0.9, 0.88, 0.7, 0.75, 0.65), 0.03, 0.1)
MIXED_ARM = np.repeat(np.arange(5), 3)
MULTI_RUNS = (2, 3, 5, 10)
N_TRUTH = 20_000

Estimate = tuple[NDArray[np.float64], NDArray[np.float64]]


def tasks(replicates: int) -> Iterator[Task]:
    """Every world over runs, each with a seed of its own."""
    for world in WORLDS:
        yield Task(f"over runs: {world}", of_world, (world, replicates))
    yield Task("over runs: kinds that mix arms", of_kinds, (replicates,))
    for ratio in (0.1, 1.0, 10.0):
        name = f"multi-bootstrap: {ratio:g} times the variance of text"
        yield Task(name, of_means, (ratio, replicates // 2))


def of_world(world: str, replicates: int) -> Iterator[Cell]:
    """Mean z within and between two arms, and delta, by number of runs."""
    arms = WORLDS[world]
    rng = np.random.default_rng([4, list(WORLDS).index(world)])
    both = np.repeat([0, 1], 10)
    truth = {"within": 0.0, "between": 0.0, "delta": 0.0}
    for _ in range(10):
        r = correlations(arms, both, N_TRUTH // 10, rng)
        truth["within"] += mean_z(r, both, 2)[0].mean() / 10
        truth["between"] += mean_z(r, both, 1)[0].mean() / 10
        truth["delta"] += log_r_contrast(r, both).mean() / 10
    for n in ONE_ARM:
        arm = np.ones(n, dtype=int)
        found = mean_z(correlations(arms, arm, replicates, rng), arm, 2)
        ci = jackknife_runs(*found, arm).ci
        yield covered("runs", world, str(n), "within an arm", ci, truth["within"])
    for sizes in EQUAL + UNEQUAL:
        arm = np.repeat([0, 1], sizes)
        r = correlations(arms, arm, replicates, rng)
        found = {"between": mean_z(r, arm, 1)}
        if min(sizes) >= 3:
            found["delta"] = log_r_contrast(r, arm), contrast_without_each_run(r, arm)
        for name, (estimate, deleted) in found.items():
            for rule, ci in by_rule(estimate, deleted, arm).items():
                size = "+".join(map(str, sizes))
                yield covered("runs", world, size, f"{name}, {rule}", ci, truth[name])


def mean_z(r: NDArray, arm: NDArray[np.intp], kind: int) -> Estimate:
    """Mean Fisher's z over the pairs with `kind` runs of arm 1, and that without each run."""
    first, second = pair_indices(len(arm))
    own = np.flatnonzero(arm[first] + arm[second] == kind)
    first, second = first[own], second[own]
    z = fisher_z(r[..., first, second])
    return z.mean(axis=-1), mean_without_each_run(z, first, second, n_runs=len(arm))


def by_rule(
    estimate: NDArray, deleted: NDArray, arm: NDArray[np.intp]
) -> dict[str, NDArray[np.float64]]:
    """Intervals by what the degrees of freedom of two arms are taken to be."""
    found: Jackknife = jackknife_runs(estimate, deleted, arm)
    variances, freedoms = [], []
    for label in np.unique(arm):
        own = deleted[arm == label]
        variances.append(jackknife_runs(estimate, own, np.zeros(len(own))).standard_error ** 2)
        freedoms.append(len(own) - 1)
    parts, freedom = np.stack(variances), np.array(freedoms)
    rules = {
        "Satterthwaite": parts.sum(axis=0) ** 2 / (parts**2 / freedom[:, None]).sum(axis=0),
        "smaller - 1": np.full(estimate.shape, freedom.min()),
        "sum - 2": np.full(estimate.shape, freedom.sum()),
    }
    intervals = {"as offered": found.ci}
    for name, nu in rules.items():
        margin = stdtrit(nu, 0.975) * found.standard_error
        intervals[name] = np.stack([estimate - margin, estimate + margin], axis=-1)
    return intervals


def of_kinds(replicates: int) -> Iterator[Cell]:
    """Two dense and three MoE arms of three runs: runs as a sample of the kind, or of their arm.

    The truth is that of other seeds of these very arms.
    """
    rng = np.random.default_rng(5)
    is_moe = (MIXED_ARM >= 2).astype(int)
    blocks = [correlations(MIXED, MIXED_ARM, 2000, rng) for _ in range(10)]
    truth = [np.mean([mean_z(r, is_moe, kind)[0].mean() for r in blocks]) for kind in range(3)]
    r = correlations(MIXED, MIXED_ARM, replicates, rng)
    for kind, name in enumerate(("dense-dense", "dense-MoE", "MoE-MoE")):
        part = np.flatnonzero((is_moe == kind // 2) | (kind == 1))
        estimate, deleted = mean_z(r[:, part[:, None], part], is_moe[part], kind)
        for sampled, stratum in (("of the architecture", is_moe), ("of the arm", MIXED_ARM)):
            ci = jackknife_runs(estimate, deleted, stratum[part]).ci
            yield covered("kinds", "2 dense and 3 MoE arms of 3 runs", name,
                          f"runs as a sample {sampled}", ci, truth[kind])  # fmt: skip


def of_means(ratio: float, replicates: int) -> Iterator[Cell]:
    """A difference of two arms' mean losses: run and unit effects, and an arm's effect on a unit.

    Parameters
    ----------
    ratio : variance that runs give the difference with five runs an arm, over that of text.
    """
    rng = np.random.default_rng([6, round(10 * ratio)])
    n_units, text_sd = 40, 1.0
    run_sd = np.sqrt(ratio * 5 / 2 * text_sd**2 / n_units)
    world = f"runs {ratio:g} x text"
    for n in MULTI_RUNS:
        arm = np.repeat([0, 1], n)
        both, runs, own = [], [], []
        for _ in range(replicates):
            arm_unit = text_sd * rng.standard_normal(n_units)
            unit = rng.standard_normal(n_units)
            base, treatment = (
                unit + part + run_sd * rng.standard_normal((n, 1))
                + 0.1 * rng.standard_normal((n, n_units))
                for part in (0.0, arm_unit)
            )  # fmt: skip
            both.append(multibootstrap(base, treatment, paired=False, n_resamples=399, rng=rng).ci)
            of_base, of_treatment = base.mean(axis=1), treatment.mean(axis=1)
            difference = of_treatment.mean() - of_base.mean()
            deleted = np.concatenate(
                [of_treatment.mean() - _without(of_base), _without(of_treatment) - of_base.mean()]
            )
            runs.append(jackknife_runs(difference, deleted, arm).ci)
            own.append(runs[-1] - arm_unit.mean())
        yield covered("means", world, str(n), "multi-bootstrap", np.stack(both), 0.0)
        yield covered("means", world, str(n), "jackknife over runs, this text", np.stack(own), 0.0)
        yield covered(
            "means", world, str(n), "jackknife over runs, other text", np.stack(runs), 0.0
        )


def _without(values: NDArray[np.float64]) -> NDArray[np.float64]:
    return (values.sum() - values) / (len(values) - 1)
