"""The order in which runs learn tokens: how alike it is, if arms have their own, and what tells it.

Ages of a run are ranked once and the ranks treated as data: the error of Spearman's correlation
comes out within 1.5% of what ranking again for every resample gives, at the cost of sums.
"""

from functools import partial
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from analyses.comparison.arm_means import arm_means
from analyses.comparison.contrasts import arm_contrasts
from analyses.comparison.summary import PLAIN, R, summarize
from analyses.reporting.text import labels
from analyses.statistics.correlation import (
    average_ranks,
    document_moments,
    fisher_z,
    partial_r,
    pearson_r,
)
from analyses.statistics.pairs import pair_indices
from analyses.statistics.permutation import adjusted_p, label_test
from analyses.statistics.resampling import leave_one_out
from analyses.statistics.runs import log_r_contrast

FEWEST_TOKENS = 10
CONTROLS = ("nothing", "token statistics")


def predictors(probe_set: xr.Dataset) -> dict[str, NDArray]:
    """What may tell how early a token is learned, by name, (token); what is not known is left out.

    Parameters
    ----------
    probe_set : as for `learning_order`.
    """
    target = probe_set["target"].transpose("sequence", "pos").values
    found: dict[str, NDArray] = {}
    if "ngram_surprisal" in probe_set:
        surprisal = probe_set["ngram_surprisal"].transpose("order", "sequence", "pos")
        for order, values in zip(surprisal["order"].values, surprisal.values, strict=True):
            found[f"{order}-gram surprisal"] = values.ravel()
    if "token_frequency" in probe_set:
        found["token frequency"] = probe_set["token_frequency"].values[target].ravel()
    found["position"] = np.tile(np.arange(target.shape[1]), len(target))
    return found


def order_similarity(
    age: NDArray[np.float64],
    token_unit: NDArray[np.intp],
    probe_set: xr.Dataset,
    runs: xr.Dataset,
    *,
    n_resamples: int,
    level: float,
    rng: np.random.Generator,
) -> xr.Dataset:
    """Spearman's correlation of ages between runs, and with what may tell them.

    Parameters
    ----------
    age : (run, token), NaN where not learned.
    token_unit : (token), integer labels from 0, tokens in reading order.
    probe_set : as for `learning_order`.
    runs : coordinates on `run`, sorted by `sorted_by_arm`.
    n_resamples : the most relabellings of runs that a test tries.
    level : coverage of the intervals.
    rng : draws relabellings where there are more.

    Returns
    -------
    Dataset
        Along `control` ("nothing", or "token statistics": the ranks of all `predictors` and their
        squares held fixed): what `summarize` makes of the correlation `rho`, and `arm_contrasts`
        and `contrast_tests` of it. What `arm_means` makes of `predictor_rho (run, predictor)`, and
        of `explained (run)`, the share of the variance of ranks that the predictors and their
        squares explain. `n_compared (unit)`, tokens that all runs learned and of which all
        statistics are known.

    Raises
    ------
    ValueError
        If all runs learned fewer than ten tokens, or those of a single unit.
    """
    named = predictors(probe_set)
    compared = compared_tokens(age, named)
    units, unit = np.unique(token_unit[compared], return_inverse=True)
    _require_tokens(age, compared, len(units), runs)
    n_runs, n = len(age), compared.sum()
    ranks = average_ranks(np.stack([*age, *named.values()])[:, compared]) / n - 0.5
    squares = ranks[n_runs:] ** 2
    of_units = document_moments(np.concatenate([ranks, squares]), unit)
    moments = np.zeros((int(token_unit.max()) + 1, *of_units.shape[1:]))
    moments[units] = of_units
    first, second = pair_indices(n_runs)

    def similarity(sums: NDArray[np.float64]) -> NDArray[np.float64]:
        end = 1 + n_runs
        r = [pearson_r(sums[..., :end, :end]), partial_r(sums, n_controls=2 * len(named))]
        return fisher_z(np.stack(r, axis=-3))[..., first, second]

    def with_predictors(sums: NDArray[np.float64]) -> NDArray[np.float64]:
        end = 1 + n_runs + len(named)
        return fisher_z(pearson_r(sums[..., :end, :end]))[..., :n_runs, n_runs:]

    def explained(sums: NDArray[np.float64]) -> NDArray[np.float64]:
        return _explained(sums, n_runs)

    total, deleted = moments.sum(axis=0), leave_one_out(moments)
    coords: dict[str, Any] = {"control": list(CONTROLS)}
    rho = xr.DataArray(similarity(total), dims=("control", "pair"), coords=coords)
    without = xr.DataArray(similarity(deleted), dims=("unit", "control", "pair"), coords=coords)
    of_runs: dict[str, Any] = {"predictor": list(named)}
    return xr.merge(
        [
            summarize(
                "rho", rho, without, runs,
                scale=R, long_name="Spearman correlation of ages", level=level,
            ),
            arm_contrasts(rho, without, runs, level=level),
            contrast_tests(rho, runs, n_resamples=n_resamples, rng=rng),
            arm_means(
                "predictor_rho",
                xr.DataArray(with_predictors(total), dims=("run", "predictor"), coords=of_runs),
                xr.DataArray(with_predictors(deleted), dims=("unit", "run", "predictor")),
                runs, scale=R, long_name="Spearman correlation with age", level=level,
            ),
            arm_means(
                "explained",
                xr.DataArray(explained(total), dims="run"),
                xr.DataArray(explained(deleted), dims=("unit", "run")),
                runs, scale=PLAIN, long_name="share of the variance of ranks", level=level,
            ),
            xr.Dataset({"n_compared": ("unit", np.bincount(token_unit, compared).astype(int),
                                       labels("tokens that all runs learned"))}),
        ],
        compat="equals",
        join="exact",
    )  # fmt: skip


