"""Size and power of tests over runs, and the null of document permutations."""

from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray
from scipy import stats
from simulation.cells import Cell, Task, rejected
from simulation.run_world import Arms, correlations

from analyses.statistics.correlation import fisher_z
from analyses.statistics.pairs import pair_indices
from analyses.statistics.permutation import (
    document_permutations,
    label_assignments,
    permutation_p,
)
from analyses.statistics.runs import contrast_without_each_run, jackknife_runs, log_r_contrast

SIZES = (3, 4, 5)
NOISE = {"MoE seeds noisier": (0.9, 0.7), "arms equally noisy": (0.8, 0.8)}
EFFECTS = (0.0, 0.02, 0.05, 0.1)
SPREAD = 0.1
TIE = 1e-9

Contrast = Callable[[NDArray, NDArray[np.intp]], NDArray[np.float64]]


def tasks(replicates: int) -> Iterator[Task]:
    """Every world, each with a seed of its own."""
    for noise in NOISE:
        for effect in EFFECTS:
            name = f"tests: {noise}, effect {effect:.0%}"
            yield Task(name, of_world, (noise, effect, replicates))
    yield Task("tests: permuted documents", of_documents, (replicates,))


def level(n: int) -> float:
    """Of the tests by labels: the smallest p of delta is 1/10 with three runs an arm."""
    return 0.1 if n == 3 else 0.05


def raw_contrast(r: NDArray, arm: NDArray[np.intp]) -> NDArray[np.float64]:
    """Mean r between arms less mean r within arm 1: how far MoE-dense lies above MoE-MoE."""
    first, second = pair_indices(len(arm))
    kind, pairs = arm[first] + arm[second], r[..., first, second]
    return pairs[..., kind == 1].mean(axis=-1) - pairs[..., kind == 2].mean(axis=-1)


def of_world(noise: str, effect: float, replicates: int) -> Iterator[Cell]:
    """Rejections of delta = 0 by labels and by jackknife, and of what is wrongly used for it."""
    rng = np.random.default_rng([7, list(NOISE).index(noise), round(100 * effect)])
    world = f"{noise}, arm effect {effect:.0%}"
    for n in SIZES:
        arm = np.repeat([0, 1], n)
        r = correlations(Arms(NOISE[noise], effect, SPREAD), arm, replicates, rng)
        delta, deleted = log_r_contrast(r, arm), contrast_without_each_run(r, arm)
        ci = jackknife_runs(delta, deleted, arm).ci
        decisions = {
            f"delta, labels, level {level(n):.2f}": label_p(log_r_contrast, r, arm, "less")
            <= level(n),
            "delta, interval over runs below 0": ci[:, 1] < 0,
            "delta, interval over runs above 0": ci[:, 0] > 0,
            f"raw contrast, labels, level {level(n):.2f}": label_p(raw_contrast, r, arm, "greater")
            <= level(n),
            "raw contrast, t-test over pairs": t_test_over_pairs(r, arm) <= 0.05,
        }
        for method, reject in decisions.items():
            yield rejected("tests", world, f"{n}+{n}", method, reject)


def label_p(
    contrast: Contrast, r: NDArray, arm: NDArray[np.intp], alternative: str
) -> NDArray[np.float64]:
    """p of `label_test` for many replicates at once, (replicate)."""
    rng = np.random.default_rng(0)
    assignments, exact = label_assignments(arm, n_resamples=999, rng=rng)
    assert exact
    sign = {"greater": 1, "less": -1}[alternative]
    null = sign * np.stack([contrast(r, labels) for labels in assignments])
    return (null >= null[0] - TIE * np.abs(null).max(axis=0)).mean(axis=0)


def t_test_over_pairs(r: NDArray, arm: NDArray[np.intp]) -> NDArray[np.float64]:
    """Welch's t-test of z of pairs between arms against those within arm 1, as if independent."""
    first, second = pair_indices(len(arm))
    kind, z = arm[first] + arm[second], fisher_z(r[..., first, second])
    return stats.ttest_ind(z[:, kind == 1], z[:, kind == 2], axis=1, equal_var=False).pvalue


def of_documents(replicates: int) -> Iterator[Cell]:
    """A label of documents and choices inside them that have nothing to do with it.

    The statistic is the difference in an expert's load between two domains, in absolute value.
    """
    rng = np.random.default_rng(8)
    for n_documents in (20, 100):
        domain = np.arange(n_documents) % 2
        p = {"documents permuted": [], "tokens permuted": []}
        for _ in range(replicates):
            tokens = np.maximum(2, np.round(rng.lognormal(3.0, 0.8, n_documents))).astype(int)
            chosen = rng.binomial(tokens, rng.beta(2.0, 6.0, n_documents))
            orders = document_permutations(n_documents, n_resamples=199, rng=rng)
            shuffled = rng.multivariate_hypergeometric(tokens, chosen.sum(), size=199)
            observed = _difference(chosen, tokens, domain)
            nulls = {
                "documents permuted": _difference(chosen[orders], tokens[orders], domain),
                "tokens permuted": _difference(shuffled, np.tile(tokens, (199, 1)), domain),
            }
            for name, null in nulls.items():
                p[name].append(permutation_p(observed, null))
        for name, values in p.items():
            for alpha in (0.05, 0.1, 0.5):
                method, reject = f"{name}, p at most {alpha:g}", np.array(values) <= alpha
                world = "no association"
                yield rejected("permutation", world, str(n_documents), method, reject)


def _difference(chosen: NDArray, tokens: NDArray, domain: NDArray) -> NDArray[np.float64]:
    load = [chosen[..., domain == d].sum(-1) / tokens[..., domain == d].sum(-1) for d in (0, 1)]
    return np.abs(load[0] - load[1])
