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

from analyses.statistics.documents import document_slices
from analyses.statistics.information import contingency


class Overlaps(NamedTuple):
    """Sums over the tokens of each unit of text.

    Attributes
    ----------
    common : (unit, step, step), choices that two checkpoints have in common.
    counts : (unit, step, expert), choices of each expert.
    tokens : (unit)
    """

    common: NDArray[np.float64]
    counts: NDArray[np.float64]
    tokens: NDArray[np.float64]


def unit_overlaps(choice: NDArray, unit: NDArray[np.intp], *, n_experts: int) -> Overlaps:
    """Overlaps of every two checkpoints, by one matrix product a unit.

    Parameters
    ----------
    choice : (step, token, top_k), expert indices.
    unit : (token), integer labels from 0.
    n_experts : N.
    """
    order, slices = document_slices(unit, n_tokens=choice.shape[1])
    n_steps, common, counts = len(choice), [], []
    for tokens in slices:
        own = choice[:, tokens if order is None else order[tokens]].astype(np.int64)
        chosen = np.zeros((*own.shape[:2], n_experts), dtype=np.float32)
        np.put_along_axis(chosen, own, 1.0, axis=-1)
        counts.append(chosen.sum(axis=1, dtype=np.float64))
        # sums of ones are exact in float32 below 2^24, more than any unit holds
        flat = chosen.reshape(n_steps, -1)
        common.append((flat @ flat.T).astype(np.float64))
    sizes = [tokens.stop - tokens.start for tokens in slices]
    return Overlaps(np.stack(common), np.stack(counts), np.array(sizes, dtype=np.float64))


def saturation(common: NDArray, tokens: NDArray, *, top_k: int) -> NDArray[np.float64]:
    """Sat(c, c'), in [0, 1].

    Parameters
    ----------
    common : (..., step, step), added-up `Overlaps.common`.
    tokens : (...), how many tokens they are of.
    """
    return common / (top_k * np.asarray(tokens)[..., None, None])


def load_chance(counts: NDArray, tokens: NDArray, *, top_k: int) -> NDArray[np.float64]:
    """Saturation of two routers with these loads whose choices have nothing to do with each other.

    chi = (1/k) sum_i q_i(c) q_i(c') with q_i the share of tokens that chose expert i; k/N if loads
    are even.

    Parameters
    ----------
    counts : (..., step, expert), added-up `Overlaps.counts`.
    tokens : (...)

    Returns
    -------
    array (..., step, step)
    """
    share = counts / np.asarray(tokens)[..., None, None]
    return share @ np.swapaxes(share, -1, -2) / top_k


