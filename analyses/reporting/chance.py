"""A measure beside what chance alone would give: its numbers, its line in a figure, its p.

A result holds a measure `x`, its draws under a null `x_null (..., resample)`, and its values
without each document `x_deleted (..., document)`; all that is said of chance follows from these.
"""

from typing import TYPE_CHECKING

import numpy as np
import xarray as xr

from analyses.reporting import figures
from analyses.reporting.text import labels
from analyses.statistics.permutation import permutation_p
from analyses.statistics.resampling import jackknife

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def beyond_chance(result: xr.Dataset, name: str, *, level: float) -> xr.Dataset:
    """What a measure has beyond the mean of its null, with an interval over documents and p.

    Parameters
    ----------
    result : Dataset with `x (...)`, `x_null (..., resample)` and `x_deleted (..., document)`.
    name : x.
    level : coverage of the interval and of the band of the null.

    Returns
    -------
    Dataset
        `x_ci`, `x_null_mean`, `x_null_band`, `x_adjusted`, `x_adjusted_ci` and `x_p`; the mean of
        the null is held fixed in both intervals.
    """
    observed = result[name]
    null = result[f"{name}_null"].transpose("resample", ...).values
    deleted = result[f"{name}_deleted"].transpose("document", ...).values
    mean = null.mean(axis=0)
    tails = [(1 - level) / 2, (1 + level) / 2]
    band = np.moveaxis(np.quantile(null, tails, axis=0), 0, -1)
    ci = jackknife(observed.values, deleted, level=level).ci
    title, units = observed.attrs["long_name"], observed.attrs["units"]
    dims, interval = observed.dims, (*observed.dims, "ci_bound")
    p = permutation_p(observed.values, null)
    return xr.Dataset(
        {
            f"{name}_ci": (interval, ci, labels(f"interval of {title}", units)),
            f"{name}_null_mean": (dims, mean, labels(f"{title} by chance", units)),
            f"{name}_null_band": (interval, band, labels(f"{title} by chance", units)),
            f"{name}_adjusted": (
                dims,
                observed.values - mean,
                labels(f"{title} beyond chance", units),
            ),
            f"{name}_adjusted_ci": (
                interval,
                ci - mean[..., None],
                labels(f"interval of {title} beyond chance", units),
            ),
            f"{name}_p": (dims, p, labels(f"permutation p of {title}")),
        }
    )


def draw_line(ax: "Axes", run: xr.Dataset, name: str) -> None:
    """One run's measure over steps in its arm's colour, with interval, and null if it has one."""
    run = run.dropna("step", subset=[name])
    color = figures.arm_color(str(run["arm"].item()))
    if f"{name}_null_mean" in run:
        low, high = run[f"{name}_null_band"].transpose("ci_bound", "step")
        ax.fill_between(run["step"], low, high, color=figures.NULL, alpha=0.25, lw=0)
        ax.plot(run["step"], run[f"{name}_null_mean"], color=figures.NULL, lw=1, ls="--")
    low, high = run[f"{name}_ci"].transpose("ci_bound", "step")
    ax.fill_between(run["step"], low, high, color=color, alpha=0.18, lw=0)
    ax.plot(run["step"], run[name], color=color, lw=1.2, marker="o", markersize=2.6)