def contrast_tests(
    z: xr.DataArray, runs: xr.Dataset, *, n_resamples: int, rng: np.random.Generator
) -> xr.Dataset:
    """Whether runs of two arms agree less than if arms had been handed out to them at random.

    Parameters
    ----------
    z : DataArray (control, pair), Fisher's z of a correlation.
    runs : coordinates on `run`, sorted by `sorted_by_arm`.
    n_resamples : the most relabellings that are tried.
    rng : draws them where there are more.

    Returns
    -------
    Dataset
        Of the contrasts of `arm_contrasts`, for delta below 0: `contrast_p (contrast, control)`,
        `contrast_smallest_p`, the smallest that so many runs allow, and both corrected for the
        number of contrasts, `contrast_holm_p` and `contrast_smallest_holm_p`.
    """
    n_runs, arm = runs.sizes["run"], runs["arm"].values.astype(str)
    r = np.ones((z.sizes["control"], n_runs, n_runs))
    first, second = pair_indices(n_runs)
    r[:, first, second] = r[:, second, first] = np.tanh(z.transpose("control", "pair").values)
    arms = [a for a in dict.fromkeys(arm) if (arm == a).sum() >= 2]
    both = [(a, b) for i, a in enumerate(arms) for b in arms[i + 1 :]]
    p = np.full((2, len(both), len(r)), np.nan)
    for i, pair in enumerate(both):
        members = np.flatnonzero(np.isin(arm, pair))
        is_second = (arm[members] == pair[1]).astype(int)
        for j, of_control in enumerate(r):
            test = label_test(
                partial(_delta, of_control[np.ix_(members, members)]), is_second,
                alternative="less", n_resamples=n_resamples, rng=rng,
            )  # fmt: skip
            p[:, i, j] = test.p, test.smallest_p
    holm = np.stack([[adjusted_p(q) for q in of_kind.T] for of_kind in p]).swapaxes(1, 2)
    title, dims = "permutation p of rho2 below 1", ("contrast", "control")
    return xr.Dataset(
        {
            "contrast_p": (dims, p[0], labels(title)),
            "contrast_smallest_p": (dims, p[1], labels("smallest p that the runs allow")),
            "contrast_holm_p": (dims, holm[0], labels(f"{title}, corrected by Holm")),
            "contrast_smallest_holm_p": (dims, holm[1], labels("smallest p, corrected by Holm")),
        }
    )


def _delta(r: NDArray[np.float64], arm: NDArray[np.intp]) -> float:
    return float(log_r_contrast(r, arm))


def _explained(sums: NDArray[np.float64], n_runs: int) -> NDArray[np.float64]:
    """R² of each run's row on all rows after the runs', from moments (..., 1 + m, 1 + m)."""
    mean = sums[..., 1:, :1] / sums[..., :1, :1]
    covariance = sums[..., 1:, 1:] / sums[..., :1, :1] - mean * np.swapaxes(mean, -1, -2)
    own = np.diagonal(covariance, axis1=-2, axis2=-1)[..., :n_runs]
    with_others = covariance[..., n_runs:, :n_runs]
    inverse = np.linalg.pinv(covariance[..., n_runs:, n_runs:], rcond=1e-10, hermitian=True)
    return (with_others * (inverse @ with_others)).sum(axis=-2) / own


def compared_tokens(age: NDArray[np.float64], named: dict[str, NDArray]) -> NDArray[np.bool_]:
    """Tokens that all runs learned and of which all statistics are known, (token)."""
    return np.asarray(np.isfinite([*age, *named.values()]).all(axis=0))


def _require_tokens(
    age: NDArray[np.float64], compared: NDArray[np.bool_], n_units: int, runs: xr.Dataset
) -> None:
    if compared.sum() >= FEWEST_TOKENS and n_units > 1:
        return
    n_learned = np.isfinite(age).sum(axis=1)
    least = str(runs["run"].values[n_learned.argmin()])
    raise ValueError(
        f"all runs learned {compared.sum()} of {len(compared):,} tokens, from {n_units} units of "
        f"text, too few to compare an order ({least} learned fewest, {n_learned.min():,}); wait "
        "until the runs got further, or leave out a run that did not learn"
    )
