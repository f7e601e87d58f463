"""What arms share beyond single runs: contrasts between pairs of arms, corrected for seed noise.

If two models share nothing but how hard each token is, l_i = T + e_i with independent e_i, then
r_ij = a_i a_j with a_i the reliability of run i alone (Spearman 1904, doi:10.2307/1412159).
"""

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from analyses.reporting.text import labels
from analyses.statistics.pairs import KINDS, pair_indices
from analyses.statistics.resampling import Jackknife, jackknife
from analyses.statistics.runs import contrast_without_each_run, jackknife_runs, log_r_contrast


def arm_contrasts(
    z: xr.DataArray, deleted: xr.DataArray, runs: xr.Dataset, *, level: float = 0.95
) -> xr.Dataset:
    r"""Seed-corrected similarity of each two arms that have two runs or more.

    delta = mean log r between the arms - (mean log r within one + mean log r within the other)/2,
    and rho2 = exp(2 delta). What makes single runs noisy cancels: delta is 0 if the arms share no
    more within themselves than with each other, and below 0 if they do. rho2 may exceed 1.

    Parameters
    ----------
    z : DataArray (..., pair), Fisher's z of a correlation.
    deleted : DataArray (unit, ..., pair), the same without each unit of text.
    runs : coordinates on `run`, sorted by `sorted_by_arm`.

    Returns
    -------
    Dataset
        `delta (contrast, ...)` with `delta_ci`, `delta_run_ci`, the same of `rho2`, the draws
        `delta_deleted (unit, contrast, ...)`, and coordinates `contrast_a`, `contrast_b`, the arms.
        NaN where a correlation is not above 0. No contrast at all if fewer than two arms have two
        runs.
    """
    rest = [str(dim) for dim in z.dims if dim != "pair"]
    r = _matrix(np.tanh(z.transpose(*rest, "pair").values), runs.sizes["run"])
    r_deleted = _matrix(np.tanh(deleted.transpose("unit", *rest, "pair").values), runs.sizes["run"])
    arm = runs["arm"].values.astype(str)
    arms = [a for a in dict.fromkeys(arm) if (arm == a).sum() >= 2]
    both = [(a, b) for i, a in enumerate(arms) for b in arms[i + 1 :]]
    over_text, over_runs = [], []
    for a, b in both:
        members = np.flatnonzero((arm == a) | (arm == b))
        of_arm = (arm[members] == b).astype(int)
        own, own_deleted = (x[..., members[:, None], members] for x in (r, r_deleted))
        delta = log_r_contrast(own, of_arm)
        over_text.append(jackknife(delta, log_r_contrast(own_deleted, of_arm), level=level))
        without = contrast_without_each_run(own, of_arm)
        over_runs.append(jackknife_runs(delta, without, arm[members], level=level))
    return _contrast_dataset(both, rest, z, deleted, over_text, over_runs)


def _contrast_dataset(
    both: list[tuple[str, str]],
    rest: list[str],
    z: xr.DataArray,
    deleted: xr.DataArray,
    over_text: list[Jackknife],
    over_runs: list[Jackknife],
) -> xr.Dataset:
    shape = tuple(z.sizes[dim] for dim in rest)

    def stacked(parts: list[NDArray], tail: tuple[int, ...], *, axis: int = 0) -> NDArray:
        return np.stack(parts, axis=axis) if parts else np.empty(tail)

    n, n_units = len(both), deleted.sizes["unit"]
    delta = stacked([at.estimate for at in over_text], (n, *shape))
    ci = stacked([at.ci for at in over_text], (n, *shape, 2))
    run_ci = stacked([at.ci for at in over_runs], (n, *shape, 2))
    draws = stacked([at.deleted for at in over_text], (n_units, n, *shape), axis=1)
    dims, ci_dims = ("contrast", *rest), ("contrast", *rest, "ci_bound")
    title = "seed-corrected similarity rho2"
    coords = {k: c for k, c in deleted.coords.items() if "pair" not in c.dims}
    return xr.Dataset(
        {
            "delta": (dims, delta, labels("seed-corrected log ratio of r")),
            "delta_ci": (ci_dims, ci, labels("delta, interval over units of text")),
            "delta_run_ci": (ci_dims, run_ci, labels("delta, interval over runs")),
            "delta_deleted": (("unit", *dims), draws, labels("delta without one unit of text")),
            "rho2": (dims, np.exp(2 * delta), labels(title)),
            "rho2_ci": (ci_dims, np.exp(2 * ci), labels(f"{title}, interval over units of text")),
            "rho2_run_ci": (ci_dims, np.exp(2 * run_ci), labels(f"{title}, interval over runs")),
        },
        {
            **coords,
            "contrast": [f"{a} against {b}" for a, b in both],
            "contrast_a": ("contrast", np.array([a for a, _ in both], dtype=str)),
            "contrast_b": ("contrast", np.array([b for _, b in both], dtype=str)),
            "ci_bound": ["lower", "upper"],
        },
    )


def _matrix(of_pairs: NDArray[np.float64], n_runs: int) -> NDArray[np.float64]:
    """Values of the pairs as a symmetric matrix (..., run, run) with ones on the diagonal."""
    first, second = pair_indices(n_runs)
    matrix = np.ones((*of_pairs.shape[:-1], n_runs, n_runs))
    matrix[..., first, second] = of_pairs
    matrix[..., second, first] = of_pairs
    return matrix


def ceiling(result: xr.Dataset, name: str = "r2", *, level: float = 0.95) -> xr.Dataset:
    """r² that dense-MoE pairs would have if noise of single runs were all that differs: r_dd r_mm.

    Parameters
    ----------
    result : what `summarize` made of Fisher's z of a correlation called `name`.

    Returns
    -------
    Dataset
        `ceiling (...)` and `ceiling_ci (..., ci_bound)` over units of text; NaN where a
        correlation is not above 0. Empty unless all three kinds of pair are there.
    """
    if not set(KINDS) <= set(result["kind"].values):
        return xr.Dataset()

    def log_product(z: xr.DataArray) -> xr.DataArray:
        within = z.sel(kind=[KINDS[0], KINDS[2]], drop=True)
        # log tanh z, missing where z is not above 0
        return xr.ufuncs.log(xr.ufuncs.tanh(within.where(within > 0))).sum("kind", skipna=False)

    estimate = log_product(result[f"kind_{name}_inner"])
    without = log_product(result[f"kind_{name}_deleted"]).transpose("unit", *estimate.dims)
    ci = jackknife(estimate.values, without.values, level=level).ci
    title = "r² that noise of single runs alone would leave"
    return xr.Dataset(
        {
            "ceiling": (estimate.dims, np.exp(estimate.values), labels(title)),
            "ceiling_ci": (
                (*estimate.dims, "ci_bound"), np.exp(ci), labels(f"{title}, interval over units"),
            ),
        }
    )  # fmt: skip
