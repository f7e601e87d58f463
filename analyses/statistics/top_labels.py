"""Labels that an expert takes most of, picked on half of the text and measured on the other.

What is largest in a sample is so partly by accident. On text that had no part in the choice the
accident is gone, and what is left is what the expert does [1]_.

References
----------
.. [1] Kriegeskorte et al. (2009), doi:10.1038/nn.2303 (selecting and measuring on the same data).
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray


class TopLabels(NamedTuple):
    """Labels of each expert, best first.

    Attributes
    ----------
    label : (expert, rank); -1 where no further label is taken above the load.
    chosen : (expert, rank), share of the label's tokens that chose the expert, where it was picked.
    held_out : (expert, rank), the same on the other half; NaN if the label does not occur there.
    """

    label: NDArray[np.intp]
    chosen: NDArray[np.float64]
    held_out: NDArray[np.float64]


def halves(stratum: NDArray, rng: np.random.Generator) -> NDArray[np.bool_]:
    """Half of the units of every stratum at random, (unit); an odd one falls to either side.

    Parameters
    ----------
    stratum : (unit), such as the domain of each.
    """
    order = rng.permutation(len(stratum))
    order = order[np.argsort(stratum[order], kind="stable")]
    first = np.zeros(len(stratum), dtype=bool)
    first[order[int(rng.integers(2)) :: 2]] = True
    return first


def top_labels(first: NDArray, second: NDArray, *, top_k: int, n_top: int) -> TopLabels:
    """The labels that give an expert the most choices beyond its load.

    A label's excess is n_xe - f_e n_x, with f_e the load of the expert: frequent labels count for
    more than labels that occur a few times and went to the expert each time.

    Parameters
    ----------
    first, second : (expert, label), choices in the half to pick on, and in the other.
    """
    n, load = first.sum(axis=0), first.sum(axis=1) / first.sum()
    excess = first - load[:, None] * n
    n_top = min(n_top, first.shape[1])
    label = np.argsort(-excess, axis=1, kind="stable")[:, :n_top]
    taken = np.take_along_axis(excess, label, axis=1) > 0
    with np.errstate(invalid="ignore", divide="ignore"):
        shares = [
            np.take_along_axis(top_k * half / half.sum(axis=0), label, axis=1)
            for half in (first, second)
        ]
    return TopLabels(
        np.where(taken, label, -1), *(np.where(taken, share, np.nan) for share in shares)
    )
