"""How alike the per-token losses of two models are, by measures made of sums over units of text."""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from analyses.comparison.controls import Controls
from analyses.comparison.summary import LOG, R2, R, Scale, log
from analyses.comparison.walk import Compared
from analyses.statistics.correlation import (
    average_ranks,
    document_moments,
    fisher_z,
    mean_squared_difference,
    partial_r,
    pearson_r,
)
from analyses.statistics.resampling import leave_one_out

MEASURES: dict[str, tuple[Scale, str, str]] = {
    "r2": (R2, "r² of per-token losses", "1"),
    "spearman": (R, "Spearman correlation of losses", "1"),
    "p_r2": (R2, "r² of probabilities exp(-loss)", "1"),
    "squared_difference": (LOG, "mean squared difference of losses", "nat²"),
    "partial_r2": (R2, "partial r² of losses", "1"),
}


def loss_similarity(
    values: NDArray, unit: NDArray[np.intp], *, controls: Controls | None
) -> dict[str, Compared]:
    """All measures of all pairs of models, on the scales that `MEASURES` reports from.

    Parameters
    ----------
    values : (model, token, ...) losses, nats.
    unit : (token)
    """
    finite = np.isfinite(values).all(axis=-1, keepdims=True)
    values = np.where(finite, values, np.nan)
    m, mean = len(values), values.mean(axis=-1, dtype=np.float64)
    fixed = [] if controls is None else [controls.columns]
    moments = document_moments(np.concatenate([values, *fixed]), unit)
    of_losses = moments[:, : 1 + m, : 1 + m]
    compared = {
        "r2": _jackknifed(of_losses, _z),
        "squared_difference": _jackknifed(
            of_losses, lambda sums: log(mean_squared_difference(sums, mean))
        ),
        "spearman": _jackknifed(document_moments(average_ranks(values), unit), _z),
        "p_r2": _jackknifed(document_moments(np.exp(-values, dtype=np.float64), unit), _z),
    }
    if controls is not None:
        sizes = [1 + m + n for n in controls.rungs.values()]

        def ladder(sums: NDArray[np.float64]) -> NDArray[np.float64]:
            r = [partial_r(sums[..., :s, :s], n_controls=s - 1 - m) for s in sizes]
            return fisher_z(np.stack(r, axis=-3))

        compared["partial_r2"] = _jackknifed(moments, ladder)
    return compared


def r2_of_losses(values: NDArray, unit: NDArray[np.intp]) -> dict[str, Compared]:
    """`r2` of `loss_similarity` alone, in a fraction of its time; arguments as there."""
    return {"r2": _jackknifed(document_moments(values, unit), _z)}


def _z(moments: NDArray[np.float64]) -> NDArray[np.float64]:
    return fisher_z(pearson_r(moments))


def _jackknifed(
    moments: NDArray[np.float64], statistic: Callable[[NDArray], NDArray[np.float64]]
) -> Compared:
    return Compared(statistic(moments.sum(axis=0)), statistic(leave_one_out(moments)))
