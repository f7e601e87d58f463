r"""How far routes of tokens stay what they are while a router is trained.

The route of a token at a checkpoint c is the set A_t(c) of the k experts that it chose. The
saturation of two checkpoints [1]_ is the share of choices that they have in common,

    Sat(c, c') = mean_t |A_t(c) ∩ A_t(c')| / k.

Overlaps are summed over units of text and over token ids; everything else, with or without a unit,
is made from those sums.

References
----------
.. [1] Muennighoff et al. (2024), OLMoE, arXiv:2409.02060 (router saturation).
.. [2] Cohen (1960), doi:10.1177/001316446002000104 (kappa: agreement beyond chance).
.. [3] Zobrist (1970), "A new hashing method with application for game playing" (codes of sets).
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from analyses.statistics.documents import document_tokens

Others = slice | NDArray[np.intp]


class Overlaps(NamedTuple):
    """Sums over the tokens of each unit of text.

    Attributes
    ----------
    common : (unit, step, other), choices that two checkpoints have in common.
    counts : (unit, step, expert), choices of each expert.
    tokens : (unit)
    """

    common: NDArray[np.float64]
    counts: NDArray[np.float64]
    tokens: NDArray[np.float64]


def unit_overlaps(
    choice: NDArray, unit: NDArray[np.intp], *, n_experts: int, others: Others = slice(None)
) -> Overlaps:
    """Overlaps of every checkpoint with some others, by one matrix product a unit.

    Parameters
    ----------
    choice : (step, token, top_k), expert indices.
    unit : (token), integer labels from 0.
    n_experts : N.
    others : indices of the other checkpoints; without, all.
    """
    n_steps, common, counts = len(choice), [], []
    for tokens in document_tokens(unit, n_tokens=choice.shape[1]):
        own = choice[:, tokens].astype(np.int64)
        chosen = np.zeros((*own.shape[:2], n_experts), dtype=np.float32)
        np.put_along_axis(chosen, own, 1.0, axis=-1)
        counts.append(chosen.sum(axis=1, dtype=np.float64))
        # sums of ones are exact in float32 below 2^24, more than any unit holds
        flat = chosen.reshape(n_steps, -1)
        common.append((flat @ flat[others].T).astype(np.float64))
    return Overlaps(np.stack(common), np.stack(counts), np.bincount(unit).astype(np.float64))


def overlaps_with(
    choice: NDArray, unit: NDArray[np.intp], other: NDArray[np.intp]
) -> NDArray[np.float64]:
    """Choices that each checkpoint has in common with others of its own, (unit, step, other).

    Parameters
    ----------
    choice : (step, token, top_k), expert indices.
    unit : (token), integer labels from 0.
    other : (step, other), index of a checkpoint.
    """
    common = np.empty((int(unit.max()) + 1, *other.shape))
    for (step, column), i in np.ndenumerate(other):
        common[:, step, column] = np.bincount(unit, overlap(choice[step], choice[i]))
    return common


def saturation(common: NDArray, tokens: NDArray, *, top_k: int) -> NDArray[np.float64]:
    """Sat(c, c'), in [0, 1].

    Parameters
    ----------
    common : (..., step, other), added-up `Overlaps.common`, or `overlaps_with`.
    tokens : (...), how many tokens they are of.
    """
    return common / (top_k * np.asarray(tokens)[..., None, None])


def load_chance(
    counts: NDArray, tokens: NDArray, *, top_k: int, others: Others = slice(None)
) -> NDArray[np.float64]:
    """Saturation of two routers with these loads whose choices have nothing to do with each other.

    chi = (1/k) sum_i q_i(c) q_i(c') with q_i the share of tokens that chose expert i; k/N if loads
    are even.

    Parameters
    ----------
    counts : (..., step, expert), added-up `Overlaps.counts`.
    tokens : (...)
    others : indices of the other checkpoints; without, all.

    Returns
    -------
    array (..., step, other)
    """
    share = counts / np.asarray(tokens)[..., None, None]
    return share @ np.swapaxes(share[..., others, :], -1, -2) / top_k


def chance_with_previous(counts: NDArray, tokens: NDArray, *, top_k: int) -> NDArray[np.float64]:
    """`load_chance` of each checkpoint with the one before it, (..., step); NaN for the first."""
    share = counts / np.asarray(tokens)[..., None, None]
    chance = np.full(share.shape[:-1], np.nan)
    chance[..., 1:] = (share[..., 1:, :] * share[..., :-1, :]).sum(axis=-1) / top_k
    return chance


def beyond(observed: NDArray, chance: NDArray) -> NDArray[np.float64]:
    """(observed - chance) / (1 - chance) [2]_: 0 at chance, 1 if all agree; NaN if chance is 1."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(chance < 1 - 1e-12, (observed - chance) / (1 - chance), np.nan)


def doubling_before(x: NDArray[np.float64]) -> NDArray[np.intp]:
    """Index of the last checkpoint a doubling or more before each, (step); -1 where there is none.

    Parameters
    ----------
    x : (step), log2(1 + step), increasing.
    """
    return np.searchsorted(x, x - 1 + 1e-9, side="right") - 1


def change_rate(alike: NDArray, x: NDArray[np.float64]) -> NDArray[np.float64]:
    """Share of choices changed per doubling of training, (..., step).

    (1 - Sat(c', c)) / (x_c - x_c') with c' the last checkpoint that lies a doubling or more before
    c. Closer checkpoints differ by tokens that change to and fro between two experts, and a share
    of them divided by a short time would seem a fast change.

    Parameters
    ----------
    alike : (..., step), saturation of each checkpoint with that of `doubling_before`.
    x : (step), log2(1 + step), increasing.

    Returns
    -------
    array in [0, 1]; NaN where no checkpoint lies so far back.
    """
    before = doubling_before(x)
    return (1 - alike) / np.where(before >= 0, x - x[before], np.nan)


def overlap(first: NDArray, second: NDArray) -> NDArray[np.int64]:
    """How many experts two routes of each token share, (...).

    Parameters
    ----------
    first, second : (..., top_k), expert indices, no two alike in a route.
    """
    shared = np.zeros(first.shape[:-1], dtype=np.int64)
    for j in range(second.shape[-1]):
        shared += (first == second[..., j, None]).sum(axis=-1)
    return shared


def route_codes(choice: NDArray, *, n_experts: int) -> NDArray[np.uint64]:
    """A number for each route, the same for the same set of experts in any order [3]_, (...).

    Parameters
    ----------
    choice : (..., top_k), expert indices.
    """
    # 64 random bits an expert: two of 10^7 different sets collide with probability below 10^-5
    of_expert = np.random.default_rng(0).integers(2**64, size=n_experts, dtype=np.uint64)
    return np.bitwise_xor.reduce(of_expert[choice], axis=-1)


def settled_from(code: NDArray) -> NDArray[np.intp]:
    """Index of the first checkpoint from which on a token's route is its last one, (token).

    Parameters
    ----------
    code : (step, token) of `route_codes`.
    """
    as_last = code == code[-1]
    return len(code) - np.logical_and.accumulate(as_last[::-1]).sum(axis=0)


def settled_by_chance(code: NDArray) -> NDArray[np.float64]:
    r"""Share of tokens settled from each checkpoint on, if checkpoints were independent.

    sum_A prod_{c >= step} P_c(A), P_c(A) the share of tokens with route A at checkpoint c.

    Parameters
    ----------
    code : (step, token) of `route_codes`.

    Returns
    -------
    array (step), 1 at the last.
    """
    # a route that no token has at the last checkpoint adds nothing at any
    routes = np.unique(code[-1])
    together, shares = np.ones(len(routes)), np.empty(len(code))
    for step in range(len(code) - 1, -1, -1):
        number = np.searchsorted(routes, code[step]).clip(max=len(routes) - 1)
        known = number[routes[number] == code[step]]
        together = together * (np.bincount(known, minlength=len(routes)) / code.shape[1])
        shares[step] = together.sum()
    return shares
