"""What a page of `expert_importance` says in words."""

from collections.abc import Iterator

import numpy as np
import xarray as xr

from analyses.reporting.cohort import bracketed, runs_sentence
from analyses.reporting.importance_figures import PRIMARY
from analyses.reporting.text import interval, listed, number
from analyses.routing.observed import router_notes
from analyses.routing.prediction import METRICS


def best_metrics(at: xr.Dataset) -> dict[str, str]:
    """The metric with the largest |mean rho| of each arm that has one."""
    rho = at["arm_rho_mean"].sel(PRIMARY).transpose("each_arm", "metric").values
    return {
        str(arm): str(at["metric"].values[np.nanargmax(np.abs(of_arm))])
        for arm, of_arm in zip(at["each_arm"].values, rho, strict=True)
        if np.isfinite(of_arm).any()
    }


def finding(at: xr.Dataset) -> str:
    """The answer at one step, with intervals and n."""
    best = [_best_sentence(at, arm, metric) for arm, metric in best_metrics(at).items()]
    return (
        f"At step {int(at['step']):,}, how much an expert matters, by the loss without its output, "
        f"is predicted {'; '.join(best) or 'by no metric'}, with {bracketed(at)}. A correlation is "
        f"over {at.sizes['expert']} experts, in {at.sizes['layer']} layers of each run. "
        f"{runs_sentence(at['arm'].values)}"
    )


def _best_sentence(at: xr.Dataset, arm: str, metric: str) -> str:
    """What predicts best in an arm, and how well in runs that had no part in the choice."""
    of_arm = at.sel({"each_arm": arm, **PRIMARY})
    of = of_arm.sel(metric=metric)
    low, high = of["arm_rho_mean_ci"].values
    ends = [interval(*of[f"arm_rho_mean{s}"].values, digits=2) for s in ("_ci", "_run_ci")]
    rho = f"{number(of['arm_rho_mean'], digits=2)} ({'; '.join(ends)})"
    if not (low > 0 or high < 0):
        return f"by no metric in {arm} runs ({METRICS[metric]} has rho {rho})"
    text = f"best by {METRICS[metric]} in {arm} runs, rho {rho}"
    own = at.sel(run=at["arm"].values.astype(str) == arm)
    scores = own["held_out_rho"].values
    if np.isfinite(scores).all():
        over_runs = interval(*np.clip(of_arm["arm_held_out_rho_run_ci"].values, -1, 1), digits=2)
        left_out = number(scores.mean(), digits=2)
        same = int((own["held_out_metric"].values == metric).sum())
        text += f", and {left_out} ({over_runs} over runs) in a run left out, where {same} of "
        text += f"{len(scores)} choose it"
    return text


def caveats(result: xr.Dataset, at: xr.Dataset) -> Iterator[str]:
    """What the numbers do not say.

    Parameters
    ----------
    result : of all steps.
    at : the step shown.
    """
    unit, n = at["unit"].attrs["long_name"], at.sizes["expert"]
    yield from router_notes(
        result["router"].values.astype(str) if "router" in result.coords else (),
        hash_means="Its probability is 1 and its entropy 0 at every token, so neither can predict; "
        "vocabulary specialization is 1 less the load, so the two are one metric with opposite "
        "signs. It has no second choice: that replacement is missing.",
    )
    yield (
        f"A correlation over {n} experts is coarse: by chance alone its standard deviation is "
        f"{1 / np.sqrt(n - 1):.2f} in one layer of one run. Errors of the importances of single "
        f"experts bias it towards 0. Intervals over {unit}s are wide rather than narrow. An "
        "interval over two runs says little."
        if n > 1
        else "With one expert a layer there is nothing to correlate."
    )
    yield (
        f"Intervals over {unit}s hold for other text and these very checkpoints; intervals over "
        "runs hold for other seeds and this very text. Neither contains the other."
    )
    yield (
        "Knock-outs are one at a time: experts that can stand in for each other each seem "
        "unimportant. Zero, and less so the mean, puts later layers where training never was. The "
        "mean is over the tokens served, so an expert that serves few tokens is hardly changed by "
        "it. In the second choice the gates share the probability of the expert left out."
    )
    yield (
        "A domain with a single "
        f"{unit} cannot be chosen on one half and measured on the other: it is no expert's top "
        "domain, and has no interval."
    )
    yield (
        "Importance over all tokens is, but for the effect on other tokens, load times importance "
        "over the tokens served: that load predicts the former is partly arithmetic. Metrics and "
        "importance are measured on the same tokens."
    )
    if result.attrs["n_tokens"] < result.attrs["all_tokens"]:
        yield (
            f"Only {result.attrs['n_tokens']:,} of the {result.attrs['all_tokens']:,} tokens of "
            "the probe set were ablated."
        )
    missing = at["importance"].isel(replacement=0, tokens=0, expert=0, layer=0).isnull().values
    if lacking := at["run"].values[missing].tolist():
        yield (
            f"Not ablated at step {int(at['step']):,}, so that their arms have no value: "
            f"{listed(lacking)}."
        )
