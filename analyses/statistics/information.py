r"""Entropy and mutual information from tables of counts, in nats.

Counts stand on the last axis (entropy) or the last two (mutual information). Zero counts add
nothing, as 0 ln 0 = 0.

References
----------
.. [1] Shannon (1948), doi:10.1002/j.1538-7305.1948.tb01338.x.
.. [2] Miller (1955), "Note on the bias of information estimates"; Paninski (2003),
   doi:10.1162/089976603321780272 (plug-in bias and the Miller-Madow correction).
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


def _sum_n_log_n(counts: NDArray, *, axis: int) -> NDArray[np.float64]:
    counts = np.asarray(counts, dtype=np.float64)
    logs = np.log(counts, where=counts > 0, out=np.zeros_like(counts))
    return (counts * logs).sum(axis=axis)
