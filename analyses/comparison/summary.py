"""From pairs of runs to kinds of pair and pairs of arms, with an interval over text and over runs.

The two intervals answer different questions and are never pooled. Over units of text: what other
text would have given with these trained models. Over runs: what other seeds would have given on
this text. The first has an estimate for every pair; the second needs enough runs to leave one out.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from analyses.comparison.runs import pair_coordinates
from analyses.reporting.text import labels
from analyses.statistics.correlation import r2_interval
from analyses.statistics.pairs import mean_by_label, pair_indices
from analyses.statistics.resampling import jackknife
from analyses.statistics.runs import jackknife_runs, mean_without_each_run


class Scale(NamedTuple):
    """How a measure is reported that is averaged on another scale, where errors are symmetric.

    Attributes
    ----------
    value : from that scale to the reported one, element by element.
    interval : the same for an interval, (..., ci_bound).
    """

    value: Callable[[NDArray], NDArray]
    interval: Callable[[NDArray], NDArray]


PLAIN = Scale(np.asarray, np.asarray)
LOG = Scale(np.exp, np.exp)
R = Scale(np.tanh, np.tanh)
R2 = Scale(lambda z: np.tanh(z) ** 2, r2_interval)


def log(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Natural logarithm, the inner scale of `LOG`; 0 is taken for the smallest number above it."""
    return np.log(np.maximum(values, np.finfo(np.float64).tiny))


def summarize(
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
    """A measure by pair, kind of pair and pair of arms: the mean over the pairs of each.

    Parameters
    ----------
    name : of the measure, x below.
    estimate : DataArray (..., pair), on the scale `scale` reports from.
    deleted : DataArray (unit, ..., pair), without each unit of text.
    runs : coordinates on `run`, sorted by `sorted_by_arm`.

    Returns
    -------
    Dataset
        For g in `pair`, `kind`, `arms`: `g_x (g, ...)`, `g_x_ci (g, ..., ci_bound)` over units of
        text, `g_n_pairs (g)`; for `kind` and `arms` also `g_x_run_ci` over runs, NaN where too few
        runs are left without one. On the inner scale, `g_x_inner (g, ...)` is the mean and
        `g_x_deleted (unit, g, ...)` the mean without each unit, from which any other interval or
        contrast can be made.
    """
    pairs = pair_coordinates(runs)
    rest = [str(dim) for dim in estimate.dims if dim != "pair"]
    values = estimate.transpose(*rest, "pair").values
    draws = deleted.transpose("unit", *rest, "pair").values
    coords = {k: c for k, c in deleted.coords.items() if "pair" not in c.dims} | dict(pairs.coords)
    result = xr.Dataset(coords={**coords, "ci_bound": ["lower", "upper"]})
    for group in ("pair", "kind", "arms"):
        label = pairs["pair" if group == "pair" else f"pair_{group}"].values
        names, mean, without = list(label), values, draws
        if group != "pair":
            names, mean = mean_by_label(values, label, axis=-1)
            _, without = mean_by_label(draws, label, axis=-1)
        over_text = jackknife(mean, without, level=level).ci
        result = result.assign_coords({group: names})
        dims = (*rest, group)
        result[f"{group}_{name}"] = (dims, scale.value(mean), labels(long_name, units))
        result[f"{group}_{name}_ci"] = (
            (*dims, "ci_bound"),
            scale.interval(over_text),
            labels(f"{long_name}, interval over units of text", units),
        )
        inner = labels(f"{long_name}, on the scale where it is averaged")
        result[f"{group}_{name}_inner"] = (dims, mean, inner)
        inner = labels(f"{long_name} without one unit, on the scale where it is averaged")
        result[f"{group}_{name}_deleted"] = (("unit", *dims), without, inner)
        n_pairs = [int((label == n).sum()) for n in names]
        result[f"{group}_n_pairs"] = (group, n_pairs, labels("pairs of runs"))
        if group != "pair":
            over_runs = _over_runs(values, label, names, group, runs, level=level)
            result[f"{group}_{name}_run_ci"] = (
                (*dims, "ci_bound"),
                scale.interval(over_runs),
                labels(f"{long_name}, interval over runs", units),
            )
    return result.transpose("unit", "pair", "kind", "arms", ..., "ci_bound")


def _over_runs(
    values: NDArray, label: NDArray, names: list[str], group: str, runs: xr.Dataset, *, level: float
) -> NDArray[np.float64]:
    """Interval of the mean over the pairs of each label when runs are left out, (..., g, bound).

    Runs of a kind are a sample of that architecture, runs of a pair of arms one of those arms.
    """
    first, second = pair_indices(runs.sizes["run"])
    stratum = runs["architecture" if group == "kind" else "arm"].values.astype(str)
    intervals = []
    for name in names:
        of_label = np.flatnonzero(label == name)
        taking_part = np.unique([first[of_label], second[of_label]])
        renumbered = np.searchsorted(taking_part, [first[of_label], second[of_label]])
        without = mean_without_each_run(values[..., of_label], *renumbered, n_runs=len(taking_part))
        mean = values[..., of_label].mean(axis=-1)
        intervals.append(jackknife_runs(mean, without, stratum[taking_part], level=level).ci)
    return np.stack(intervals, axis=-2)
