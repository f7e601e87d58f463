"""The commonest ways of tokens from expert to expert, picked on some text and measured on other.

What is commonest in a sample is so partly by accident [1]_, and so is a diagonal made by sorting.

References
----------
.. [1] Kriegeskorte et al. (2009), doi:10.1038/nn.2303 (selecting and measuring on the same data).
.. [2] Kuhn (1955), doi:10.1002/nav.3800020109 (the assignment problem).
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray


def matched_order(joint: NDArray) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Orders of rows and columns that bring the largest cells to the diagonal, commonest first.

    Every expert gets one partner, so that together the pairs are as common as can be
    [2]_.

    Parameters
    ----------
    joint : (expert, next expert), pairs of choices.
    """
    from scipy.optimize import linear_sum_assignment  # half a second, which --help need not wait

    rows, columns = linear_sum_assignment(joint, maximize=True)
    order = np.argsort(-joint[rows, columns], kind="stable")
    return rows[order], columns[order]


class TopPaths(NamedTuple):
    """The commonest ways of first choices through the layers, commonest first.

    Attributes
    ----------
    path : (rank, layer), experts; -1 where there are no more paths.
    chosen : (rank), share of tokens on it where it was picked.
    share, independent : (rank), the same on other text, and what the loads of the layers give there
        if layers had nothing to do with each other.
    share_deleted, independent_deleted : (unit, rank), these without each unit of the other text.
    """

    path: NDArray[np.intp]
    chosen: NDArray[np.float64]
    share: NDArray[np.float64]
    independent: NDArray[np.float64]
    share_deleted: NDArray[np.float64]
    independent_deleted: NDArray[np.float64]


def top_paths(
    first_choice: NDArray,
    unit: NDArray[np.intp],
    pick: NDArray[np.bool_],
    *,
    n_experts: int,
    n_top: int,
) -> TopPaths:
    """Paths picked on some units of text and measured on the others.

    Parameters
    ----------
    first_choice : (layer, token)
    unit : (token), integer labels from 0.
    pick : (unit), those on which paths are picked.
    n_experts : N.
    """
    n_layers, here = len(first_choice), pick[unit]
    found, counts = np.unique(first_choice[:, here], axis=1, return_counts=True)
    top = np.argsort(-counts, kind="stable")[:n_top]
    path = np.full((n_top, n_layers), -1)
    chosen = np.full(n_top, np.nan)
    path[: len(top)], chosen[: len(top)] = found[:, top].T, counts[top] / here.sum()
    others = np.flatnonzero(~pick)
    number = np.searchsorted(others, unit[~here])
    rest, n = first_choice[:, ~here], len(others)
    size = np.bincount(number, minlength=n)
    on_path = np.stack(
        [np.bincount(number, (p == rest.T).all(axis=1), minlength=n) for p in path], axis=1
    )
    loads = np.stack(
        [np.bincount(number * n_experts + of_layer, minlength=n * n_experts) for of_layer in rest]
    ).reshape(n_layers, n, n_experts)

    def shares(on: NDArray, load: NDArray, tokens: NDArray) -> tuple[NDArray, NDArray]:
        apart = np.prod(
            [load[i][..., path[:, i]] / tokens[..., None] for i in range(n_layers)], axis=0
        )
        known = path[:, 0] >= 0
        return np.where(known, on / tokens[..., None], np.nan), np.where(known, apart, np.nan)

    total = shares(on_path.sum(axis=0), loads.sum(axis=1), size.sum())
    left = loads.sum(axis=1, keepdims=True) - loads
    deleted = shares(on_path.sum(axis=0) - on_path, left, size.sum() - size)
    return TopPaths(path, chosen, *total, *deleted)
