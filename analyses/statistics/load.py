r"""How evenly a router spreads its choices: measures of load, and what even routing would show.

Load is the share of choices that each of N experts got, f_i = n_i / (T k) for T tokens of k choices
each (`routing.load`). No f_i can exceed 1/k, so with k > 1 even the most uneven load is spread over
k experts.

References
----------
.. [1] Gini (1912), "Variabilità e mutabilità"; Dorfman (1979), doi:10.2307/1924845 (its formula).
.. [2] Wang et al. (2024), arXiv:2408.15664 (maximal violation of balance, MaxVio).
.. [3] Miller (1955), "Note on the bias of information estimates"; Paninski (2003),
   doi:10.1162/089976603321780272 (the bias of an entropy that is estimated from counts).
"""

import math

import numpy as np
from numpy.typing import NDArray

from analyses.statistics.information import entropy
from analyses.statistics.routing import load

STARVED_SHARE = 0.1
_BLOCK = 2**22


def fair_index(counts: NDArray, *, top_k: int) -> NDArray[np.float64]:
    """Load entropy between its ends, (H - ln k) / (ln N - ln k): 0 for k experts, 1 for even load.

    Parameters
    ----------
    counts : (..., expert), choices an expert got.

    Returns
    -------
    array (...) in [0, 1]; NaN if k = N, where load cannot but be even.
    """
    n_experts = counts.shape[-1]
    if n_experts == top_k:
        return np.full(counts.shape[:-1], np.nan)
    return (entropy(counts) - math.log(top_k)) / (math.log(n_experts) - math.log(top_k))


def max_violation(counts: NDArray) -> NDArray[np.float64]:
    """MaxVio = max_i N f_i - 1 [2]_: how far the busiest expert is above its even share.

    Parameters
    ----------
    counts : (..., expert).

    Returns
    -------
    array (...) from 0 at even load to N/k - 1.
    """
    return counts.shape[-1] * load(counts).max(axis=-1) - 1


def gini(counts: NDArray) -> NDArray[np.float64]:
    r"""Gini coefficient of load, sum_i (2i - N - 1) f_(i) / N with f_(1) <= ... <= f_(N) [1]_.

    Parameters
    ----------
    counts : (..., expert).

    Returns
    -------
    array (...) from 0 at even load to 1 - k/N.
    """
    n_experts = counts.shape[-1]
    weight = 2 * np.arange(1, n_experts + 1) - n_experts - 1
    return (np.sort(load(counts), axis=-1) * weight).sum(axis=-1) / n_experts


def dead_experts(counts: NDArray) -> NDArray[np.int64]:
    """Number of experts that no token chose.

    Parameters
    ----------
    counts : (..., expert).
    """
    return (counts == 0).sum(axis=-1)


def starved_experts(share: NDArray) -> NDArray[np.int64]:
    """Number of experts with less than a tenth of their even share, dead ones among them.

    Parameters
    ----------
    share : (..., expert), loads.
    """
    return (share < STARVED_SHARE / share.shape[-1]).sum(axis=-1)


def even_entropy(n_tokens: int, *, n_experts: int, top_k: int) -> float:
    """Mean load entropy if T independent tokens chose k of N at random: ln N - (N - k) / (2 T k).

    First order in 1/T [3]_; for k = 1 it is the bias of Miller and Madow. Tokens of a text are not
    independent, so even load comes out lower than this: see `renamed_counts`.
    """
    return math.log(n_experts) - (n_experts - top_k) / (2 * n_tokens * top_k)


def renamed_counts(
    counts: NDArray, *, n_resamples: int, rng: np.random.Generator
) -> NDArray[np.float64]:
    """Load of a router that favours experts within units of text only, (resample, expert).

    In every unit the experts exchange their names at random. A unit stays as concentrated on few
    experts as it is, but no expert is preferred by the text as a whole.

    Parameters
    ----------
    counts : (unit, expert), choices.
    n_resamples : draws.

    Raises
    ------
    ValueError
        Without a resample.
    """
    if n_resamples < 1:
        raise ValueError(f"n_resamples is {n_resamples}; use 1 or more")
    size = max(1, _BLOCK // counts.size)
    sums = []
    for start in range(0, n_resamples, size):
        n = min(size, n_resamples - start)
        rows = np.tile(counts, (n, 1))
        sums.append(rng.permuted(rows, axis=1).reshape(n, *counts.shape).sum(axis=1))
    return np.concatenate(sums).astype(np.float64)
