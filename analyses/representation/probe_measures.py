"""From hits of probes to what is reported: accuracy, selectivity, and arms compared."""

from itertools import product
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from analyses.comparison.arm_means import arm_means
from analyses.comparison.summary import PLAIN, Scale
from analyses.reporting.text import labels
from analyses.representation.probing import COUNTED
from analyses.statistics.resampling import jackknife
from analyses.statistics.runs import jackknife_runs

_SHARE = Scale(np.asarray, lambda ci: np.clip(ci, 0.0, 1.0))
MEASURES: dict[str, tuple[str, Scale]] = {
    "accuracy": ("accuracy of the probe", _SHARE),
    "control": ("accuracy on the control task", _SHARE),
    "lookup": ("accuracy of a lookup by token id", _SHARE),
    "majority": ("accuracy of the commonest class", _SHARE),
    "selectivity": ("selectivity", PLAIN),
    "beyond_lookup": ("accuracy beyond the lookup by token id", PLAIN),
}
DIFFERENCES = {"selectivity": ("accuracy", "control"), "beyond_lookup": ("accuracy", "lookup")}


def measures(counted: xr.Dataset, runs: xr.Dataset, *, level: float = 0.95) -> xr.Dataset:
    """Every measure of `MEASURES`, by run and by arm, averaged over representations, and compared.

    Parameters
    ----------
    counted : of `hits`.
    runs : coordinates on `run`, with `arm`.

    Returns
    -------
    Dataset
        That of `comparison.arm_means` for each measure x (step, layer, site, target), and for
        `x_mean` (step, target), its mean over layers and sites; of accuracy and selectivity also
        `x_difference (each_arm, target)` of `against_first`.
    """
    of = {name: counted["hits"].sel(count=name, drop=True) for name in COUNTED}
    of |= {name: of[a] - of[b] for name, (a, b) in DIFFERENCES.items()}
    parts = []
    for name, (long_name, scale) in MEASURES.items():
        named: dict[str, Any] = {"scale": scale, "long_name": long_name, "level": level}
        mean = of[name].mean(("layer", "site"))
        for stem, values in ((name, of[name]), (f"{name}_mean", mean)):
            parts.append(arm_means(stem, *_shares(values, counted["n_tokens"]), runs, **named))
        if name in ("accuracy", "selectivity"):
            last = mean.isel(step=-1, drop=True)
            parts.append(against_first(name, last, counted["n_tokens"], runs, level=level))
    return xr.merge(parts, compat="equals", join="exact")


def _shares(hits: xr.DataArray, n_tokens: xr.DataArray) -> tuple[xr.DataArray, xr.DataArray]:
    """Share of tokens, over all units (...), and without each (unit, ...); NaN stays NaN."""
    total, count = hits.sum("unit", skipna=False, dtype=np.float64), n_tokens.sum("unit")
    return total / count, (total - hits) / (count - n_tokens)


def against_first(
    name: str, numerator: xr.DataArray, n_tokens: xr.DataArray, runs: xr.Dataset, *, level: float
) -> xr.Dataset:
    """Each arm less the first arm that has the target, on the same tokens, with both intervals.

    Parameters
    ----------
    numerator : DataArray (unit, run, target), a sum over tokens of each unit.
    n_tokens : DataArray (unit, target)

    Returns
    -------
    Dataset
        `x_difference (each_arm, target)` with `x_difference_ci` over units of text and
        `x_difference_run_ci` over runs of both arms, NaN for the first arm itself; and
        `first_arm (target)`.
    """
    share, deleted = _shares(numerator, n_tokens)
    value = share.transpose("run", "target").values
    without = deleted.transpose("unit", "run", "target").values
    arm = runs["arm"].values.astype(str)
    arms = list(dict.fromkeys(arm))
    known = [[a for a in arms if np.isfinite(of_target[arm == a]).all()] for of_target in value.T]
    first = [having[0] if having else "" for having in known]
    found = np.full((len(arms), len(first)), np.nan)
    ci, run_ci = np.full((2, *found.shape, 2), np.nan)
    for (i, own), (t, base) in product(enumerate(arms), enumerate(first)):
        if own != base and own in known[t]:
            of_both = [np.flatnonzero(arm == a) for a in (own, base)]
            found[i, t], ci[i, t], run_ci[i, t] = _difference(
                value[:, t], without[:, :, t], *of_both, level=level
            )
    dims, title = ("each_arm", "target"), f"{name}, less that of the first arm"
    over = f"{title}, interval over"
    return xr.Dataset(
        {
            f"{name}_difference": (dims, found, labels(title)),
            f"{name}_difference_ci": ((*dims, "ci_bound"), ci, labels(f"{over} units of text")),
            f"{name}_difference_run_ci": ((*dims, "ci_bound"), run_ci, labels(f"{over} runs")),
            "first_arm": ("target", first),
        },
        {"each_arm": arms, "target": numerator["target"].values, "ci_bound": ["lower", "upper"]},
    )


def _difference(
    value: NDArray[np.float64],
    without: NDArray[np.float64],
    own: NDArray[np.intp],
    base: NDArray[np.intp],
    *,
    level: float,
) -> tuple[float, NDArray[np.float64], NDArray[np.float64]]:
    """Mean over some runs less that over others, its interval over units, and over runs.

    Parameters
    ----------
    value : (run)
    without : (unit, run), the same without each unit.
    own, base : runs of either arm.
    """
    estimate = value[own].mean() - value[base].mean()
    draws = without[:, own].mean(axis=1) - without[:, base].mean(axis=1)
    over_runs = np.full(2, np.nan)
    if min(len(own), len(base)) > 1:
        left = [value[own[own != run]].mean() - value[base[base != run]].mean()
                for run in (*own, *base)]  # fmt: skip
        of_arm = np.repeat([0, 1], [len(own), len(base)])
        over_runs = jackknife_runs(estimate, np.array(left), of_arm, level=level).ci
    return float(estimate), jackknife(estimate, draws, level=level).ci, over_runs
