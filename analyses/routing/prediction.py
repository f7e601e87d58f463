"""Which metric of experts predicts their importance, arm by arm: p, and the choice held out."""

import numpy as np
import xarray as xr

from analyses.reporting.text import labels
from analyses.statistics import importance
from analyses.statistics.permutation import permutation_p
from analyses.statistics.runs import jackknife_runs

METRICS = {
    "load": "load",
    "gate_mass": "gate mass",
    "gate": "probability where chosen",
    "token_entropy": "router entropy of its tokens",
    "token_loss": "loss of its tokens",
    "domain_specialization": "domain specialization",
    "vocabulary_specialization": "vocabulary specialization",
}


def held_out(result: xr.Dataset, *, level: float) -> xr.Dataset:
    """The metric that the other runs of an arm would choose, and how well it does in each run.

    By mean replacement over all tokens; the interval needs three runs, as it leaves one out again.
    """
    chosen = result["run_rho_mean"].sel(replacement="mean", tokens="all")
    rho = chosen.transpose("run", "step", "metric").values
    arm, n_steps = result["arm"].values.astype(str), result.sizes["step"]
    metric, score = np.full(rho.shape[:2], -1), np.full(rho.shape[:2], np.nan)
    ci = np.full((result.sizes["each_arm"], n_steps, 2), np.nan)
    for i, name in enumerate(result["each_arm"].values):
        own = np.flatnonzero(arm == name)
        for step in range(n_steps):
            of_arm = rho[own, step]
            metric[own, step], score[own, step] = importance.best_elsewhere(of_arm)
            if len(own) > 2:
                without = [
                    importance.best_elsewhere(np.delete(of_arm, run, axis=0))[1].mean()
                    for run in range(len(own))
                ]
                mean, stratum = score[own, step].mean(), np.zeros(len(own))
                ci[i, step] = jackknife_runs(mean, np.array(without), stratum, level=level).ci
    names = np.array([*METRICS, ""])[metric]
    return xr.Dataset(
        {
            "held_out_metric": (("run", "step"), names, labels("metric chosen by the other runs")),
            "held_out_rho": (("run", "step"), score, labels("its rho in the run left out")),
            "arm_held_out_rho_run_ci": (
                ("each_arm", "step", "ci_bound"), ci, labels("interval of the mean over runs"),
            ),
        }
    )  # fmt: skip


def by_permutation(
    result: xr.Dataset, *, n_resamples: int, rng: np.random.Generator
) -> xr.DataArray:
    """Two-sided p of each arm's mean rho over layers, when experts exchange importances."""
    dims = ("step", "metric", "replacement", "tokens")
    order = ("run", "layer", *dims, "expert")
    metric = result["metric_value"].broadcast_like(result["importance"]).transpose(*order)
    importances = result["importance"].broadcast_like(metric).transpose(*order)
    p = []
    for arm in result["each_arm"].values:
        own = result["arm"].values.astype(str) == arm
        x, y = metric.values[own], importances.values[own]
        observed = importance.spearman(x, y).mean(axis=(0, 1))
        null = importance.permuted_spearman(x, y, n_resamples=n_resamples, rng=rng)
        p.append(permutation_p(np.abs(observed), np.abs(null.mean(axis=(1, 2)))))
    return xr.DataArray(np.stack(p), dims=("each_arm", *dims), attrs=labels("permutation p"))
