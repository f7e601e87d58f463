"""Every two depths of one typical pair of runs of each kind, and every two steps of single runs."""

from collections.abc import Mapping
from functools import partial

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from analyses.comparison.walk import mapped
from analyses.reporting.text import labels
from analyses.representation.cka import (
    HEADLINE,
    PREPARED,
    Cohort,
    grams_of,
    representation,
    similarity,
)
from analyses.statistics.correlation import fisher_z
from analyses.statistics.minibatch_cka import Grams
from analyses.statistics.resampling import jackknife

Typical = Mapping[str, tuple[int, int]]
MOST_STEPS = 20


def typical_pairs(at: xr.Dataset, runs: xr.Dataset) -> dict[str, tuple[int, int]]:
    """For each kind of pair the pair whose CKA, averaged over depths, is nearest to the kind's.

    Parameters
    ----------
    at : the result at the last step.
    runs : coordinates on `run`.

    Returns
    -------
    dict
        From a kind to the two positions on `run`; without kinds that have no value.
    """
    first, second = np.triu_indices(runs.sizes["run"], k=1)
    found = {}
    for kind in at["kind"].values.astype(str):
        apart = np.abs(at["pair_cka_mean"].values - float(at["kind_cka_mean"].sel(kind=kind)))
        apart = np.where(at["pair_kind"].values == kind, apart, np.nan)
        if np.isfinite(apart).any():
            chosen = int(np.nanargmin(apart))
            found[kind] = int(first[chosen]), int(second[chosen])
    return found


def depth_by_depth(
    cohort: Cohort, last: list[list[Grams]], typical: Typical, *, level: float = 0.95
) -> xr.Dataset:
    """CKA of every depth of one run with every depth of the other.

    Parameters
    ----------
    last : Gram matrices of the last step, [depth][run].

    Returns
    -------
    Dataset
        `heat (kind, depth, other_depth)` with `heat_ci`, and `heat_a` and `heat_b (kind)`, the
        names of the two runs, whose depths are those of `depth` and of `other_depth`.
    """
    n, names = len(cohort.depths), np.array(list(cohort.activations))
    shape = len(typical), n, n
    value, ci = np.full(shape, np.nan), np.full((*shape, 2), np.nan)
    for i, (a, b) in enumerate(typical.values()):
        grams = [of_depth[run] for run in (a, b) for of_depth in last]
        compared = similarity(cohort, grams)
        z, without = (fisher_z(at[..., :n, n:]) for at in compared)
        value[i], ci[i] = np.tanh(z), np.tanh(jackknife(z, without, level=level).ci)
    dims = ("heat_kind", "depth", "other_depth")
    title = "CKA of every two depths"
    return xr.Dataset(
        {
            "heat": (dims, value, labels(title)),
            "heat_ci": ((*dims, "ci_bound"), ci, labels(f"{title}, interval over units of text")),
        },
        {
            "heat_kind": list(typical),
            "heat_a": ("heat_kind", [str(names[a]) for a, _ in typical.values()]),
            "heat_b": ("heat_kind", [str(names[b]) for _, b in typical.values()]),
            "ci_bound": ["lower", "upper"],
        },
    )


def step_by_step(
    cohort: Cohort,
    runs: xr.Dataset,
    step: xr.DataArray,
    *,
    most_bytes: int,
    level: float = 0.95,
    dask: str | None = None,
) -> xr.Dataset:
    """CKA of every two steps of one run at each depth, for the first run of each arm.

    Steps are all those recorded, or 20 as evenly spread among them as can be, or as many as have
    Gram matrices of `most_bytes` at one depth; first and last are always among them.

    Parameters
    ----------
    runs : coordinates on `run`, in the order of the cohort.
    step : (step), their numbers.

    Returns
    -------
    Dataset
        `within (within_run, depth, at_step, other_step)` with `within_ci` over units of text.
    """
    bytes_a_step = 4 * sum(len(batch) ** 2 for batch in cohort.batches)
    most = max(2, min(MOST_STEPS, most_bytes // bytes_a_step))
    shown = np.unique(np.linspace(0, step.size - 1, min(most, step.size)).round().astype(int))
    names, arms = runs["run"].values.astype(str), runs["arm"].values
    chosen = [str(names[arms == arm][0]) for arm in dict.fromkeys(arms)]
    found = list(mapped(partial(_within, cohort, shown, level), chosen, dask=dask))
    dims = ("within_run", "depth", "at_step", "other_step")
    title, steps = "CKA of every two steps", step.values[shown]
    return xr.Dataset(
        {
            "within": (dims, np.stack([value for value, _ in found]), labels(title)),
            "within_ci": ((*dims, "ci_bound"), np.stack([ci for _, ci in found]),
                          labels(f"{title}, interval over units of text")),
        },
        {"within_run": chosen, "at_step": steps, "other_step": steps,
         "ci_bound": ["lower", "upper"]},
    )  # fmt: skip


def _within(
    cohort: Cohort, shown: NDArray[np.intp], level: float, run: str
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(depth, step, step), and its interval (depth, step, step, ci_bound)."""
    values, intervals = [], []
    for depth in range(len(cohort.depths)):
        of_steps = (representation(cohort, run, int(at), depth) for at in shown)
        grams = [grams_of(cohort, x, PREPARED[HEADLINE]) for x in of_steps]
        z, without = map(fisher_z, similarity(cohort, grams))
        values.append(np.tanh(z))
        intervals.append(np.tanh(jackknife(z, without, level=level).ci))
    return np.stack(values), np.stack(intervals)
