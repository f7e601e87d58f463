r"""Phases of a curve over training that is flat, falls, rises and falls again.

The divergence between seeds of language models has been seen to go through four phases [1]_: an
initial one in which models are close to uniform and it hardly moves, sharp convergence, sharp
divergence, and slow reconvergence. With y the curve and T its last step, the turns s <= t <= p are
those that make what is fallen, risen and fallen again largest,

    (y_s - y_t) + (y_p - y_t) + (y_p - y_T)

Turns chosen from the data make every change between them look large. So the intervals hold for the
changes between all pairs of steps at once [2]_, and with that for those of any turns.

References
----------
.. [1] Fehlauer, Mahowald and Pimentel (2025), arXiv:2509.26643.
.. [2] Montiel Olea and Plagborg-Møller (2019), doi:10.1002/jae.2656 (sup-t bands).
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from analyses.statistics.bands import JointT
from analyses.statistics.resampling import jackknife

PHASES = ("uniform", "sharp convergence", "sharp divergence", "slow reconvergence")
SIGNS = (0, -1, 1, -1)


class Phases(NamedTuple):
    """The four `PHASES` of one curve.

    Attributes
    ----------
    start, end : int (phase), indices of steps; equal where there is no such phase.
    change : (phase), of the curve from start to end.
    ci : (phase, ci_bound), of the change, for any start and end; 0 where they are equal.
    verdict : (phase), "seen", "not seen" or "cannot be told", of these models.
    """

    start: NDArray[np.intp]
    end: NDArray[np.intp]
    change: NDArray[np.float64]
    ci: NDArray[np.float64]
    verdict: NDArray[np.str_]


def turning_points(curve: NDArray[np.float64], *, margin: float) -> tuple[int, int, int]:
    """Indices s, t, p: where the curve leaves its first level, its trough and its peak.

    Parameters
    ----------
    curve : (step), finite.
    margin : s is the last step up to t that is within this of the highest one up to t.
    """
    highest = np.maximum.accumulate(curve)
    total = highest[:, None] - 2 * curve[:, None] + 2 * curve
    total[np.tril_indices(len(curve), k=-1)] = -np.inf
    # a curve that only falls has the same total for every t = p: all of it is the first fall
    best = total >= total.max() - 1e-9 * np.ptp(curve)
    trough, peak = (int(i) for i in np.argwhere(best)[-1])
    start = int(np.flatnonzero(curve[: trough + 1] >= highest[trough] - margin)[-1])
    return start, trough, peak


def find_phases(
    curve: NDArray[np.float64],
    deleted: NDArray[np.float64],
    *,
    tolerance: float = 0.1,
    level: float = 0.95,
    n_resamples: int,
    rng: np.random.Generator,
) -> Phases:
    """Phases of a curve, each seen, not seen, or not to be told from this text.

    The first phase is seen if all changes from the first step to those in it are surely smaller
    than `tolerance` times the curve's range. Another one is seen if its change surely has the right
    sign, and not seen if it has no steps. Of simulated curves without any phase, 4% seemed to have
    one of the last three; with intervals for the chosen turns alone, 47% would have risen.

    Parameters
    ----------
    curve : (step), finite.
    deleted : (unit, step), the curve without each unit of text.
    level : at which "surely" holds, for all changes at once.
    n_resamples : draws for that.
    """
    margin = tolerance * float(np.ptp(curve))
    start, trough, peak = turning_points(curve, margin=margin)
    starts, ends = np.array([(0, start), (start, trough), (trough, peak), (peak, len(curve) - 1)]).T
    changes, bounds = _all_changes(curve, deleted, level=level, n_resamples=n_resamples, rng=rng)
    change, ci = changes[starts, ends], bounds[starts, ends]
    verdict = [
        _flat(bounds[0, 1 : start + 1], margin),
        *(_moved(ci[i] * sign) for i, sign in enumerate(SIGNS) if sign),
    ]
    return Phases(starts, ends, change, ci, np.array(verdict))


def _all_changes(
    curve: NDArray[np.float64],
    deleted: NDArray[np.float64],
    *,
    level: float,
    n_resamples: int,
    rng: np.random.Generator,
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Change from each step to each later one, (step, step), and simultaneous (..., ci_bound)."""
    n = len(curve)
    changes, errors = np.zeros((n, n)), np.zeros((n, n))
    draws = JointT.drawn(len(deleted), n_resamples=n_resamples, rng=rng)
    largest = np.zeros((n_resamples, 1))
    for i in range(n - 1):  # all pairs at once would take memory with the square of the steps
        later = slice(i + 1, n)
        of_start = jackknife(curve[later] - curve[i], deleted[:, later] - deleted[:, i : i + 1])
        changes[i, later], errors[i, later] = of_start.estimate, of_start.standard_error
        np.maximum(largest, draws.largest(of_start.deleted, axis=0), out=largest)
    margin = draws.critical(largest, level=level) * errors
    return changes, np.stack([changes - margin, changes + margin], axis=-1)


def _flat(bounds: NDArray[np.float64], margin: float) -> str:
    if not len(bounds):
        return "not seen"
    return "seen" if (np.abs(bounds) < margin).all() else "cannot be told"


def _moved(signed: NDArray[np.float64]) -> str:
    """Verdict on a change that should be above 0, from its interval, which is 0 without steps."""
    low, high = np.sort(signed)
    if low == high == 0:
        return "not seen"
    return "seen" if low > 0 else "cannot be told"
