r"""Experts of one router matched to those of another, and how far the two then agree.

Numbers of experts mean nothing between models. So expert i of the first router, which chooses the
set A_t for token t, is matched to expert pi(i) of the second, which chooses A'_t, such that the
summed phi coefficients [1]_ of the indicators 1[i in A_t] and 1[pi(i) in A'_t] are largest [2]_.
The best of N! matchings agrees too well on the tokens that chose it; it is scored on other ones:

    agreement = mean_t |pi(A_t) ∩ A'_t| / k

Units of text are divided into two halves. Each half is scored with the matching found on the other,
so that every unit counts once. Chance is what the same procedure gives if whole units exchange the
second router's choices. All follows from one table a unit, of how many tokens have i in A_t and j
in A'_t.

References
----------
.. [1] Pearson (1900), doi:10.1098/rsta.1900.0022 (correlation of attributes).
.. [2] Kuhn (1955), doi:10.1002/nav.3800020109; Crouse (2016), doi:10.1109/TAES.2016.140952 (the
   assignment problem, and the algorithm used).
.. [3] Vinh, Epps and Bailey (2010), Journal of Machine Learning Research 11, 2837-2854 (AMI).
"""

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from analyses.statistics.information import (
    contingency,
    entropy,
    mutual_information,
    share_beyond_chance,
)
from analyses.statistics.resampling import leave_one_out


def unit_tables(
    first: NDArray, second: NDArray, unit: NDArray[np.intp], *, n_experts: int
) -> NDArray[np.int64]:
    """Tokens of each unit whose choices hold i in `first` and j in `second`, (unit, i, j).

    Parameters
    ----------
    first, second : (token, top_k), expert indices.
    unit : (token), integer labels from 0.
    n_experts : N.
    """
    n_units = int(unit.max()) + 1
    rows = unit[:, None] * n_experts + first
    table = sum(
        contingency(rows, column[:, None], shape=(n_units * n_experts, n_experts))
        for column in second.T
    )
    return np.asarray(table).reshape(n_units, n_experts, n_experts)


def half_tables(tables: NDArray, first_half: NDArray[np.bool_]) -> NDArray:
    """The tables of the units of each half added up, (half, i, j); the first half comes first."""
    return np.stack([tables[first_half].sum(axis=0), tables[~first_half].sum(axis=0)])


def inclusion_phi(table: NDArray, *, top_k: int) -> NDArray[np.float64]:
    """Phi of 1[i in A_t] and 1[j in A'_t] [1]_; 0 for an expert that all tokens chose, or none.

    Parameters
    ----------
    table : (..., i, j), tokens that have i in A_t and j in A'_t.

    Returns
    -------
    array (..., i, j) in [-1, 1]
    """
    # each choice of one router meets all k of the other
    tokens = table.sum(axis=(-1, -2), keepdims=True, dtype=np.float64) / top_k**2
    n, m = (table.sum(axis=axis, keepdims=True) / top_k for axis in (-1, -2))
    spread = n * (tokens - n) * m * (tokens - m)
    there = spread > 0
    return np.where(there, (tokens * table - n * m) / np.sqrt(np.where(there, spread, 1.0)), 0.0)


def matching(table: NDArray, *, top_k: int) -> NDArray[np.intp]:
    """pi(i), the expert j matched to each i so that phi sums to the most [2]_, (..., i)."""
    from scipy.optimize import (
        linear_sum_assignment,
    )  # half a second, which --help need not wait for

    phi = inclusion_phi(table, top_k=top_k)
    flat = phi.reshape(-1, *phi.shape[-2:])
    found = [linear_sum_assignment(-similarity)[1] for similarity in flat]
    return np.array(found, dtype=np.intp).reshape(phi.shape[:-1])


def crossed_matching(halves: NDArray, *, top_k: int) -> NDArray[np.intp]:
    """The matching that each half is scored with, found on the other half, (..., half, i).

    Parameters
    ----------
    halves : (..., half, i, j) of `half_tables`.
    """
    return matching(halves, top_k=top_k)[..., ::-1, :]


def matched_counts(table: NDArray, pi: NDArray[np.intp]) -> NDArray:
    """sum_t |pi(A_t) ∩ A'_t|, from tables (..., i, j) and matchings (..., i)."""
    return np.take_along_axis(table, pi[..., None], axis=-1)[..., 0].sum(axis=-1)


