"""When the runs of each arm learn: the share of tokens by step, and mean ages."""

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from analyses.comparison.arm_means import arm_ratios
from analyses.comparison.learning.age_order import compared_tokens, predictors
from analyses.comparison.summary import Scale
from analyses.statistics.documents import document_slices
from analyses.statistics.learning import log_step

_STEPS = Scale(lambda x: 2.0**x - 1, lambda x: 2.0**x - 1)
_N_BINS = 10


def ages_of_arms(
    age: NDArray[np.float64],
    token_unit: NDArray[np.intp],
    probe_set: xr.Dataset,
    runs: xr.Dataset,
    *,
    steps: NDArray,
    level: float,
) -> xr.Dataset:
    """When tokens are learned: how many by each step, and how early those of each surprisal.

    Parameters
    ----------
    age, token_unit, probe_set, runs : as for `order_similarity`.
    steps : steps of the curves.

    Returns
    -------
    Dataset
        What `arm_means` makes of `acquired (run, age_step)`, the share of all tokens acquired by a
        step; and, over tokens that all runs learned, of `mean_age (run)`, the step at the mean of
        log2(1 + step), and `age_by_surprisal (run, surprisal)`, the same in tenths of the tokens
        by unigram surprisal, named by their mean surprisal in nats, if that is known.
    """
    named = predictors(probe_set)
    compared = compared_tokens(age, named)
    filled = np.where(compared, age, 0.0)
    x = log_step(steps)
    edges = np.linspace(x[0], x[-1], 49)
    acquired = [_unit_sums(np.asarray(age <= edge), token_unit) for edge in edges]
    all_tokens = _unit_sums(np.ones(len(token_unit)), token_unit)
    parts = [
        arm_ratios(
            "acquired",
            xr.DataArray(np.stack(acquired, axis=-1), dims=("unit", "run", "age_step"),
                         coords={"age_step": 2**edges - 1}),
            xr.DataArray(all_tokens, dims="unit"),
            runs, long_name="share of tokens acquired", level=level,
        ),
        arm_ratios(
            "mean_age",
            xr.DataArray(_unit_sums(filled, token_unit), dims=("unit", "run")),
            xr.DataArray(_unit_sums(compared, token_unit), dims="unit"),
            runs, scale=_STEPS, long_name="mean age of acquisition (step)", level=level,
        ),
    ]  # fmt: skip
    surprisal = named.get("1-gram surprisal")
    if surprisal is not None:
        inner = np.quantile(surprisal[compared], np.linspace(0, 1, _N_BINS + 1)[1:-1])
        tenth = np.searchsorted(np.unique(inner), surprisal, side="right")
        bins = [compared & (tenth == i) for i in np.unique(tenth[compared])]
        coords = {"surprisal": [float(surprisal[of_bin].mean()) for of_bin in bins]}
        sums = [_unit_sums(np.where(of_bin, filled, 0.0), token_unit) for of_bin in bins]
        counts = [_unit_sums(of_bin, token_unit) for of_bin in bins]
        by_surprisal = arm_ratios(
            "age_by_surprisal",
            xr.DataArray(np.stack(sums, axis=-1), dims=("unit", "run", "surprisal"), coords=coords),
            xr.DataArray(np.stack(counts, axis=-1), dims=("unit", "surprisal")),
            runs, scale=_STEPS, long_name="mean age of acquisition (step)", level=level,
        )  # fmt: skip
        parts.append(by_surprisal)
    return xr.merge(parts, compat="equals", join="exact")


def _unit_sums(values: NDArray, unit: NDArray[np.intp]) -> NDArray[np.float64]:
    """Sums over the tokens of each unit, (unit, ...), of values (..., token)."""
    order, slices = document_slices(unit, n_tokens=values.shape[-1])
    if order is not None:
        values = values[..., order]
    return np.stack([values[..., tokens].sum(axis=-1, dtype=np.float64) for tokens in slices])
