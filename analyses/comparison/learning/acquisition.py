"""Learning curves of many runs, one run in memory at a time: ages, milestones and shapes.

All runs are looked at on the same steps, those that every run observed, so that all curves start,
end and are smoothed alike.
"""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from analyses.comparison.walk import Progress
from analyses.reporting.text import listed
from analyses.statistics.learning import Milestones, log_step, milestones, smoothing_matrix

# by name, what a measure is and its unit
MEASURES = {
    "learned": ("learned at the end, share of tokens", "1"),
    "known_at_start": ("half-way down at the first step, share of learned", "1"),
    "recrossed": ("comes down to half-way more than once, share of learned", "1"),
    "lost": ("not learned at the end, share of learned at some time", "1"),
    "forgotten": ("rise above the lowest loss, mean of learned at some time", "nat"),
    "forgotten_share": ("the same as a share of the drop from chance", "1"),
}
FEWEST_STEPS = 3


class Curves(NamedTuple):
    """What is kept of the curves of all runs.

    Attributes
    ----------
    age : (run, token), in log2(1 + step); NaN where not learned.
    sums, counts : (unit, run, measure), for each of `MEASURES` the sum over a unit's tokens, and
        over how many of them it was taken.
    shape : (arm, point, token), smoothed curves averaged over the runs of an arm, at points evenly
        spaced in log2(1 + step).
    """

    age: NDArray[np.float64]
    sums: NDArray[np.float64]
    counts: NDArray[np.float64]
    shape: NDArray[np.float32]


def common_steps(loss_mean: xr.DataArray) -> NDArray[np.intp]:
    """Indices of the steps that all runs observed with finite losses.

    Parameters
    ----------
    loss_mean : DataArray (run, step), NaN where a run was not observed.

    Raises
    ------
    ValueError
        If they are fewer than three.
    """
    observed = loss_mean.notnull().transpose("run", "step")
    common = np.flatnonzero(observed.all("run"))
    if len(common) < FEWEST_STEPS:
        n_steps = observed.sum("step")
        fewest = observed["run"].values[n_steps == n_steps.min()]
        raise ValueError(
            f"a curve needs {FEWEST_STEPS} steps that all runs observed with finite losses, there "
            f"are {len(common)}; {listed(fewest)} observed {int(n_steps.min())}: wait until the "
            "runs got further, or give the paths of runs that have steps in common"
        )
    return common


def observe_curves(
    loss: xr.DataArray,
    token_unit: NDArray[np.intp],
    *,
    chance: float,
    margin: float,
    penalty: float,
    n_points: int,
    progress: Progress = iter,
) -> Curves:
    """Smooth every curve of every run and keep what `Curves` holds.

    Parameters
    ----------
    loss : DataArray (run, step, sequence, pos), nats, finite, read a run at a time; with the
        coordinate `arm` on `run`.
    token_unit : (token), integer labels from 0, tokens in reading order.
    chance, margin : as for `milestones`, nats.
    penalty : as for `smoothing_matrix`.
    n_points : points of a shape.
    """
    arm, n_tokens = loss["arm"].values.astype(str), len(token_unit)
    arms = list(dict.fromkeys(arm))
    n_units, x = int(token_unit.max()) + 1, log_step(loss["step"].values)
    smoother = smoothing_matrix(x, penalty=penalty).astype("float32")
    points = np.linspace(x[0], x[-1], n_points)
    to_points = np.stack([np.interp(points, x, unit) for unit in np.eye(len(x))], axis=1)
    age = np.full((len(arm), n_tokens), np.nan)
    sums, counts = np.empty((2, n_units, len(arm), len(MEASURES)))
    shape = np.zeros((len(arms), n_points, n_tokens), dtype="float32")
    for i in progress(range(len(arm))):
        values = loss.isel(run=i).transpose("step", "sequence", "pos").values
        curve = smoother @ values.reshape(len(x), n_tokens)
        found = milestones(curve, x, chance=chance, margin=margin)
        age[i] = found.age
        for j, (value, counted) in enumerate(_measured(found).values()):
            kept = np.where(counted, value, 0.0)
            sums[:, i, j] = np.bincount(token_unit, kept, minlength=n_units)
            counts[:, i, j] = np.bincount(token_unit, counted, minlength=n_units)
        shape[arms.index(arm[i])] += (to_points @ curve) / (arm == arm[i]).sum()
    return Curves(age, sums, counts, shape)


def _measured(found: Milestones) -> Mapping[str, tuple[NDArray, NDArray[np.bool_]]]:
    """For each of `MEASURES`, in its order, the values and the tokens that they are taken over."""
    learned, ever = found.learned, found.ever_learned
    return {
        "learned": (learned, np.ones_like(learned)),
        "known_at_start": (found.known_at_start, learned),
        "recrossed": (found.n_crossings > 1, learned),
        "lost": (~learned, ever),
        "forgotten": (found.forgotten, ever),
        "forgotten_share": (found.forgotten_share, ever),
    }
