r"""The token ids at which two arms differ most: chosen on one half of the text, seen in the other.

For every id that is frequent enough, the mean loss at its occurrences, less the mean over all
tokens, is one value a run and half of the text. On the first half ids are ranked by |t|, with

    t = (difference of the arms) / (its Welch error over runs + the median error over ids)

where the median keeps ids from winning by the accident of a small error [1]_. The second half tells
what is left of the difference in other text. The runs of both halves are the same: an id that a
seed happened to learn early stays chosen. So choice and outcome are repeated with the runs of the
arms exchanged, which shows how much noise of seeds alone would leave.

References
----------
.. [1] Tusher et al. (2001), doi:10.1073/pnas.091062498 (a constant added to the standard error).
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from analyses.statistics.class_means import class_sums
from analyses.statistics.two_arms import welch


class Halves(NamedTuple):
    """Frequent token ids in two halves of the text.

    Attributes
    ----------
    second : bool (token), whether a token is in the second half.
    unit : (token), integer labels from 0.
    ids : (type), the token ids that are frequent in both halves.
    type_index : (token), index into `ids` of the target, -1 for the others.
    counts : (half, type), occurrences.
    """

    second: NDArray[np.bool_]
    unit: NDArray[np.intp]
    ids: NDArray[np.intp]
    type_index: NDArray[np.intp]
    counts: NDArray[np.float64]


def halves(
    target: NDArray,
    unit: NDArray[np.intp],
    stratum: NDArray,
    *,
    min_count: int = 10,
    min_units: int = 4,
    rng: np.random.Generator,
) -> Halves:
    """Split the units of text at random into two halves, and find the ids frequent in both.

    Parameters
    ----------
    target : (token), token ids.
    unit : (token), integer labels from 0.
    stratum : (token), such as the domain; the units of each are shared out evenly.
    min_count, min_units : occurrences, and units that hold one, that make an id frequent.
    """
    n_units = int(unit.max()) + 1
    _, first_token = np.unique(unit, return_index=True)
    shuffled = rng.permutation(n_units)
    ordered = shuffled[np.argsort(stratum[first_token][shuffled], kind="stable")]
    in_second = np.zeros(n_units, dtype=bool)
    in_second[ordered[1::2]] = True
    second = in_second[unit]
    n_ids = int(target.max()) + 1
    counts = np.stack([np.bincount(target[second == half], minlength=n_ids) for half in (0, 1)])
    held = np.unique(unit * np.int64(n_ids) + target)
    n_holding = np.stack(
        [
            np.bincount(held[in_second[held // n_ids] == half] % n_ids, minlength=n_ids)
            for half in (0, 1)
        ]
    )
    ids = np.flatnonzero((counts >= min_count).all(axis=0) & (n_holding >= min_units).all(axis=0))
    number = np.full(n_ids, -1)
    number[ids] = np.arange(len(ids))
    return Halves(second, unit, ids, number[target], counts[:, ids].astype(float))


def type_means(values: NDArray[np.float64], text: Halves) -> NDArray[np.float64]:
    """Mean loss of each id in each half, less the run's mean over that half, (half, type, run).

    Parameters
    ----------
    values : (run, token) losses, nats.
    text : of `halves`.
    """
    half = text.second.astype(np.intp)
    shape = (2, len(text.ids))
    sums = class_sums(values, half, text.type_index[None], shape=shape)
    overall = np.stack([values[:, half == i].mean(axis=1) for i in (0, 1)])
    return sums / text.counts[..., None] - overall[:, None, :]


def reliability(first: NDArray, second: NDArray) -> NDArray[np.float64]:
    """Difference of two groups of runs by its error plus the median error [1]_, (type).

    Parameters
    ----------
    first, second : (run, type), at least two runs each.
    """
    found = welch(first, second)
    error = found.standard_error + np.median(found.standard_error)
    with np.errstate(invalid="ignore"):
        return np.nan_to_num(found.difference / np.where(error > 0, error, np.nan))


class Kept(NamedTuple):
    """What is left in the second half of the differences that were chosen on the first.

    Attributes
    ----------
    chosen : indices of the chosen types, the most reliable first.
    before, after : difference in the first and the second half, both with the sign that it has in
        the first, averaged over the chosen types.
    """

    chosen: NDArray[np.intp]
    before: float
    after: float


def kept_difference(first: NDArray, second: NDArray, *, n_chosen: int) -> Kept:
    """Choose types on the first half and average their difference on both.

    Parameters
    ----------
    first, second : (run, half, type), of the two arms.
    """
    t = reliability(first[:, 0], second[:, 0])
    chosen = np.argsort(-np.abs(t), kind="stable")[:n_chosen]
    difference = (first.mean(axis=0) - second.mean(axis=0))[:, chosen]
    before, after = (difference * np.sign(difference[0])).mean(axis=1)
    return Kept(chosen, float(before), float(after))
