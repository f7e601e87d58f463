"""From single runs to arms: the mean over the runs of each arm, with the two intervals.

Over units of text: what other text would have given with these trained models. Over runs: what
other seeds of the arm would have given on this text. They are never pooled.
"""

from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from analyses.comparison.summary import PLAIN, Scale
from analyses.reporting.text import labels
from analyses.statistics.resampling import jackknife
from analyses.statistics.runs import jackknife_runs


def arm_means(
    name: str,
    estimate: xr.DataArray,
    deleted: xr.DataArray,
    runs: xr.Dataset,
    *,
    scale: Scale,
    long_name: str,
    units: str = "1",
    level: float = 0.95,
) -> xr.Dataset:
    """A measure of single runs, by run and by arm.

    Parameters
    ----------
    name : of the measure, x below.
    estimate : DataArray (run, ...), on the scale that `scale` reports from.
    deleted : DataArray (unit, run, ...), without each unit of text.
    runs : coordinates on `run`, in the order of `estimate`.

    Returns
    -------
    Dataset
        `run_x (run, ...)` and `run_x_ci (run, ..., ci_bound)` over units of text; `arm_x (each_arm,
        ...)`, its mean over the runs of an arm, with `arm_x_ci` over units and `arm_x_run_ci` over
        runs, NaN for an arm of one run; and `arm_n_runs (each_arm)`.
    """
    rest = [str(dim) for dim in estimate.dims if dim != "run"]
    values = estimate.transpose("run", *rest).values
    draws = deleted.transpose("unit", "run", *rest).values
    arm = runs["arm"].values.astype(str)
    arms = list(dict.fromkeys(arm))
    mean = np.stack([values[arm == a].mean(axis=0) for a in arms])
    without = np.stack([draws[:, arm == a].mean(axis=1) for a in arms], axis=1)
    over_runs = np.stack([_over_runs(values[arm == a], level=level) for a in arms])
    over_text = {
        "run": (values, jackknife(values, draws, level=level).ci),
        "arm": (mean, jackknife(mean, without, level=level).ci),
    }
    result = xr.Dataset(
        {"arm_n_runs": ("each_arm", [int((arm == a).sum()) for a in arms], labels("runs"))},
        {n: c for n, c in estimate.coords.items() if "run" not in c.dims}
        | {"each_arm": arms, "ci_bound": ["lower", "upper"]},
    )
    title = f"{long_name}, interval over"
    for group, dims in (("run", ("run", *rest)), ("arm", ("each_arm", *rest))):
        value, ci = over_text[group]
        result[f"{group}_{name}"] = dims, scale.value(value), labels(long_name, units)
        result[f"{group}_{name}_ci"] = (
            (*dims, "ci_bound"), scale.interval(ci), labels(f"{title} units of text", units),
        )  # fmt: skip
    result[f"arm_{name}_run_ci"] = (
        ("each_arm", *rest, "ci_bound"), scale.interval(over_runs), labels(f"{title} runs", units),
    )  # fmt: skip
    return result


def arm_ratios(
    name: str,
    numerator: xr.DataArray,
    denominator: xr.DataArray,
    runs: xr.Dataset,
    *,
    scale: Scale = PLAIN,
    **options: Any,
) -> xr.Dataset:
    """`arm_means` of a mean over tokens: a sum over units of text, over how many tokens it is of.

    Parameters
    ----------
    numerator : DataArray (unit, run, ...), sum of a quantity over tokens of each unit.
    denominator : DataArray (unit, ...), with some of the dimensions of `numerator`.
    scale, options : as for `arm_means`.

    Returns
    -------
    Dataset
        That of `arm_means`; NaN where no token is counted, with or without a unit.
    """
    total, count = numerator.sum("unit"), denominator.sum("unit")
    with np.errstate(invalid="ignore", divide="ignore"):
        estimate, deleted = total / count, (total - numerator) / (count - denominator)
    return arm_means(name, estimate, deleted, runs, scale=scale, **options)


def _over_runs(values: NDArray[np.float64], *, level: float) -> NDArray[np.float64]:
    """Interval of the mean over the runs of one arm, (..., ci_bound), from (run, ...)."""
    n = len(values)
    if n < 2:
        return np.full((*values.shape[1:], 2), np.nan)
    without = (values.sum(axis=0) - values) / (n - 1)
    return jackknife_runs(values.mean(axis=0), without, np.zeros(n, dtype=int), level=level).ci
