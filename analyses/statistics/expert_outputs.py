r"""What outputs of experts share at the same tokens, in how many directions, and how long they are.

All are means or sums over units of text, with their values without each unit. `E_it` is the output
of expert i at token t, of which m_i = mean_t E_it is taken away where "centred" is said.

References
----------
.. [1] Roy and Vetterli (2007), "The effective rank", EUSIPCO, 606-610 (exp of the entropy).
.. [2] Gao et al. (2017), doi:10.1101/214262 (participation ratio, and its bias with few samples).
.. [3] Efron (1982), doi:10.1137/1.9781611970319 (the infinitesimal jackknife).
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from analyses.statistics.resampling import leave_one_out


class Measured(NamedTuple):
    """A statistic, and its value without each unit of text.

    Attributes
    ----------
    estimate : (...)
    deleted : (unit, ...)
    """

    estimate: NDArray[np.float64]
    deleted: NDArray[np.float64]


def mean_cosine(output: NDArray, unit: NDArray[np.intp]) -> tuple[Measured, float]:
    r"""Mean cosine of the centred outputs of two experts at the same token, and by chance.

    With n_it of unit length, sum_{i != j} n_it · n_jt = |sum_i n_it|² - sum_i |n_it|². The chance
    is the mean over two experts and two tokens of different units: what is left if whole units are
    exchanged, in all ways.

    Parameters
    ----------
    output : (expert, token, feature)
    unit : (token), integer labels from 0.

    Returns
    -------
    Measured of shape (), the m_i staying what they are without a unit; NaN for a single expert.
    chance : NaN with a single unit.
    """
    n_experts, n_units = len(output), int(unit.max()) + 1
    tokens = np.bincount(unit, minlength=n_units).astype(np.float64)
    whole = np.zeros(output.shape[1:])
    own, own_pairs = np.zeros(output.shape[1]), 0.0
    of_unit = np.zeros((n_units, output.shape[2]))
    for of_expert in output:
        n = _unit_length(of_expert)
        whole += n
        own += np.einsum("tf,tf->t", n, n)
        sums = _unit_sums(n, unit, n_units)
        of_unit += sums
        own_pairs += _between_units(sums)
    pairs = n_experts * (n_experts - 1)
    together = np.bincount(unit, np.einsum("tf,tf->t", whole, whole) - own, n_units)
    with np.errstate(invalid="ignore", divide="ignore"):
        estimate = together.sum() / (pairs * tokens.sum())
        deleted = leave_one_out(together) / (pairs * leave_one_out(tokens))
        chance = (_between_units(of_unit) - own_pairs) / (
            pairs * (tokens.sum() ** 2 - (tokens**2).sum())
        )
    return Measured(np.asarray(estimate), deleted), float(chance)


def effective_ranks(x: NDArray, unit: NDArray[np.intp]) -> Measured:
    r"""In how many directions centred outputs lie: participation ratio, and exp of the entropy.

    With eigenvalues l of the covariance of the n tokens, PR = (sum l)² / sum l² [2]_; with singular
    values s = sqrt(l) and p = s / sum s, exp(-sum p log p) [1]_. Both are 1 for one direction and d
    for d directions of equal variance; the second counts weak directions more. Both are too low
    with few tokens: see `largest_participation`.

    Without a unit, eigenvectors stay what they are and variances along them are taken anew, which
    is exact to first order [3]_.

    Parameters
    ----------
    x : (token, feature)
    unit : (token), integer labels from 0.

    Returns
    -------
    Measured of shape (2): participation ratio, effective rank. NaN if x is the same for all tokens.
    """
    n_units = int(unit.max()) + 1
    x = x.astype(np.float64)
    x = x - x.mean(axis=0)
    y = x @ np.linalg.eigh(x.T @ x)[1]
    sums, squares = _unit_sums(y, unit, n_units), _unit_sums(y**2, unit, n_units)
    tokens = np.bincount(unit, minlength=n_units).astype(np.float64)
    left = leave_one_out(tokens)[:, None]
    without = leave_one_out(squares) / left - (leave_one_out(sums) / left) ** 2
    return Measured(_ranks(squares.sum(axis=0) / len(x)), _ranks(without))


def largest_participation(n_tokens: int, n_features: int) -> float:
    """Expected participation ratio of n tokens of independent features of equal variance.

    E tr(C)² / E tr(C²) of a Wishart matrix of m = n - 1 degrees of freedom, which is
    (m d + 2) / (m + d + 1) and tends to d.
    """
    m, d = n_tokens - 1, n_features
    return (m * d + 2) / (m + d + 1)


def log_norms(output: NDArray, unit: NDArray[np.intp]) -> tuple[NDArray[np.float64], Measured]:
    """Lengths of all outputs (expert, token), and log of the root of each expert's mean square.

    Parameters
    ----------
    output : (expert, token, feature)
    unit : (token), integer labels from 0.

    Returns
    -------
    norm : (expert, token)
    Measured of shape (): the logarithm, averaged over experts.
    """
    n_units = int(unit.max()) + 1
    norm = np.stack([np.linalg.norm(o.astype(np.float64), axis=1) for o in output])
    sums = _unit_sums((norm**2).T, unit, n_units)
    tokens = np.bincount(unit, minlength=n_units).astype(np.float64)
    estimate = 0.5 * _log(sums.sum(axis=0) / tokens.sum())
    deleted = 0.5 * _log(leave_one_out(sums) / leave_one_out(tokens)[:, None])
    return norm, Measured(np.asarray(estimate.mean()), deleted.mean(axis=1))


def own_token_ratios(norm: NDArray, chosen: NDArray[np.bool_], unit: NDArray[np.intp]) -> Measured:
    r"""Is an expert's output longer at the tokens that chose it? Two logarithms of ratios.

    The first is mean log norm over its own tokens less that over all others: it also sees that some
    tokens make every expert give much. In the second, the mean log norm of the other experts at the
    same token is taken away first, so that only what is special to the expert is left. Both are
    averaged over the experts with own tokens, and others, in two units or more; 0 if what the
    router chose has nothing to do with the outputs.

    Parameters
    ----------
    norm : (expert, token)
    chosen : (expert, token)
    unit : (token), integer labels from 0.

    Returns
    -------
    Measured of shape (2); NaN if there is no such expert.
    """
    n_experts, n_units = len(norm), int(unit.max()) + 1
    length = _log(norm)
    with np.errstate(invalid="ignore", divide="ignore"):
        relative = length - (length.sum(axis=0) - length) / (n_experts - 1)
    counts = np.stack([_unit_sums(part.T, unit, n_units) for part in (chosen, ~chosen)])
    usable = (counts > 0).sum(axis=1).min(axis=0) > 1
    if not usable.any():
        return Measured(np.full(2, np.nan), np.full((n_units, 2), np.nan))
    left = [leave_one_out(part)[:, usable] for part in counts]
    found = []
    for values in (length, relative):
        sums = [_unit_sums((values * part).T, unit, n_units) for part in (chosen, ~chosen)]
        own, other = (
            s.sum(axis=0)[usable] / c.sum(axis=0)[usable] for s, c in zip(sums, counts, strict=True)
        )
        without = [leave_one_out(s)[:, usable] / c for s, c in zip(sums, left, strict=True)]
        found.append(((own - other).mean(), (without[0] - without[1]).mean(axis=1)))
    estimate, deleted = zip(*found, strict=True)
    return Measured(np.array(estimate), np.stack(deleted, axis=1))


def _ranks(variance: NDArray[np.float64]) -> NDArray[np.float64]:
    """Participation ratio and effective rank (..., 2) of variances along directions (..., d)."""
    variance = np.maximum(variance, 0)
    scale = np.sqrt(variance)
    with np.errstate(invalid="ignore", divide="ignore"):
        participation = variance.sum(axis=-1) ** 2 / (variance**2).sum(axis=-1)
        p = scale / scale.sum(axis=-1, keepdims=True)
        entropy = -np.where(p > 0, p * np.log(np.where(p > 0, p, 1)), 0 * p).sum(axis=-1)
    return np.stack([participation, np.exp(entropy)], axis=-1)


def _log(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Natural logarithm; 0 is taken for the smallest number above it."""
    return np.log(np.maximum(values, np.finfo(np.float64).tiny))


def _unit_length(x: NDArray) -> NDArray[np.float64]:
    """Centred, then each row of unit length; a row of zeros stays one."""
    x = x.astype(np.float64)
    x = x - x.mean(axis=0)
    length = np.linalg.norm(x, axis=1, keepdims=True)
    return x / np.where(length > 0, length, 1)


def _unit_sums(values: NDArray, unit: NDArray[np.intp], n_units: int) -> NDArray[np.float64]:
    """Sums over the tokens of each unit, (unit, ...) from (token, ...)."""
    order = np.argsort(unit, kind="stable")
    starts = np.searchsorted(unit[order], np.arange(n_units))
    return np.add.reduceat(values[order].astype(np.float64), starts, axis=0)


def _between_units(sums: NDArray[np.float64]) -> float:
    """Sum of products of two vectors of different units, from sums over units (unit, feature)."""
    return float((sums.sum(axis=0) ** 2).sum() - (sums**2).sum())
