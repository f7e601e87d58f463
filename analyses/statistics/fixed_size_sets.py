r"""Sets of k of N experts drawn at random with given loads: conditional Poisson sampling.

Expert i is drawn with probability p_i, independently of the others, and a draw counts only if it
holds k experts [1]_. With S the number drawn, and S - [i] that number without expert i,

    pi_i = p_i P(S - [i] = k - 1) / P(S = k),
    pi_ij = p_i p_j P(S - [i] - [j] = k - 2) / P(S = k)

are the shares of sets that hold i, and both. One such distribution has given pi_i, and of all that
have them it is the one of largest entropy. The shares are ratios of elementary symmetric
polynomials of p_i / (1 - p_i); they are summed from the characteristic function of S [2]_, which
loses no digits where a recursion would cancel.

References
----------
.. [1] Chen, Dempster and Liu (1994), doi:10.1093/biomet/81.3.457 (weights from loads, uniqueness,
   joint probabilities).
.. [2] Hong (2013), doi:10.1016/j.csda.2012.10.006 (sums of Bernoulli variables by Fourier
   transform).
"""

import numpy as np
from numpy.typing import NDArray

from analyses.statistics.pairs import pair_indices

_MOST_ITERATIONS = 2000


def drawn_probability(
    share: NDArray, *, top_k: int, start: NDArray | None = None
) -> NDArray[np.float64]:
    r"""p_i for which sets of k experts hold expert i with a given probability.

    ln(p/(1-p)) moves by 2/3 of ln(share/(1-share)) - ln(pi/(1-pi)) until they agree. Near the
    solution the error is multiplied by 1 - 2 mu / 3, and 0 <= mu <= 2, as experts of a set of fixed
    size exclude each other: the covariances of each row add up to 0, and all but one are negative.

    Parameters
    ----------
    share : (..., expert), share of tokens that chose each; sums to k.
    start : (..., expert), p of a similar share.
    """
    share = np.asarray(share, dtype=np.float64)
    free = (share > 0) & (share < 1)
    inner = np.where(free, share, 0.5)
    wanted = np.log(inner / (1 - inner))
    first = inner if start is None else np.where((start > 0) & (start < 1), start, inner)
    logit = np.log(first / (1 - first))
    for _ in range(_MOST_ITERATIONS):
        p = np.where(free, 1 / (1 + np.exp(-logit)), share)
        found = np.clip(_inclusion(p, top_k=top_k), 1e-300, 1 - 1e-16)
        change = np.where(free, wanted - np.log(found / (1 - found)), 0.0)
        logit = logit + change * (2 / 3)
        if np.abs(change).max(initial=0.0) < 1e-10:
            break
    return np.where(free, 1 / (1 + np.exp(-logit)), share)


def joint_inclusion(p: NDArray, *, top_k: int) -> NDArray[np.float64]:
    """pi_ij, probability that a set of k experts holds both, (..., pair).

    Parameters
    ----------
    p : (..., expert) of `drawn_probability`.
    """
    first, second = pair_indices(p.shape[-1])
    factor, wave, weight = _factors(p)
    whole = factor.prod(axis=-2)
    once = (weight * wave**-top_k * whole).real.sum(axis=-1)
    inverse = 1 / factor
    weighted = inverse * (weight * wave ** (2 - top_k) * whole)[..., None, :]
    both = (weighted @ np.swapaxes(inverse, -1, -2)).real[..., first, second]
    return np.maximum(p[..., first] * p[..., second] * both / once[..., None], 0.0)


def _inclusion(p: NDArray, *, top_k: int) -> NDArray[np.float64]:
    """pi_i, (..., expert)."""
    factor, wave, weight = _factors(p)
    whole = factor.prod(axis=-2)
    once = (weight * wave**-top_k * whole).real.sum(axis=-1)
    others = ((weight * wave ** (1 - top_k) * whole)[..., None, :] / factor).real.sum(axis=-1)
    return p * others / once[..., None]


def _factors(p: NDArray) -> tuple[NDArray, NDArray, NDArray]:
    """Characteristic function of each draw, (..., expert, wave), the waves and their weights."""
    # an odd number of waves leaves out -1, where the factor of p = 1/2 is 0
    n_waves = p.shape[-1] + 1 + p.shape[-1] % 2
    wave = np.exp(2j * np.pi * np.arange(n_waves // 2 + 1) / n_waves)
    # the other half is conjugate
    weight = np.where(np.arange(len(wave)) == 0, 1.0, 2.0)
    return 1 + p[..., None] * (wave - 1), wave, weight