def beyond(observed: NDArray, chance: NDArray) -> NDArray[np.float64]:
    """(observed - chance) / (1 - chance) [2]_: 0 at chance, 1 if all agree; NaN if chance is 1."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(chance < 1 - 1e-12, (observed - chance) / (1 - chance), np.nan)


def change_rate(alike: NDArray, x: NDArray[np.float64]) -> NDArray[np.float64]:
    """Share of choices changed per doubling of training, (..., step).

    (1 - Sat(c', c)) / (x_c - x_c') with c' the last checkpoint that lies a doubling or more before
    c. Closer checkpoints differ by tokens that change to and fro between two experts, and a share
    of them divided by a short time would seem a fast change.

    Parameters
    ----------
    alike : (..., step, step) of `saturation`.
    x : (step), log2(1 + step), increasing.

    Returns
    -------
    array in [0, 1]; NaN where no checkpoint lies so far back.
    """
    before = np.searchsorted(x, x - 1 + 1e-9, side="right") - 1
    later = np.flatnonzero(before >= 0)
    rate = np.full(alike.shape[:-1], np.nan)
    rate[..., later] = (1 - alike[..., before[later], later]) / (x[later] - x[before[later]])
    return rate


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


class Lookup(NamedTuple):
    """Saturation beside what token ids alone give, over tokens whose id occurs again; all (pair).

    Attributes
    ----------
    repeated, floor : saturation, and its token-lookup floor.
    repeated_deleted, floor_deleted : (unit, pair), the same without each unit.
    """

    repeated: NDArray[np.float64]
    floor: NDArray[np.float64]
    repeated_deleted: NDArray[np.float64]
    floor_deleted: NDArray[np.float64]


def lookup(
    choice: NDArray,
    label: NDArray[np.intp],
    unit: NDArray[np.intp],
    pairs: NDArray[np.intp],
    *,
    n_experts: int,
) -> Lookup:
    r"""Token-lookup floor: a token's route at c against that of another token of its id at c'.

    It is the mean saturation when routes change places at random among the occurrences of an id,
    with none left in its place. For id x with n_x tokens, n_xi of which chose expert i, their
    n_x (n_x - 1) ordered pairs share sum_i n_xi(c) n_xi(c') - sum_{t in x} |A_t(c) ∩ A_t(c')|
    choices, so that nothing is drawn.

    Parameters
    ----------
    choice : (step, token, top_k), expert indices.
    label : (token), token ids numbered from 0.
    unit : (token), integer labels from 0.
    pairs : (pair, 2), indices of the two checkpoints to compare.
    n_experts : N.
    """
    order, slices = document_slices(unit, n_tokens=len(label))
    of_units = [tokens if order is None else order[tokens] for tokens in slices]
    n_ids = int(label.max()) + 1
    n = np.zeros(n_ids)
    counts = np.zeros((n_ids, len(choice), n_experts), dtype=np.float32)
    same = np.zeros((n_ids, len(pairs)))
    for where in of_units:
        ids, m, c, s = _by_id(choice[:, where], label[where], pairs, n_experts=n_experts)
        n[ids] += m
        counts[ids] += c
        same[ids] += s
    per_id = _repeated_sums(n, counts, same, pairs)
    total = per_id.sum(axis=0)
    deleted = np.empty((len(of_units), len(total)))
    # counted a second time, as the counts of all units together may not fit in memory
    for i, where in enumerate(of_units):
        ids, m, c, s = _by_id(choice[:, where], label[where], pairs, n_experts=n_experts)
        left = _repeated_sums(n[ids] - m, counts[ids] - c, same[ids] - s, pairs)
        deleted[i] = total - per_id[ids].sum(axis=0) + left.sum(axis=0)
    with np.errstate(invalid="ignore", divide="ignore"):
        found, without = (s[..., 1:] / (choice.shape[-1] * s[..., :1]) for s in (total, deleted))
    half = len(pairs)
    return Lookup(found[:half], found[half:], without[:, :half], without[:, half:])


def _by_id(
    choice: NDArray, label: NDArray[np.intp], pairs: NDArray[np.intp], *, n_experts: int
) -> tuple[NDArray, NDArray, NDArray, NDArray]:
    """Of some tokens: their distinct ids, and for each its tokens, choices and own overlaps."""
    ids, inverse, n = np.unique(label, return_inverse=True, return_counts=True)
    shape = (len(ids), n_experts)
    counts = np.stack(
        [contingency(inverse[:, None], of_step, shape=shape) for of_step in choice], axis=1
    )
    same = np.stack(
        [np.bincount(inverse, overlap(choice[a], choice[b]), minlength=len(ids)) for a, b in pairs],
        axis=1,
    )
    return ids, n.astype(np.float64), counts.astype(np.float32), same


def _repeated_sums(
    n: NDArray, counts: NDArray, same: NDArray, pairs: NDArray[np.intp]
) -> NDArray[np.float64]:
    """Of each id, 0 if it occurs once: tokens, own overlaps, overlaps expected from the others.

    Returns
    -------
    array (id, 1 + 2 pair)
    """
    repeated = n > 1
    n, counts, same = n[repeated], counts[repeated], same[repeated]
    sums = np.zeros((len(repeated), 1 + 2 * len(pairs)))
    together = np.stack(
        [np.einsum("xi,xi->x", counts[:, a], counts[:, b], dtype=np.float64) for a, b in pairs],
        axis=1,
    )
    sums[repeated, 0] = n
    sums[repeated, 1 : 1 + len(pairs)] = same
    sums[repeated, 1 + len(pairs) :] = (together - same) / (n[:, None] - 1)
    return sums


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
    routes, number = np.unique(code, return_inverse=True)
    number = number.reshape(code.shape)
    together, shares = np.ones(len(routes)), np.empty(len(code))
    for step in range(len(code) - 1, -1, -1):
        together = together * (np.bincount(number[step], minlength=len(routes)) / code.shape[1])
        shares[step] = together.sum()
    return shares
