r"""What a token's expert in one layer tells of its expert in a later one, with and without its id.

E and E' are one of the token's k choices in either layer, at random, so that all k x k pairs count
1/k². With a label Z of the tokens (their id, or the same for all), and n_zij pairs of choices,

    I(E; E' | Z) = (S_zij + S_z - S_zi - S_zj) / n,    S the sum of n ln n over the cells named

in nats, and H(E' | Z) = (S_z - S_zj) / n. One block of labels is counted at a time.

Both are too large on finite text. The null takes the tie between the layers away and keeps what
each does by itself: choices of one layer move in whole units of text, or, where the label is to be
kept, in a circle through the tokens of the label, in which the tokens of a unit stand together, so
that most of what hangs together moves together.

References
----------
.. [1] Wyner (1978), doi:10.1016/S0019-9958(78)90026-8 (conditional mutual information).
.. [2] Berrett et al. (2020), doi:10.1111/rssb.12340 (permutations that keep a third variable).
.. [3] Harris (2021), arXiv:2012.06862 (shifting a series along itself as a null).
.. [4] Paninski (2003), doi:10.1162/089976603321780272 (plug-in bias, Miller-Madow).
"""

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from analyses.statistics.permutation import document_permutations
from analyses.statistics.routing import n_log_n

_CELLS = 2**22  # of a table held at a time
_PAIRS = 2**22  # of choices


class Grouped(NamedTuple):
    """Tokens brought together by label, and within a label by unit of text; all (m).

    Attributes
    ----------
    place : places of the tokens that have a label.
    label, unit : of each, integers from 0.
    """

    place: NDArray[np.intp]
    label: NDArray[np.intp]
    unit: NDArray[np.intp]


class Tie(NamedTuple):
    """How two layers are tied, nats.

    Attributes
    ----------
    information, miller_madow : I(E; E' | Z), plug-in, and corrected as if tokens were independent
        [4]_, which takes away too little; NaN for k > 1.
    open_entropy : H(E' | Z).
    information_deleted, open_entropy_deleted : (unit), without each unit.
    """

    information: float
    miller_madow: float
    open_entropy: float
    information_deleted: NDArray[np.float64]
    open_entropy_deleted: NDArray[np.float64]


def grouped(label: NDArray[np.intp], unit: NDArray[np.intp]) -> Grouped:
    """Bring tokens together; those labelled -1 are left out."""
    order = np.lexsort([unit, label])
    place = order[label[order] >= 0]
    return Grouped(place, label[place], unit[place])


