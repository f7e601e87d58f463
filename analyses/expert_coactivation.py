r"""Which experts are chosen together, more or less often than their loads make them?

Each token t chooses a set A_t of k of N experts, k > 1. All unordered pairs of a set count [1]_,
whatever their rank in it, and n_i is the number of tokens that chose expert i:

    C_ij = sum_t 1[i in A_t and j in A_t]        P(j|i) = C_ij / n_i

Rows of P sum to k - 1, and are (k - 1) / (N - 1) throughout if sets are drawn evenly. Busy experts
meet often for no other reason than that. The null is the most random way to draw k experts a token
that keeps the loads n_i / T, conditional Poisson sampling [2]_: the probability of a set is
proportional to the product of its experts' weights. It gives the share pi_ij of tokens that choose
both, and

    lift_ij = C_ij / (T pi_ij)

is 1 at chance. A second null keeps the loads within each unit of text, lift within =
C_ij / sum_u T_u pi_ij(u): two experts that both like a topic are no partners by it.

How far pairs are from the null, in one number for a layer, is the typical |lift - 1|: the root of
the mean over pairs of (lift - 1)², pairs weighted by T pi_ij. Noise alone would make it large, so
products of the excess C_ij - T pi_ij of two different units of text are averaged, as in a
U-statistic [3]_, in place of squares: on average, no partners give a mean square of 0. The
agreement of two steps is the cosine of their excesses, made of the same products: 1 if the same
pairs stand out by the same ratios, 0 if they have nothing in common.

Tokens of a text depend on each other. So z_ij is the excess over its jackknife error over units of
text [4]_, or, if that is larger, over the error of a binomial count with the overdispersion of all
pairs; its p is that of the largest |z| among all pairs of the layer [5]_. The jackknife error is
also computed with tokens shuffled among units: the ratio tells how much larger z would seem if
tokens were taken for independent.

Two intervals, never pooled. Over units of text (works, or documents): one unit is deleted at a
time. Over runs: one run of an arm is deleted at a time. Layers are averaged last.

    python -m analyses.expert_coactivation studies/quick

References
----------
.. [1] Muennighoff et al. (2024), OLMoE, arXiv:2409.02060 (expert co-activation).
.. [2] Chen, Dempster and Liu (1994), doi:10.1093/biomet/81.3.457 (sets of fixed size with given
   loads, of maximal entropy).
.. [3] Hoeffding (1948), doi:10.1214/aoms/1177730196 (U-statistics).
.. [4] Efron and Stein (1981), doi:10.1214/aos/1176345462 (the jackknife estimate of variance).
.. [5] Montiel Olea and Plagborg-Møller (2019), doi:10.1002/jae.2656 (the largest of many t).
"""

from collections.abc import Iterator, Sequence
from functools import partial

import numpy as np
import xarray as xr

from analyses.comparison.unanswerable import Unanswerable
from analyses.comparison.units import unit_labels
from analyses.comparison.walk import Progress
from analyses.reporting import cli
from analyses.reporting.coactivation_figures import plot_lifts, plot_spread
from analyses.reporting.coactivation_tables import shown_runs, tables
from analyses.reporting.cohort import bracketed, runs_sentence, works_sentence
from analyses.reporting.layer_panels import shown_layers
from analyses.reporting.report import Drawing, Report, definition_of
from analyses.reporting.text import interval, labels, listed, number
from analyses.routing.coactivation import coactivations, complete_steps
from analyses.routing.observed import observed_routing, router_notes
from analyses.statistics.coactivation import conditional_share
from store.study import Study


