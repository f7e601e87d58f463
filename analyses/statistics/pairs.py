"""Pairs of runs, and means over the pairs that share a label."""

import numpy as np
from numpy.typing import NDArray

KINDS = ("dense-dense", "dense-MoE", "MoE-MoE")


def pair_indices(m: int) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Rows (first, second) of the m(m-1)/2 pairs of m runs, in reading order."""
    first, second = np.triu_indices(m, k=1)
    return first, second


def pair_kinds(is_moe: NDArray[np.bool_]) -> NDArray[np.str_]:
    """Kind of each pair of `pair_indices`, (pair): how many of its two runs are MoE.

    Parameters
    ----------
    is_moe : (run)
    """
    first, second = pair_indices(len(is_moe))
    return np.array(KINDS)[is_moe[first].astype(int) + is_moe[second]]


def mean_by_label(values: NDArray, labels: NDArray, *, axis: int) -> tuple[list[str], NDArray]:
    """Mean over the entries that share a label; NaN where one of them is.

    Returns
    -------
    names : the labels, those of `KINDS` in that order and others as they first appear.
    means : `values` with `axis` running over `names`.
    """
    names = list(dict.fromkeys(map(str, labels)))
    names.sort(key=lambda name: KINDS.index(name) if name in KINDS else len(KINDS))
    values = np.moveaxis(values, axis, 0)
    means = np.stack([values[labels == name].mean(axis=0) for name in names])
    return names, np.moveaxis(means, 0, axis)
