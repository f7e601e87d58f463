r"""Whether tokens that stand near each other go to the same experts, and what chance would give.

Two tokens agree if they have the same first choice, or if any of their k choices is the same [1]_.
All of a sequence is in one matrix, of which of its tokens agree with which: its d-th diagonal is
repetition at lag d, and its mean off the diagonal is what repetition at every lag would be if the
sequence's tokens stood in any other order. For first choices that mean has the closed form

    (sum_i n_i² - n) / (n (n - 1)),    n_i the tokens of the sequence that chose expert i.

References
----------
.. [1] Jiang et al. (2024), Mixtral of Experts, arXiv:2401.04088 (repeated assignments).
.. [2] Chen, Dempster and Liu (1994), doi:10.1093/biomet/81.3.457 (of all distributions of sets of k
   with given shares of inclusion, the one of largest entropy).
"""

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

_BLOCK = 2**20  # pairs of tokens held at a time


class Repetitions(NamedTuple):
    """Sums over the pairs of tokens of each sequence.

    `choice` is first, and with k > 1 also any; `pairs` is all, and those of two token ids.

    Attributes
    ----------
    agree : (sequence, choice, pairs, lag), pairs at the lag that agree.
    expected : (sequence, choice, pairs, lag), the same if positions were exchanged in the sequence.
    pairs : (sequence, pairs, lag), how many there are.
    """

    agree: NDArray[np.float64]
    expected: NDArray[np.float64]
    pairs: NDArray[np.float64]


