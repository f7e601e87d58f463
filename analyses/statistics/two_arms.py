r"""How far two groups of training runs are apart: in units of the measure, and of seed noise.

Runs are the sample; axis 0 is the run. Groups may differ in spread (Welch's t [1]_); the
standardised difference takes a common one (Hedges' g [2]_), and so does its interval.

References
----------
.. [1] Welch (1947), doi:10.1093/biomet/34.1-2.28; Satterthwaite (1946), doi:10.2307/3002019.
.. [2] Hedges (1981), doi:10.3102/10769986006002107 (and the correction for few samples).
.. [3] Steiger and Fouladi (1997), "Noncentrality interval estimation and the evaluation of
   statistical models", in What if there were no significance tests? (the interval of d).
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray


class Welch(NamedTuple):
    """A difference of two means that allows for unequal spreads.

    Attributes
    ----------
    difference, standard_error, dof, p : (...)
    ci : (..., ci_bound)
    """

    difference: NDArray[np.float64]
    standard_error: NDArray[np.float64]
    dof: NDArray[np.float64]
    p: NDArray[np.float64]
    ci: NDArray[np.float64]


def welch(first: NDArray, second: NDArray, *, level: float = 0.95) -> Welch:
    r"""Mean of `first` less mean of `second`, with Welch's interval and two-sided p [1]_.

    se² = s_1²/n_1 + s_2²/n_2, with (se²)² / sum_i (s_i²/n_i)²/(n_i - 1) degrees of freedom.

    Parameters
    ----------
    first, second : (run, ...)
    level : coverage, in (0, 1).

    Returns
    -------
    Welch
        All but `difference` is NaN with fewer than two runs in a group; so is `p` of two groups
        that are equal and constant.
    """
    from scipy.special import stdtr, stdtrit

    difference = first.mean(axis=0) - second.mean(axis=0)
    n = np.array([len(first), len(second)])
    if n.min() < 2:
        none = np.full(difference.shape, np.nan)
        return Welch(difference, none, none, none, np.stack([none, none], axis=-1))
    own = [group.var(axis=0, ddof=1) / len(group) for group in (first, second)]
    standard_error = np.sqrt(own[0] + own[1])
    with np.errstate(invalid="ignore", divide="ignore"):
        dof = standard_error**4 / (own[0] ** 2 / (n[0] - 1) + own[1] ** 2 / (n[1] - 1))
        t = difference / standard_error
    dof = np.where(standard_error > 0, dof, n.sum() - 2.0)
    margin = stdtrit(dof, (1 + level) / 2) * standard_error
    ci = np.stack([difference - margin, difference + margin], axis=-1)
    return Welch(difference, standard_error, dof, 2 * stdtr(dof, -np.abs(t)), ci)


def hedges_g(
    first: NDArray, second: NDArray, *, level: float = 0.95
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    r"""Difference of means in units of the spread inside the groups, g = J (mean_1 - mean_2) / s.

    s² = ((n_1 - 1) s_1² + (n_2 - 1) s_2²)/m with m = n_1 + n_2 - 2, and J(m) = Gamma(m/2) /
    (sqrt(m/2) Gamma((m - 1)/2)), which takes away that few runs make s too small [2]_. The interval
    inverts the noncentral t distribution [3]_; it is exact for normal values of equal spread.

    Parameters
    ----------
    first, second : (run, ...)
    level : coverage, in (0, 1).

    Returns
    -------
    g : (...); NaN with fewer than two runs in a group, or without spread.
    ci : (..., ci_bound), of the difference in units of the true spread.
    """
    from scipy.special import gammaln, nctdtrinc

    n_first, n_second = len(first), len(second)
    difference = first.mean(axis=0) - second.mean(axis=0)
    if min(n_first, n_second) < 2:
        none = np.full(difference.shape, np.nan)
        return none, np.stack([none, none], axis=-1)
    m = n_first + n_second - 2
    within = ((group - group.mean(axis=0)) ** 2 for group in (first, second))
    variance = sum(squares.sum(axis=0) for squares in within) / m
    spread = np.sqrt(np.where(variance > 0, variance, np.nan))
    correction = np.exp(gammaln(m / 2) - gammaln((m - 1) / 2)) / np.sqrt(m / 2)
    root = np.sqrt(n_first * n_second / (n_first + n_second))
    t = root * difference / spread
    tails = [(1 + level) / 2, (1 - level) / 2]
    ci = np.stack([nctdtrinc(m, tail, t) / root for tail in tails], axis=-1)
    return correction * difference / spread, ci
