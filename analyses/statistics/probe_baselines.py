"""What the accuracy of a probe is compared with: the commonest class, a lookup, a control task.

References
----------
.. [1] Hewitt and Liang (2019), arXiv:1909.03368 (control tasks, selectivity).
"""

import numpy as np
from numpy.typing import NDArray


def majority(label: NDArray[np.intp], fold: NDArray[np.intp]) -> NDArray[np.intp]:
    """The commonest label of the other folds, (token); -1 where a token is not counted."""
    return lookup(label, np.zeros_like(label), fold)


def lookup(label: NDArray[np.intp], token: NDArray, fold: NDArray[np.intp]) -> NDArray[np.intp]:
    """What the token id alone tells: the commonest label of its id in the other folds.

    For an id that they do not have, and between labels equally common, the one commonest overall.

    Parameters
    ----------
    label : (token), from 0; -1 is not counted.
    token : (token), token ids.
    fold : (token), from 0.

    Returns
    -------
    array (token), -1 where a token is not counted.
    """
    counted = np.flatnonzero(label >= 0)
    own, of_fold = label[counted], fold[counted]
    ids, at = np.unique(token[counted], return_inverse=True)
    shape = (int(of_fold.max()) + 1, len(ids), int(own.max()) + 1)
    counts = np.zeros(shape)
    np.add.at(counts, (of_fold, at, own), 1.0)
    others = counts.sum(axis=0) - counts
    overall = others.sum(axis=1, keepdims=True)
    best = (others + 0.5 * overall / overall.sum(axis=-1, keepdims=True)).argmax(axis=-1)
    answer = np.full(len(label), -1)
    answer[counted] = best[of_fold, at]
    return answer


def control_labels(
    label: NDArray[np.intp], token: NDArray, rank: NDArray[np.intp]
) -> NDArray[np.intp]:
    """A control task: a label for each token id that has nothing to do with it [1]_, (token).

    Ids stand in a random order, and labels are dealt out along it in the shares that they have
    among the tokens, so that the control is about as unequal as the target.

    Parameters
    ----------
    label : (token), from 0; -1 is not counted, and stays.
    token : (token), token ids.
    rank : (d_vocab), a random permutation.
    """
    counted = label >= 0
    ids, at, n = np.unique(token[counted], return_inverse=True, return_counts=True)
    order = np.argsort(rank[ids])
    middle = np.empty(len(ids))
    middle[order] = np.cumsum(n[order]) - n[order] / 2
    ends = np.cumsum(np.bincount(label[counted]))
    control = np.full(label.shape, -1)
    control[counted] = np.searchsorted(ends, middle, side="right")[at]
    return control
