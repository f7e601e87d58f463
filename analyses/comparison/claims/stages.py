"""The places of training that claims about a curve speak of: early, the second half, the end.

References
----------
.. [1] 1a3orn (2024), "MoE and Dense Transformers Maybe Learn the Same Thing" (2,000 of 89,286
   steps before the first observation).
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

SHARE = 2_000 / 89_286


class Stages(NamedTuple):
    """Indices of places along training at which all of some runs were observed.

    Attributes
    ----------
    early : the first at which all runs are better than a unigram model; None if none before `end`.
    share : as far into training as the first observation of the reference study [1]_.
    late : (late), the second half.
    end : the last.
    between : (between), those strictly between `early` and `end`.
    """

    early: int | None
    share: int
    late: NDArray[np.intp]
    end: int
    between: NDArray[np.intp]


def stages(
    observed: NDArray[np.bool_],
    loss: NDArray[np.float64],
    step: NDArray,
    *,
    levels: NDArray[np.float64] | None,
    unigram: float | None,
) -> Stages:
    """Stages of the training of some runs, at equal steps or at equal mean losses.

    The second half is that of the steps; of losses, the lower half of those from `early` on.

    Parameters
    ----------
    observed : (place), whether all pairs of these runs have a value.
    loss : (step, run), their mean losses, nats, NaN where not observed.
    step : (step), which are the places unless `levels` are.
    levels : (place), mean losses from high to low; None if runs are compared at equal steps.
    unigram : mean loss of a unigram model, nats; if None, `early` is `share`.

    Raises
    ------
    ValueError
        If no place is observed.
    """
    if levels is None:
        observed = observed & np.isfinite(loss).all(axis=1)
    places = np.flatnonzero(observed)
    if not len(places):
        raise ValueError(
            "there is no step that all runs of the arms compared observed with finite losses; wait "
            "until the runs got further, or give the paths of runs that have steps in common"
        )
    end = int(places[-1])
    if levels is None:
        highest = loss.max(axis=1)
        share = _nearest(step, SHARE * step[end], places)
    else:
        highest = levels
        at_share = float(np.mean([_loss_at_share(of_run, step) for of_run in loss.T]))
        share = _nearest(levels, at_share, places)
    better = places if unigram is None else places[highest[places] < unigram]
    early = share if unigram is None else int((*better, end)[0])
    if levels is None:
        late = places[step[places] >= step[end] / 2]
    else:
        start = early if early < end else places[0]
        late = places[levels[places] <= (levels[start] + levels[end]) / 2]
    between = places[(places > early) & (places < end)]
    return Stages(early if early < end else None, share, late, end, between)


def _nearest(values: NDArray, target: float, among: NDArray[np.intp]) -> int:
    return int(among[np.abs(values[among] - target).argmin()])


def _loss_at_share(loss: NDArray[np.float64], step: NDArray) -> float:
    """Mean loss of a run (step) where it had done that share of the steps it did."""
    seen = np.flatnonzero(np.isfinite(loss))
    return float(loss[_nearest(step, SHARE * step[seen[-1]], seen)])