def null_agreement(
    choice: NDArray,
    pairs: Sequence[tuple[int, int]],
    slices: list[slice],
    first_half: NDArray[np.bool_],
    permutations: NDArray[np.intp],
    *,
    n_experts: int,
) -> Iterator[NDArray[np.float64]]:
    """Agreement of each pair when units exchange the second router's choices, one draw at a time.

    The choices, unit after unit in permuted order, are laid along the tokens in their own order: a
    unit's choices stay together, and only their tie to the first router's is cut. Experts are then
    matched and scored as before.

    Parameters
    ----------
    choice : (router, token, top_k), expert indices, tokens sorted by unit.
    pairs : two routers each.
    slices : where each unit stands.
    first_half : (unit)
    permutations : (resample, unit).

    Yields
    ------
    array (pair)
    """
    n_tokens, top_k = choice.shape[1:]
    half = np.repeat((~first_half).astype(np.int64), [s.stop - s.start for s in slices])
    cells = n_experts**2
    place = np.arange(n_tokens)
    # one flat code a choice, so that a draw costs one copy, one sum and one count a pair
    row = {a: half[:, None] * cells + choice[a].astype(np.int64) * n_experts for a, _ in pairs}
    for permutation in permutations:
        moved = np.concatenate([place[slices[unit]] for unit in permutation])
        exchanged = {b: choice[b][moved].astype(np.int64) for b in {b for _, b in pairs}}
        tables = np.zeros((len(pairs), 2 * cells), dtype=np.int64)
        for i, (a, b) in enumerate(pairs):
            for column in exchanged[b].T:
                tables[i] += np.bincount((row[a] + column[:, None]).ravel(), minlength=2 * cells)
        halves = tables.reshape(len(pairs), 2, n_experts, n_experts)
        matched = matched_counts(halves, crossed_matching(halves, top_k=top_k))
        yield matched.sum(axis=-1) / (top_k * n_tokens)


def adjusted_information(tables: NDArray) -> tuple[float, NDArray[np.float64]]:
    """AMI [3]_ over (H + H')/2 of first choices, and the same without each unit.

    Expected information is that of independent tokens with the same loads; it falls as one over
    their number, by which that without a unit is found.

    Parameters
    ----------
    tables : (unit, i, j) of `unit_tables` for top_k 1.

    Returns
    -------
    estimate : at most 1; NaN if both routers send all tokens to one expert.
    deleted : (unit)
    """
    table = tables.sum(axis=0)
    n = table.sum()
    chance = expected_information(table.sum(axis=1), table.sum(axis=0))

    def adjusted(counts: NDArray) -> NDArray[np.float64]:
        limit = (entropy(counts.sum(axis=-1)) + entropy(counts.sum(axis=-2))) / 2
        by_chance = chance * n / counts.sum(axis=(-1, -2))
        return share_beyond_chance(mutual_information(counts), by_chance, limit)

    return float(adjusted(table)), adjusted(leave_one_out(tables))


def expected_information(rows: NDArray, columns: NDArray) -> float:
    r"""Mean plug-in information, nats, of all tables with these margins [3]_.

    sum_ij sum_m (m/n) ln(n m / (a_i b_j)) P(m), P hypergeometric; m further than 12 standard
    deviations and 30 from its mean is left out, where P is below 1e-20.

    Parameters
    ----------
    rows, columns : counts a_i and b_j, of one sum n.
    """
    a, b = (np.asarray(x, dtype=np.int64)[np.asarray(x) > 0] for x in (rows, columns))
    n = int(a.sum())
    log_factorial = np.concatenate([[0.0], np.cumsum(np.log(np.arange(1, n + 1)))])
    total = 0.0
    for size in a.tolist():
        mean = size * b / n
        width = int(12 * np.sqrt(mean.max()) + 30)
        # below 1, m adds nothing
        low = np.maximum(np.maximum(1, size + b - n), mean.astype(np.int64) - width)
        m = low[:, None] + np.arange(2 * width + 2)
        inside = m <= np.minimum(size, b)[:, None]
        m = np.where(inside, m, low[:, None])
        other, rest = b[:, None], n - size
        log_p = (
            log_factorial[[size, rest]].sum() - log_factorial[n]
            + log_factorial[other] + log_factorial[n - other]
            - log_factorial[m] - log_factorial[size - m]
            - log_factorial[other - m] - log_factorial[rest - other + m]
        )  # fmt: skip
        information = m / n * np.log(n * m / (size * other))
        total += float((information * np.exp(log_p))[inside].sum())
    return total
