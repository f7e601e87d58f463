r"""Where along training runs are compared: at equal steps, or at equal mean loss.

A run passes a mean loss between two observations, 0 before and 1 after. What is compared there is
interpolated: with weights w_i0 + w_i1 = 1 such that w_i0 L_i0 + w_i1 L_i1 is the level, a statistic
of runs i and j is sum_{a,b} w_ab theta_ia,jb with the joint weights of those margins that set most
runs against each other on the same side, w_00 = min(w_i0, w_j0) and w_11 = min(w_i1, w_j1).
Products w_ia w_jb would often set a run before the level against one after it, and a run would not
even agree with itself. With single steps from 64 on left out of a study and put back, r² came out
too low by .005 to .06, with joint weights within .012. The losses themselves are not averaged,
which would hide part of what differs between runs: r² then came out too high by .007 to .04.
"""

from typing import Literal, NamedTuple

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from analyses.reporting.text import labels

Match = Literal["step", "loss"]


class Along(NamedTuple):
    """The places at which runs are compared.

    Attributes
    ----------
    place : DataArray (place), the dimension `step` or `loss_level` with its labels.
    step : int (place, side, run), index of the observations on either side; one side at a step.
    weight : (place, side, run), their weights, summing to 1 over `side`; NaN where a run has none.
    """

    place: xr.DataArray
    step: NDArray[np.intp]
    weight: NDArray[np.float64]

    @property
    def dim(self) -> str:
        return str(self.place.dims[0])

    def joint_weight(
        self, place: int, first: NDArray[np.intp], second: NDArray[np.intp]
    ) -> NDArray[np.float64]:
        """Weights of the sides of two runs taken together, (side, side, pair).

        Parameters
        ----------
        place : index into `place`.
        first, second : (pair), the two runs of each pair.
        """
        of_first, of_second = self.weight[place][:, first], self.weight[place][:, second]
        if len(of_first) == 1:
            return (of_first * of_second)[None]
        same = np.minimum(of_first, of_second)
        return np.stack([[same[0], of_first[0] - same[0]], [of_first[1] - same[1], same[1]]])


def along(loss_mean: xr.DataArray, match: Match, *, n_levels: int = 16) -> Along:
    """Equal steps, or mean losses that all runs passed.

    Parameters
    ----------
    loss_mean : DataArray (run, step), nats; NaN where a run was not observed.
    match : "step" for every step of `loss_mean`, "loss" for `n_levels` evenly spaced mean losses
        from the highest to the lowest that all runs reached.

    Raises
    ------
    ValueError
        If `match` is "loss" and the runs have no mean loss in common.
    """
    losses = loss_mean.transpose("run", "step").values
    if match == "step":
        index = np.tile(np.arange(losses.shape[1])[:, None, None], (1, 1, len(losses)))
        return Along(loss_mean["step"], index, np.ones(index.shape))
    levels = _common_levels(loss_mean, n_levels)
    sides = [_sides(of_run, levels) for of_run in losses]
    place = xr.DataArray(
        levels, dims="loss_level", coords={"loss_level": levels}, attrs=labels("mean loss", "nat")
    )
    place["loss_level"].attrs.update(place.attrs)
    step, weight = (np.stack(of_runs, axis=-1) for of_runs in zip(*sides, strict=True))
    return Along(place["loss_level"], step, weight)


def _common_levels(loss_mean: xr.DataArray, n_levels: int) -> NDArray[np.float64]:
    """Levels inside what every run passed, from the highest to the lowest."""
    observed = loss_mean.dropna("run", how="all")
    first, lowest = observed.max("step"), observed.min("step")
    high, low = float(first.min()), float(lowest.max())
    if not high > low:
        slow, fast = lowest.idxmax("run").item(), first.idxmin("run").item()
        raise ValueError(
            f"the runs have no mean loss in common: {slow} never gets below {low:.3f} nats and "
            f"{fast} never stands above {high:.3f}; compare at equal steps (--match step), or "
            "leave one of them out"
        )
    # both ends are passed by all runs, but for rounding
    margin = 1e-6 * (high - low)
    return np.linspace(high - margin, low + margin, n_levels)


def _sides(
    losses: NDArray[np.float64], levels: NDArray[np.float64]
) -> tuple[NDArray[np.intp], NDArray[np.float64]]:
    """Observations around the first fall below each level, (level, side), and their weights."""
    seen = np.flatnonzero(np.isfinite(losses))
    if len(seen) < 2:
        return np.zeros((len(levels), 2), dtype=np.intp), np.full((len(levels), 2), np.nan)
    above = losses[seen] > levels[:, None]
    start = (above[:, :-1] & ~above[:, 1:]).argmax(axis=1)
    sides = np.stack([seen[start], seen[start + 1]], axis=-1)
    before, after = losses[sides].T
    of_before = (levels - after) / (before - after)
    return sides, np.stack([of_before, 1 - of_before], axis=-1)
