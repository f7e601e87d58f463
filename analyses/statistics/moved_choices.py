r"""Nulls of what labels tell of choices: whole units of text move, and one count each gives a draw.

Tokens of a unit depend on each other, in what they say and in where they are sent, so a null that
moves tokens one by one is too narrow. Here the choices of a unit stay together, in their order, and
move as a whole: to the text of another unit, or along their own. Or labels of whole units move.

References
----------
.. [1] Cameron and Miller (2015), doi:10.3368/jhr.50.2.317 (inference with clustered data).
.. [2] Harris (2021), arXiv:2012.06862 (shifting a series along itself as a null).
"""

from collections.abc import Iterable, Iterator

import numpy as np
from numpy.typing import NDArray

from analyses.statistics.routing import Labelled, Sums, n_log_n


def exchanged(slices: list[slice], permutations: NDArray[np.intp]) -> Iterator[list[slice]]:
    """Units in permuted order, laid along the text from its beginning.

    A unit's choices stay whole and in order, and only their tie to its words is cut. Sequences have
    one length, so choices keep their position in a sequence.

    Parameters
    ----------
    permutations : (resample, unit).
    """
    for permutation in permutations.tolist():
        yield [slices[i] for i in permutation]


def rotated(slices: list[slice], turns: NDArray[np.float64]) -> Iterator[list[slice]]:
    """Each unit's choices moved along its own tokens by a turn of its own, around its end.

    Parameters
    ----------
    turns : (resample, unit), in [0, 1), as a share of the unit's length.
    """
    starts, stops = ([getattr(whole, end) for whole in slices] for end in ("start", "stop"))
    middles = starts + (turns * np.subtract(stops, starts)).astype(np.intp)
    for middle in middles.tolist():
        ends = zip(starts, middle, stops, strict=True)
        yield [piece for a, m, b in ends for piece in (slice(m, b), slice(a, m))]


def moved_sums(
    choice: NDArray, at: Labelled, arrangements: Iterable[list[slice]], *, n_experts: int
) -> Sums:
    """The sums when choices are moved and labels stay, (resample).

    Parameters
    ----------
    choice : (token, top_k), expert indices.
    arrangements : of `exchanged` or `rotated`.
    """
    n_labels, everywhere = at.n_labels, len(at.counted) == len(choice)
    code, column = choice.astype(np.int64) * n_labels, at.label[:, None]
    n_of_label = choice.shape[1] * np.bincount(at.label, minlength=n_labels)

    def tables() -> Iterator[NDArray]:
        for pieces in arrangements:
            moved = np.concatenate([code[piece] for piece in pieces])
            moved = moved if everywhere else moved.take(at.counted, axis=0)
            moved += column
            yield np.bincount(moved.ravel(), minlength=n_experts * n_labels)

    return _sums_of(tables(), (n_experts, n_labels), n_of_label)


def relabelled_sums(
    choice: NDArray,
    at: Labelled,
    label_of_unit: NDArray,
    permutations: NDArray[np.intp],
    *,
    n_experts: int,
) -> Sums:
    """The sums when units exchange a label of theirs, taken together with a label of tokens.

    Labels are numbered x * (number of labels of units) + label of the unit.

    Parameters
    ----------
    choice : (token, top_k), expert indices.
    at : the label of tokens, which stays.
    label_of_unit : (unit), integers from 0.
    permutations : (resample, unit).
    """
    n_of_unit = int(label_of_unit.max()) + 1
    n_labels = at.n_labels * n_of_unit
    # tokens of one unit, label and expert move together, so they are counted once
    code = choice[at.counted].astype(np.int64) * len(at.pair_unit) + at.pair[:, None]
    codes, counts = np.unique(code, return_counts=True)
    expert, pair = np.divmod(codes, len(at.pair_unit))
    fixed = expert * n_labels + at.pair_label[pair] * n_of_unit
    unit, weight = at.pair_unit[pair], counts.astype(np.float64)

    def tables() -> Iterator[NDArray]:
        for permutation in permutations:
            where = fixed + label_of_unit[permutation][unit]
            found = np.bincount(where, weight, minlength=n_experts * n_labels)
            yield found.astype(np.int64)

    return _sums_of(tables(), (n_experts, n_labels), None)


def _sums_of(tables: Iterator[NDArray], shape: tuple[int, int], n_of_label: NDArray | None) -> Sums:
    """Sums of flat tables of one shape; `n_of_label` if these are the same in all."""
    found, log_table = [], np.zeros(1)
    for i, flat in enumerate(tables):
        table = flat.reshape(shape)
        if n_of_label is None or i == 0:
            n = table.sum(axis=0) if n_of_label is None else n_of_label
            if n.max() >= len(log_table):
                log_table = n_log_n(np.arange(n.max() + 1))
            labels, used, inverse = log_table.take(n).sum(), (n > 0).sum(), 1 / np.maximum(n, 1)
        largest = table.max(axis=0)
        cells = log_table.take(flat).sum()
        found.append((cells, labels, largest.sum(), largest @ inverse, used, table.sum(axis=1)))
    cells, labels, largest, share, used, experts = (
        np.array(values, dtype=np.float64) for values in zip(*found, strict=True)
    )
    return Sums(cells, labels, largest, share, used, experts)