def lags(n_pos: int) -> list[int]:
    """Powers of 2 up to half the length of a sequence.

    Raises
    ------
    ValueError
        If no token has a neighbour.
    """
    if n_pos < 2:
        raise ValueError(
            f"sequences of {n_pos} token have no neighbours; use a probe set of longer ones"
        )
    return [2**i for i in range(int(math.log2(max(n_pos // 2, 1))) + 1)]


def repetitions(
    choice: NDArray, token: NDArray, lag: Sequence[int], *, n_experts: int
) -> Repetitions:
    """How often tokens of a sequence agree at each lag, and what exchanged positions would give.

    Parameters
    ----------
    choice : (sequence, pos, top_k), expert indices.
    token : (sequence, pos), token ids.
    lag : distances, each shorter than a sequence.
    n_experts : N.
    """
    n, size = len(token), max(1, _BLOCK // token.shape[1] ** 2)
    blocks = [slice(start, start + size) for start in range(0, n, size)]
    found = [_of_block(choice[b], token[b], lag, n_experts=n_experts) for b in blocks]
    return Repetitions(*(np.concatenate(parts) for parts in zip(*found, strict=True)))


def _of_block(
    choice: NDArray, token: NDArray, lag: Sequence[int], *, n_experts: int
) -> Repetitions:
    n_pos = token.shape[1]
    other = token[:, :, None] != token[:, None, :]
    here = [slice(None, n_pos - d) for d in lag]
    there = [slice(d, None) for d in lag]
    n_all = np.full((len(token), len(lag)), n_pos - np.asarray(lag))
    n_other = _diagonals(other, here, there)
    pairs = np.stack([n_all, n_other], axis=1).astype(np.float64)
    possible = np.stack([np.full(len(token), n_pos * (n_pos - 1)), _count(other)], axis=1)
    agree, share = [], []
    for alike in _agreements(choice, n_experts=n_experts):
        unlike = alike & other
        agree.append(np.stack([_diagonals(m, here, there) for m in (alike, unlike)], axis=1))
        # every token agrees with itself, which is no pair
        both = np.stack([_count(alike) - n_pos, _count(unlike)], axis=1)
        share.append(both / np.maximum(possible, 1))
    expected = np.stack(share, axis=1)[..., None] * pairs[:, None]
    return Repetitions(np.stack(agree, axis=1).astype(np.float64), expected, pairs)


def _agreements(choice: NDArray, *, n_experts: int) -> Iterator[NDArray[np.bool_]]:
    """Which tokens of each sequence agree, (sequence, pos, pos): first choices, then any."""
    first = choice[..., 0]
    yield first[:, :, None] == first[:, None, :]
    if choice.shape[-1] > 1:
        alike = np.zeros((*first.shape, first.shape[1]), dtype=bool)
        for start in range(0, n_experts, 64):
            # one bit an expert: sets have one in common where both have its bit
            bit = choice.astype(np.int64) - start
            inside = (bit >= 0) & (bit < 64)
            bits = np.where(inside, np.uint64(1) << (bit % 64).astype(np.uint64), np.uint64(0))
            word = np.bitwise_or.reduce(bits, axis=-1)
            alike |= word[:, :, None] & word[:, None, :] != 0
        yield alike


def _diagonals(matrix: NDArray, here: list[slice], there: list[slice]) -> NDArray:
    """Sums of the diagonals, (sequence, lag)."""
    sums = []
    for a, b in zip(here, there, strict=True):
        sums.append(np.einsum("sii->si", matrix[:, a, b]).sum(axis=1))
    return np.stack(sums, axis=1)


def _count(matrix: NDArray[np.bool_]) -> NDArray[np.int64]:
    """How many are true in each sequence; without an axis numpy counts whole words at a time."""
    return np.array([np.count_nonzero(of_sequence) for of_sequence in matrix])


def uniform_chance(n_experts: int, top_k: int) -> list[float]:
    """Agreement of two tokens that choose k of N experts evenly at random: first, and any."""
    apart = math.comb(n_experts - top_k, top_k) / math.comb(n_experts, top_k)
    return [1 / n_experts] if top_k == 1 else [1 / n_experts, 1 - apart]


def load_chance(counts: NDArray, *, top_k: int) -> NDArray[np.float64]:
    r"""Probability that two tokens with these loads agree, whose choices are independent.

    For one choice, sum_i f_i² with f_i = n_i / sum_j n_j. For sets of k, with the distribution of
    largest entropy that has these shares of inclusion q_i = k f_i, P(A) ∝ prod_{i in A} w_i [2]_:
    two sets have nothing in common with probability

        [x^k y^k] prod_i (1 + w_i x + w_i y) / ([x^k] prod_i (1 + w_i x))².

    Parameters
    ----------
    counts : (..., expert), choices that each expert got.
    """
    share = counts / counts.sum(axis=-1, keepdims=True)
    if top_k == 1:
        return (share**2).sum(axis=-1)
    weight = set_weights(top_k * share, top_k=top_k)
    apart = np.zeros((*weight.shape[:-1], top_k + 1, top_k + 1))
    apart[..., 0, 0] = 1
    one = np.zeros((*weight.shape[:-1], top_k + 1))
    one[..., 0] = 1
    for w in np.moveaxis(weight, -1, 0):
        longer = w[..., None, None]
        before = apart.copy()
        apart[..., 1:, :] += longer * before[..., :-1, :]
        apart[..., :, 1:] += longer * before[..., :, :-1]
        one[..., 1:] += w[..., None] * one[..., :-1].copy()
    return 1 - apart[..., -1, -1] / one[..., -1] ** 2


def set_weights(inclusion: NDArray, *, top_k: int) -> NDArray[np.float64]:
    """Weights w of P(A) ∝ prod_{i in A} w_i over sets of k with these shares of inclusion [2]_.

    Each round multiplies w_i by the share that expert i should have over the one that it has.

    Parameters
    ----------
    inclusion : (..., expert), q_i in [0, 1], which sum to k.

    Returns
    -------
    array (..., expert), of geometric mean 1 over the experts in use; a share of 1 is reached in the
    limit only.
    """
    # inclusion without competition is a good start
    weight = inclusion / np.maximum(1 - inclusion, 1e-9)
    for _ in range(300):
        has = _inclusion(weight, top_k=top_k)
        if np.abs(has - inclusion).max() < 1e-10:
            break
        weight = weight * np.divide(inclusion, has, out=np.ones_like(has), where=has > 0)
        used = weight > 0
        logs = np.log(weight, where=used, out=np.zeros_like(weight))
        weight = weight / np.exp(logs.sum(axis=-1) / used.sum(axis=-1))[..., None]
    return weight


def _inclusion(weight: NDArray[np.float64], *, top_k: int) -> NDArray[np.float64]:
    """Share of the sets that hold each expert, from polynomials of the experts before and after."""
    n_experts = weight.shape[-1]
    polynomial = np.zeros((2, n_experts + 1, *weight.shape[:-1], top_k + 1))
    polynomial[:, 0, ..., 0] = 1
    for i in range(n_experts):
        for side, j in ((0, i), (1, n_experts - 1 - i)):
            last = polynomial[side, i]
            polynomial[side, i + 1] = last
            polynomial[side, i + 1][..., 1:] += weight[..., j, None] * last[..., :-1]
    before, after = polynomial[0], polynomial[1, ::-1]
    whole = before[-1][..., top_k]
    # k - 1 others are taken from those before and those after
    others = (before[:-1, ..., :top_k] * after[1:, ..., top_k - 1 :: -1]).sum(axis=-1)
    return np.moveaxis(others, 0, -1) * weight / whole[..., None]
