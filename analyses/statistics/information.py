r"""Entropy and mutual information from tables of counts, in nats, and three corrections for chance.

Counts stand on the last axis (entropy) or the last two (mutual information). Zero counts add
nothing, as 0 ln 0 = 0. Information from finite data is too large. Miller and Madow take away the
first-order bias of independent observations; a permutation null knows how observations depend on
each other, but takes away too much where there is information to be found; between the two lies
what is sought. A share of what is possible above chance is exact at both ends: 0 at the null, 1 for
a label that settles everything.

References
----------
.. [1] Shannon (1948), doi:10.1002/j.1538-7305.1948.tb01338.x.
.. [2] Miller (1955), "Note on the bias of information estimates"; Paninski (2003),
   doi:10.1162/089976603321780272 (plug-in bias and the Miller-Madow correction).
.. [3] Vinh, Epps and Bailey (2010), Journal of Machine Learning Research 11, 2837-2854 (adjustment
   for chance, and the expected information of a table with fixed margins).
.. [4] Wyner (1978), doi:10.1016/S0019-9958(78)90026-8 (conditional mutual information).
"""

import numpy as np
from numpy.typing import NDArray


def contingency(rows: NDArray, columns: NDArray, *, shape: tuple[int, int]) -> NDArray[np.int64]:
    """How often each row label meets each column label.

    Parameters
    ----------
    rows, columns : integer labels from 0, broadcast against each other.
    shape : numbers of row and column labels.

    Raises
    ------
    ValueError
        If a label lies outside `shape`.
    """
    rows, columns = np.asarray(rows), np.asarray(columns)
    for labels, size in ((rows, shape[0]), (columns, shape[1])):
        if labels.size and not 0 <= labels.min() <= labels.max() < size:
            raise ValueError(
                f"labels from {labels.min()} to {labels.max()} do not fit a table of {size}; "
                "labels run from 0, and missing ones (-1) are left out before counting"
            )
    code = rows.astype(np.int64) * shape[1] + columns
    return np.bincount(code.ravel(), minlength=shape[0] * shape[1]).reshape(shape)


def entropy(counts: NDArray) -> NDArray[np.float64]:
    """Plug-in entropy -sum_i f_i ln f_i of the shares f = counts / sum [1]_.

    Parameters
    ----------
    counts : (..., n), at least 0.

    Returns
    -------
    array (...) in [0, ln n]; NaN where all counts are zero.
    """
    total = counts.sum(axis=-1)
    with np.errstate(invalid="ignore", divide="ignore"):
        nats = np.log(total) - _sum_n_log_n(counts, axis=-1) / total
    return np.where(total > 0, np.maximum(nats, 0.0), np.nan)


def mutual_information(table: NDArray) -> NDArray[np.float64]:
    """Plug-in mutual information I = H(X) + H(Y) - H(X, Y) [1]_.

    Biased upwards on finite data: compare it with a null.

    Parameters
    ----------
    table : (..., x, y) counts, or weighted counts, at least 0.

    Returns
    -------
    array (...), at least 0; NaN where the table is empty.
    """
    rows, columns = table.sum(axis=-1), table.sum(axis=-2)
    cells = table.reshape(*table.shape[:-2], -1)
    information = entropy(rows) + entropy(columns) - entropy(cells)
    return np.maximum(information, 0.0)


def miller_madow(table: NDArray) -> NDArray[np.float64]:
    """Mutual information less its first-order bias: I - (K_xy - K_x - K_y + 1) / (2n) [2]_.

    K counts the rows, columns and cells that are not empty, n the observations, which the
    correction takes to be independent; tokens are not, so it corrects too little.

    Parameters
    ----------
    table : (..., x, y) counts.

    Returns
    -------
    array (...); may be below 0.
    """
    n = table.sum(axis=(-1, -2))
    filled = (table > 0).sum(axis=(-1, -2))
    rows = (table.sum(axis=-1) > 0).sum(axis=-1)
    columns = (table.sum(axis=-2) > 0).sum(axis=-1)
    bias = (filled - rows - columns + 1) / (2 * np.maximum(n, 1))
    return mutual_information(table) - bias


def conditional_information(table: NDArray) -> NDArray[np.float64]:
    """Plug-in I(X; Y | Z) = sum_z p(z) I(X; Y | Z = z) [4]_.

    Biased upwards more than I(X; Y), since every z has a table of its own.

    Parameters
    ----------
    table : (..., z, x, y) counts.

    Returns
    -------
    array (...), at least 0; NaN where the table is empty.
    """
    weight = table.sum(axis=(-1, -2))
    within = np.where(weight > 0, mutual_information(table), 0.0)
    with np.errstate(invalid="ignore", divide="ignore"):
        return (weight * within).sum(axis=-1) / weight.sum(axis=-1)


def conditional_miller_madow(table: NDArray) -> NDArray[np.float64]:
    """`conditional_information` with `miller_madow` in place of each plug-in information.

    Parameters
    ----------
    table : (..., z, x, y) counts.
    """
    weight = table.sum(axis=(-1, -2))
    within = np.where(weight > 0, miller_madow(table), 0.0)
    with np.errstate(invalid="ignore", divide="ignore"):
        return (weight * within).sum(axis=-1) / weight.sum(axis=-1)


def share_beyond_chance(
    information: NDArray, chance: NDArray, limit: NDArray
) -> NDArray[np.float64]:
    """Adjustment for chance (I - I_0) / (I_max - I_0) [3]_.

    Parameters
    ----------
    information, chance : I and its mean under a null, I_0.
    limit : the most that I could be, such as H(Y).

    Returns
    -------
    array, 0 where I is what chance gives and 1 where I is all there is to be known; NaN where
    chance alone reaches the limit.
    """
    information, chance, limit = map(np.asarray, (information, chance, limit))
    possible = limit - chance
    # what is left of entropies that cancel
    there = possible > 1e-9 * np.maximum(1.0, np.abs(limit))
    return np.where(there, (information - chance) / np.where(there, possible, 1.0), np.nan)


def adjusted_mutual_information(table: NDArray) -> float:
    """AMI: `share_beyond_chance` of (H(X) + H(Y)) / 2, chance from tables of the same margins [3]_.

    It takes observations to be independent.

    Parameters
    ----------
    table : (x, y) counts.

    Returns
    -------
    float, at most 1; NaN if X and Y are both constant, so that there is nothing to be known.
    """
    from sklearn.metrics.cluster import expected_mutual_information  # two seconds

    table = np.asarray(table)
    table = table[table.sum(axis=1) > 0][:, table.sum(axis=0) > 0].astype(np.int64)
    chance = expected_mutual_information(table, int(table.sum()))
    limit = (entropy(table.sum(axis=0)) + entropy(table.sum(axis=1))) / 2
    return float(share_beyond_chance(mutual_information(table), chance, limit))


def _sum_n_log_n(counts: NDArray, *, axis: int) -> NDArray[np.float64]:
    counts = np.asarray(counts, dtype=np.float64)
    logs = np.log(counts, where=counts > 0, out=np.zeros_like(counts))
    return (counts * logs).sum(axis=axis)