def expert_coactivation(
    expert_index: xr.DataArray,
    unit: xr.DataArray,
    *,
    n_experts: int,
    level: float = 0.95,
    n_resamples: int = 500,
    progress: Progress = iter,
    dask: str | None = None,
    rng: np.random.Generator,
) -> xr.Dataset:
    """Pairs of experts beside two nulls, over training.

    One layer of one run and step is read at a time.

    Parameters
    ----------
    expert_index : DataArray (run, step, layer, sequence, pos, top_k), with the coordinate `arm` on
        `run`; -1 where not observed. Steps that not all runs observed are left out.
    unit : DataArray (sequence), name of each sequence's unit of text (`unit_labels`).
    n_experts : N.
    level : coverage of the intervals.
    n_resamples : draws of the largest z by chance.
    progress : wraps the list of runs and layers, to show how far the work is.
    dask : None, "local", or the address of a scheduler.
    rng : draws the largest z, and shuffles tokens.

    Returns
    -------
    Dataset
        For each measure x of `routing.coactivation.MEASURES`: `x (run, layer, step)` with `x_ci
        (ci_bound)` over units; the mean over the runs of an arm, `arm_x (each_arm, layer, step)`,
        with `arm_x_ci` and `arm_x_run_ci` over runs; and the same averaged over layers,
        `arm_x_mean`. `noise`, `arm_noise` and `arm_noise_mean`: what noise alone would give.
        `pair_count`, `lift`, `lift_within`, their `_ci`, `z` and `z_within (run, layer, step,
        expert_pair)`; `expert_count (..., expert)`. At the last step `p`, `p_within (run, layer,
        expert_pair)`, `conditional (run, layer, expert, other_expert)`, P(j|i), and `error_ratio
        (run, layer)`. `even_chance`, (k - 1) / (N - 1); `skipped_step`. Attributes `level`,
        `top_k`, `n_resamples`.

    Raises
    ------
    Unanswerable
        If each token chooses one expert.
    ValueError
        With fewer than two units of text, without a step that all runs observed, or where a step is
        observed in part.
    """
    top_k, steps = expert_index.sizes["top_k"], expert_index["step"].values
    if top_k < 2:
        raise Unanswerable(
            "each token chooses one expert, so none are chosen together; train runs with more "
            "choices: python -m models.train quick --set name=top2 --set model.top_k=2"
        )
    common = complete_steps(expert_index)
    result = coactivations(
        expert_index.isel(step=common), unit, n_experts=n_experts, n_resamples=n_resamples,
        level=level, progress=progress, dask=dask, rng=rng,
    )  # fmt: skip
    last = result.isel(step=-1)
    share = conditional_share(last["pair_count"].values, last["expert_count"].values)
    result["conditional"] = ("run", "layer", "expert", "other_expert"), share, labels("P(j|i)")
    chance = (top_k - 1) / (n_experts - 1)
    result["even_chance"] = (), chance, labels("P(j|i) of even sets, (k - 1)/(N - 1)")
    result["skipped_step"] = "skipped", np.delete(steps, common), labels("steps left out")
    return result.assign_attrs(level=level, top_k=top_k, n_resamples=n_resamples)


def report(study: Study, options: cli.Options) -> Report:
    """The analysis of a study, with its tables, figures and caveats."""
    routing, probe_set = observed_routing(study), study.probe_set.load()
    result = expert_coactivation(
        routing["expert_index"],
        unit_labels(probe_set, options.unit),
        n_experts=routing.sizes["expert"],
        n_resamples=options.n_resamples,
        progress=partial(cli.track, description="runs and layers"),
        dask=options.dask,
        rng=np.random.default_rng(options.seed),
    )
    return Report(
        analysis="expert_coactivation",
        study=study.name,
        definition=definition_of(str(__doc__)),
        finding=_finding(result),
        tables=tuple(tables(result)),
        drawings=tuple(_drawings(result)),
        reading="A lift of 1.5 means that two experts share half as many tokens again as they "
        "would if sets were drawn at random with the same loads, 0.5 half as many. A pair that "
        "stands out above the diagonal and not below it goes with a topic: both experts are used "
        "in the same texts, not for the same tokens. Compare the typical |lift - 1| with 0, as "
        "noise is taken off; grey is what noise would show if it were not. Agreement with the last "
        "step is 1 there by definition; how early it rises tells when partners were found.",
        caveats=(*_caveats(result), *filter(None, [works_sentence(probe_set)])),
        result=result,
        command=options.command,
        provenance=options.provenance
        | {"draws of the largest z": f"{options.n_resamples}, seed {options.seed}"},
    )


_BY_ARM = ("", "_ci", "_run_ci")