def tie(first: NDArray, second: NDArray, at: Grouped, *, n_experts: int) -> Tie:
    """Information between the choices of two layers, within labels.

    Parameters
    ----------
    first, second : (token, top_k), expert indices.
    n_experts : N.
    """
    first, second, top_k = first[at.place], second[at.place], first.shape[1]
    n_units = int(at.unit.max()) + 1
    total, filled, change = np.zeros(4), 0, np.zeros((4, n_units))
    for block in _runs(at.label, _blocks(at, n_experts, top_k)):
        label = at.label[block] - at.label[block.start]
        table = _table(first[block], second[block], label, n_experts=n_experts)
        levels = _levels(table)
        total += [n_log_n(level).sum() for level in levels]
        filled += sum(s * int((n > 0).sum()) for s, n in zip((1, -1, -1, 1), levels, strict=True))
        order = np.argsort(at.unit[block], kind="stable")
        unit = at.unit[block][order]
        for part in _runs(unit, _PAIRS // top_k**2):
            own = order[part]
            codes = _codes(first[block][own], second[block][own], label[own], n_experts)
            for i, (code, level) in enumerate(zip(codes, levels, strict=True)):
                change[i] += _changes(code, unit[part], level, top_k, n_units)
    n = len(at.place) * top_k**2
    without = n - top_k**2 * np.bincount(at.unit, minlength=n_units)
    information, left = _nats(total, np.float64(n))
    deleted = _nats(total[:, None] + change, without.astype(np.float64))
    # the pairs of choices of one token are not independent
    corrected = float(information) - filled / (2 * n) if top_k == 1 else np.nan
    return Tie(float(information), corrected, float(left), *deleted)


def null_information(
    first: NDArray,
    second: NDArray,
    at: Grouped,
    orders: Iterable[NDArray[np.intp]],
    *,
    n_experts: int,
) -> NDArray[np.float64]:
    """I(E; E' | Z) when the first layer's choices are moved over the grouped tokens, (resample).

    Parameters
    ----------
    orders : from where each grouped token takes its choice, of `exchanged_units` or
        `turned_within`.
    """
    first, second, top_k = first[at.place], second[at.place], first.shape[1]
    blocks = list(_runs(at.label, _blocks(at, n_experts, top_k)))
    found = []
    for order in orders:
        moved, total = first[order], np.zeros(4)
        for block in blocks:
            label = at.label[block] - at.label[block.start]
            table = _table(moved[block], second[block], label, n_experts=n_experts)
            total += [n_log_n(level).sum() for level in _levels(table)]
        found.append(_nats(total, np.float64(len(at.place) * top_k**2))[0])
    return np.array(found)


def exchanged_units(
    at: Grouped, *, n_resamples: int, rng: np.random.Generator
) -> Iterator[NDArray[np.intp]]:
    """Units in any order, laid along the text from its beginning; for one label for all tokens."""
    units, start = np.unique(at.unit, return_index=True)
    whole = np.split(np.arange(len(at.unit)), start[1:])
    for order in document_permutations(len(units), n_resamples=n_resamples, rng=rng):
        yield np.concatenate([whole[i] for i in order])


def turned_within(
    at: Grouped, *, n_resamples: int, rng: np.random.Generator
) -> Iterator[NDArray[np.intp]]:
    """Tokens of each label moved along their circle by a turn of its own, none left in place."""
    _, start, inverse, n = np.unique(
        at.label, return_index=True, return_inverse=True, return_counts=True
    )
    rank = np.arange(len(at.label)) - start[inverse]
    for _ in range(n_resamples):
        turn = 1 + (rng.random(len(n)) * (n - 1)).astype(np.intp)
        yield start[inverse] + (rank + turn[inverse]) % n[inverse]


def _blocks(at: Grouped, n_experts: int, top_k: int) -> int:
    """Tokens of a block whose tables and pairs of choices fit."""
    of_label = len(at.label) / (at.label.max() + 1)
    return int(max(1, min(_CELLS / n_experts**2 * of_label, _PAIRS / top_k**2)))


def _runs(key: NDArray[np.intp], size: int) -> Iterator[slice]:
    """Slices of about `size` that never part equal neighbours."""
    starts = np.flatnonzero(np.diff(key, prepend=-1))
    ends = np.append(starts[1:], len(key))
    start = 0
    while start < len(key):
        later = ends[np.searchsorted(ends, min(start + size, len(key)))]
        yield slice(start, int(later))
        start = int(later)


def _codes(
    first: NDArray, second: NDArray, label: NDArray, n_experts: int
) -> tuple[NDArray, NDArray, NDArray, NDArray]:
    """Cells that each token counts in, (token, ...), by label with both, one or no choice."""
    i = label[:, None] * n_experts + first
    j = label[:, None] * n_experts + second
    return i[:, :, None] * n_experts + second[:, None, :], i, j, label


def _table(first: NDArray, second: NDArray, label: NDArray, *, n_experts: int) -> NDArray[np.int64]:
    """Pairs of choices, (label, expert, expert)."""
    size, step = (int(label.max()) + 1) * n_experts**2, max(1, _PAIRS // first.shape[1] ** 2)
    table = np.zeros(size, dtype=np.int64)
    for start in range(0, len(label), step):
        part = slice(start, start + step)
        code = _codes(first[part], second[part], label[part], n_experts)[0]
        table += np.bincount(code.ravel(), minlength=size)
    return table.reshape(-1, n_experts, n_experts)


def _levels(table: NDArray) -> tuple[NDArray, NDArray, NDArray, NDArray]:
    """Counts of all cells, and summed over the later choice, the earlier one, and both."""
    return table, table.sum(axis=2), table.sum(axis=1), table.sum(axis=(1, 2))


def _changes(
    code: NDArray, unit: NDArray[np.intp], level: NDArray, top_k: int, n_units: int
) -> NDArray[np.float64]:
    """By how much the sum of n ln n changes without each unit, (unit)."""
    # a choice stands in pairs with all choices of the other layer, a token in all its pairs
    times = top_k ** (3 - code.ndim)
    labelled = unit.reshape(-1, *[1] * (code.ndim - 1)) * np.int64(level.size) + code
    codes, counts = np.unique(labelled, return_counts=True)
    of_unit, cell = np.divmod(codes, level.size)
    n = level.ravel()[cell]
    change = n_log_n(n - times * counts) - n_log_n(n)
    return np.bincount(of_unit, weights=change, minlength=n_units).astype(np.float64)


def _nats(
    sums: NDArray[np.float64], n: NDArray[np.float64] | np.float64
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """I(E; E' | Z) and H(E' | Z) from the four sums."""
    both, first, second, label = sums
    nats = ((both + label - first - second) / n, (label - second) / n)
    # what is left of sums that cancel is no information
    information, left = (np.where(x > 1e-12, x, 0.0) for x in nats)
    return information, left
