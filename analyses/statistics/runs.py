r"""The delete-one-run jackknife: how far an estimate would move with other training runs.

A pairwise mean over S runs is no mean of S(S-1)/2 independent values: each run is in S - 1 of them.
So runs are deleted, with all their pairs, and never pairs.

References
----------
.. [1] Arvesen (1969), doi:10.1214/aoms/1177697287 (jackknifing U-statistics, one and two samples).
.. [2] Spearman (1904), doi:10.2307/1412159 (correction for reliability).
.. [3] Satterthwaite (1946), doi:10.2307/3002019 (degrees of freedom of a sum of variances).
"""

import numpy as np
from numpy.typing import NDArray

from analyses.statistics.pairs import pair_indices
from analyses.statistics.resampling import Jackknife


def mean_without_each_run(
    values: NDArray, first: NDArray[np.intp], second: NDArray[np.intp], *, n_runs: int
) -> NDArray[np.float64]:
    """Mean over the pairs that do not hold a run, for each run.

    Parameters
    ----------
    values : (..., pair)
    first, second : (pair), the two runs of each pair, numbered from 0.

    Returns
    -------
    array (run, ...); NaN where no pair is left.
    """
    runs = np.arange(n_runs)[:, None]
    kept = ((runs != first) & (runs != second)).astype(np.float64)
    count = kept.sum(axis=1)
    means = [
        values[..., keep > 0].mean(axis=-1) if n else np.full(values.shape[:-1], np.nan)
        for keep, n in zip(kept, count, strict=True)
    ]
    return np.stack(means)


def jackknife_runs(
    estimate: NDArray[np.float64],
    deleted: NDArray[np.float64],
    arm: NDArray,
    *,
    level: float = 0.95,
) -> Jackknife:
    r"""Interval from the values that an estimate takes without each run, runs sampled by arm [1]_.

    se² = sum_arms (S_a - 1)/S_a sum_{i in a} (theta_(i) - mean_a)², and estimate ± t se with
    S - 1 degrees of freedom for one arm, Satterthwaite's for several [3]_.

    Parameters
    ----------
    estimate : (...)
    deleted : (run, ...), the same without each run.
    arm : (run), label of the population that each run is a sample of.
    level : coverage, in (0, 1).

    Returns
    -------
    Jackknife
        NaN error and interval where a value without a run is NaN, or an arm has a single run.
    """
    from scipy.special import stdtrit  # half a second, which --help need not wait for

    variances, freedoms = [], []
    for label in np.unique(arm):
        own = deleted[arm == label]
        n = len(own)
        spread = own - own.mean(axis=0)
        variance = (n - 1) / n * (spread**2).sum(axis=0)
        variances.append(variance if n > 1 else np.full(variance.shape, np.nan))
        freedoms.append(max(n - 1, 1))
    parts = np.stack(variances)
    total = parts.sum(axis=0)
    weights = np.array(freedoms).reshape(-1, *([1] * (parts.ndim - 1)))
    with np.errstate(invalid="ignore", divide="ignore"):
        freedom = total**2 / (parts**2 / weights).sum(axis=0)
    margin = stdtrit(np.where(total > 0, freedom, 1.0), (1 + level) / 2) * np.sqrt(total)
    ci = np.stack([estimate - margin, estimate + margin], axis=-1)
    return Jackknife(np.asarray(estimate), np.sqrt(total), ci, deleted)


def log_r_contrast(r: NDArray[np.float64], arm: NDArray[np.intp]) -> NDArray[np.float64]:
    r"""delta = mean log r between two arms - (mean log r within one + mean log r within other)/2.

    If r_ij = a_i a_j, as two noisy measures of one thing have it [2]_, delta is 0.

    Parameters
    ----------
    r : (..., run, run)
    arm : (run) of 0 and 1.

    Returns
    -------
    array (...); NaN where an r is not above 0, or an arm has fewer than two runs.
    """
    first, second = pair_indices(len(arm))
    pairs = r[..., first, second]
    logs = np.log(np.where(pairs > 0, pairs, np.nan))
    kind = arm[first] + arm[second]
    if min((arm == 0).sum(), (arm == 1).sum()) < 2:
        return np.full(logs.shape[:-1], np.nan)
    within = [logs[..., kind == k].mean(axis=-1) for k in (0, 2)]
    return logs[..., kind == 1].mean(axis=-1) - (within[0] + within[1]) / 2


def contrast_without_each_run(r: NDArray[np.float64], arm: NDArray[np.intp]) -> NDArray[np.float64]:
    """`log_r_contrast` without each run, (run, ...); NaN where an arm keeps fewer than two."""
    runs = np.arange(len(arm))
    kept = [runs[runs != run] for run in runs]
    return np.stack([log_r_contrast(r[..., k[:, None], k], arm[k]) for k in kept])