def _drawings(result: xr.Dataset) -> Iterator[Drawing]:
    unit, runs = result["unit"].attrs["long_name"], shown_runs(result)
    layers = f"Shown are layers {listed(shown_layers(result))}."
    last = result.isel(step=-1)
    names = ["pair_count", "lift", "lift_within", "lift_ci", "lift_within_ci", "z", "z_within"]
    yield Drawing(
        name="lift",
        title=f"Lift of every pair of experts at step {int(last['step']):,}",
        caption="Percent of the tokens expected of a pair that chose both: above the diagonal "
        f"expected from the loads, below it from the loads within each {unit}. White is chance. "
        "Bold: beyond chance at .05 among all pairs of the layer. Experts stand beside their "
        f"partners, in an order of each panel. One run of each arm: {listed(runs)}. {layers}",
        figure=plot_lifts(result),
        data={
            "lift": last[[*names, "p", "p_within"]],
            "conditional": result[["conditional"]],
        },
    )
    names = ["spread", "spread_within", "agreement"]
    yield Drawing(
        name="spread",
        title="How far pairs are from chance, and when partners were found",
        caption="Means over the runs of an arm. Solid: typical |lift - 1| beyond the loads. "
        f"Dashed: beyond the loads within each {unit}. Grey: what noise alone would show if it "
        "were not taken off. Below: agreement of lifts with those at the last step; left out where "
        f"noise is all there is. Bands are intervals over {unit}s, dotted lines the ends of those "
        f"over runs. {layers}",
        figure=plot_spread(result),
        data={
            "spread": result[[f"arm_{n}{s}" for n in names for s in _BY_ARM] + ["arm_noise"]],
            "spread_by_run": result[[f"{n}{s}" for n in names for s in ("", "_ci")] + ["noise"]],
        },
    )


def _finding(result: xr.Dataset) -> str:
    unit, last, parts = result["unit"].attrs["long_name"], result.isel(step=-1), []
    for arm in result["each_arm"].values:
        of_arm = last.sel(each_arm=arm)
        spread, within = (
            f"{number(of_arm[f'arm_{name}_mean'])} "
            f"({interval(*of_arm[f'arm_{name}_mean_ci'].values)})"
            for name in ("spread", "spread_within")
        )
        parts.append(
            f"in {arm} runs the lift of a pair is typically {spread} away from 1, {within} with "
            f"the loads of each {unit} kept"
        )
    chosen = f"{result.attrs['top_k']} of {result.sizes['expert']} experts each"
    counted = f"{int(result['n_tokens'].sum()):,} tokens, {chosen}"
    return (
        f"At step {int(last['step']):,}, averaged over runs and layers, {'; '.join(parts)}, with "
        f"{bracketed(result, counted, over_runs=False)}. {runs_sentence(result['arm'].values)}"
    )


def _range(values: np.ndarray) -> str:
    if np.isnan(values).all():
        return number(np.nan)
    low, high = (number(end, digits=1) for end in (np.nanmin(values), np.nanmax(values)))
    return low if low == high else f"{low} to {high}, by run and layer"


def _caveats(result: xr.Dataset) -> Iterator[str]:
    unit = result["unit"].attrs["long_name"]
    yield from router_notes(
        result["router"].values.astype(str) if "router" in result.coords else (),
        hash_means="Each token id has one fixed set, so pairs of the sets of frequent ids stand "
        "out, at all steps alike: their lifts tell of the text and of no partnership.",
    )
    yield (
        f"Intervals over {unit}s hold for other text and these very checkpoints; intervals over "
        "runs hold for other seeds and this very text. Neither contains the other."
    )
    yield (
        f"Taking tokens for independent would make z larger by a factor of "
        f"{_range(result['error_ratio'].values)}; the draws keep each {unit} whole."
    )
    yield (
        "A lift does not tell why. Two experts whose rows of the router point the same way are "
        "chosen together, whatever they compute; and as one token id often has one set, a few "
        "frequent ids can make a pair. The loads of a work say nothing of topics that change "
        "within it."
    )
    yield (
        "Experts of a set exclude each other from its few places, so if some pairs are above 1 "
        "others must be below it: a lift below 1 need not mean that two experts avoid each other."
    )
    yield (
        "An agreement is a ratio whose denominator is small where lifts are close to chance; there "
        "it is uncertain, and limited to between -1 and 1 in figures and tables."
    )
    if result.sizes["skipped"]:
        yield (
            f"Steps {listed(f'{step:,}' for step in result['skipped_step'].values)} are left out, "
            "as not all runs observed them."
        )


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    uses = frozenset({"random", "unit", "dask"})
    return cli.run(cli.Analysis("expert_coactivation", str(__doc__), report, uses), argv)


if __name__ == "__main__":
    raise SystemExit(main())
