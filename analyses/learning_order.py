r"""Do models learn the tokens of a text in the same order, and what decides the order?

For each run and token of the probe set, the losses over training are smoothed on the axis
x = log2(1 + step) by a cubic smoothing spline of fixed penalty [3]_, and straight between the
observed steps. With l(x) that curve, x_T its end and chance c = ln V, the loss of a uniform guess
among V token ids, the age of acquisition is

    a = min {x : l(x) <= (c + l(x_T)) / 2}

the first time half-way from chance to the final loss [1]_, [2]_. Chance is the same for all runs
and tokens; the loss at step 0 is not, as each initialization favours some tokens by accident. A
token has an age only if it is learned: its final loss is at least 1 nat below chance, which makes
it e times as probable as a uniform guess. Where V is not known, c is the runs' mean loss at the
first step.

The similarity of two runs is Spearman's correlation [5]_ of their ages over the tokens that all
runs learned: each run's ages are ranked once, and the ranks are then treated as data. They are
correlated again with token statistics held fixed: the ranks of n-gram surprisal of each order, of
the token's frequency in the training text and of its position, and the squares of these ranks.
Between arms A and B the correlation is compared with that inside them,

    delta = mean log r_AB - (mean log r_AA + mean log r_BB) / 2,    rho2 = exp(2 delta)

1 if no arm has an order of its own, whatever the noise of single runs; below 1 if one has. Its p is
the share of ways to hand out the two arms to their runs that give as low a value, corrected for the
number of contrasts by Holm's method.

What was learned can be forgotten: the rise of the curve from its lowest value to its end, over
tokens that were at least 1 nat below chance at some time. Kinds of curves are found by k-means on
the shape of each token's curve, averaged over the runs of an arm, then centred and scaled; they are
a summary, and any cloud of curves has one. How far kinds fitted to either half of the text agree is
their adjusted Rand index [6]_.

Two intervals, never pooled. Over units of text (works, or documents): one unit is deleted at a
time, correlations on Fisher's z, with Student's t [4]_. Over runs: one run is deleted at a time.
Tokens never count as if they were independent.

    python -m analyses.learning_order studies/quick

References
----------
.. [1] Chang and Bergen (2022), doi:10.1162/tacl_a_00444 (age of acquisition).
.. [2] Chang, Tu and Bergen (2024), arXiv:2308.15419 (of tokens in context; there half-way to the
   lowest loss, and forgetting).
.. [3] Reinsch (1967), doi:10.1007/BF02162161 (the smoothing spline).
.. [4] Efron and Stein (1981), doi:10.1214/aos/1176345462 (the jackknife estimate of variance).
.. [5] Spearman (1904), doi:10.2307/1412159 (rank correlation, and correction for reliability).
.. [6] Hubert and Arabie (1985), doi:10.1007/BF01908075 (the adjusted Rand index).
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial

import numpy as np
import xarray as xr

from analyses.comparison.arm_means import arm_ratios
from analyses.comparison.learning.acquisition import MEASURES, Curves, common_steps, observe_curves
from analyses.comparison.learning.age_order import CONTROLS, order_similarity
from analyses.comparison.learning.arm_ages import ages_of_arms
from analyses.comparison.learning.curve_kinds import curve_kinds
from analyses.comparison.runs import run_coordinates, sorted_by_arm
from analyses.comparison.units import token_units, unit_labels
from analyses.comparison.walk import Progress, mean_loss
from analyses.reporting import cli
from analyses.reporting.cohort import (
    ENOUGH_SEEDS,
    bracketed,
    runs_sentence,
    stream_doubt,
    stream_sentence,
    works_sentence,
)
from analyses.reporting.learning_figures import (
    plot_ages,
    plot_kinds,
    plot_predictors,
    plot_similarity,
)
from analyses.reporting.learning_tables import tables
from analyses.reporting.pairs import estimates
from analyses.reporting.report import Drawing, Report, definition_of
from analyses.reporting.text import interval, labels, listed, number
from store.study import Study


def learning_order(
    loss: xr.DataArray,
    probe_set: xr.Dataset,
    unit: xr.DataArray,
    *,
    margin: float = 1.0,
    penalty: float = 0.03,
    n_clusters: int = 3,
    n_resamples: int = 500,
    level: float = 0.95,
    progress: Callable[[str], Progress] = lambda description: iter,
    rng: np.random.Generator,
) -> xr.Dataset:
    """Ages of acquisition of all runs, how alike their order is, and what goes with it.

    Losses are read step by step, then run by run; the curves of one run are held at a time.

    Parameters
    ----------
    loss : DataArray (run, step, sequence, pos), nats, with coordinates `arm` and `architecture`
        ("dense" or "moe") on `run`. Only steps that all runs observed, with finite losses, count.
    probe_set : Dataset with `target (sequence, pos)`, and if known `ngram_surprisal (order,
        sequence, pos)` and `token_frequency (d_vocab)`.
    unit : DataArray (sequence), name of each sequence's unit of text (`unit_labels`).
    margin : nats below chance from which a token counts as learned.
    penalty : of the smoothing spline on log2(1 + step). Of penalties from 0.003 to 0.3, 0.03
        predicted left-out steps best in the presets `quick` and `seeds`; it flattens bumps narrower
        than about half an octave.
    n_clusters : kinds of curves; none are sought in a text too small for them. Three was the finest
        division on which two halves of the text always agreed (adjusted Rand index 0.8 or more) in
        the presets `quick` and `seeds`; with four and five it fell to 0.4 in some splits.
    n_resamples : the most relabellings of runs that a permutation test tries.
    level : coverage of the intervals.
    progress : from a description to what wraps a list, to show how far the work is.
    rng : starts k-means, divides the text into halves and relabels runs.

    Returns
    -------
    Dataset
        `age (run, sequence, pos)` in log2(1 + step), NaN where not learned; for each measure x of
        `comparison.acquisition.MEASURES` what `arm_means` returns; and the variables of
        `order_similarity`, `ages_of_arms` and `curve_kinds` of `analyses.comparison`. Attributes
        `chance` (nats), `chance_is`, `margin`, `penalty`, `level`.

    Raises
    ------
    ValueError
        With fewer than two runs or two units, too few common steps, or too few tokens learned by
        all runs.
    """
    loss = sorted_by_arm(loss)
    runs = run_coordinates(loss)
    loss_mean = mean_loss(loss, progress=progress("mean losses"))
    steps = common_steps(loss_mean)
    chance, chance_is = _chance(probe_set, loss_mean.isel(step=steps))
    names, token_unit = token_units(unit, n_pos=loss.sizes["pos"])
    curves = observe_curves(
        loss.isel(step=steps), token_unit, chance=chance, margin=margin, penalty=penalty,
        n_points=17, progress=progress("learning curves"),
    )  # fmt: skip
    shape = loss.sizes["sequence"], loss.sizes["pos"]
    result = xr.Dataset(
        {
            "loss_mean": loss_mean,
            "age": (("run", "sequence", "pos"), curves.age.reshape(-1, *shape),
                    labels("age of acquisition, log2(1 + step)")),
        },
        {
            **runs.coords,
            "unit": ("unit", names, {"long_name": str(unit.attrs.get("unit", "unit"))}),
            "n_tokens": ("unit", np.bincount(token_unit), labels("tokens in the unit")),
            "common_step": loss_mean["step"].values[steps],
        },
        {"chance": chance, "chance_is": chance_is, "margin": margin, "penalty": penalty,
         "level": level},
    )  # fmt: skip
    parts = [
        _milestones(curves, runs, level=level),
        order_similarity(
            curves.age, token_unit, probe_set, runs, n_resamples=n_resamples, level=level, rng=rng
        ),
        ages_of_arms(
            curves.age, token_unit, probe_set, runs, steps=result["common_step"].values, level=level
        ),
        curve_kinds(
            curves.shape, token_unit, runs, steps=result["common_step"].values,
            n_pos=shape[1], n_clusters=n_clusters, level=level, rng=rng,
        ),
    ]  # fmt: skip
    for part in parts:
        result = result.merge(part, compat="equals", join="exact")
    return result


def _chance(probe_set: xr.Dataset, loss_mean: xr.DataArray) -> tuple[float, str]:
    """The loss of a model that knows nothing, and in words what it is."""
    if "d_vocab" in probe_set.sizes:
        n_ids = probe_set.sizes["d_vocab"]
        return float(np.log(n_ids)), f"ln {n_ids:,}, a uniform guess among {n_ids:,} token ids"
    first = loss_mean.isel(step=0)
    return float(first.mean()), (
        f"the runs' mean loss at step {int(first['step']):,}, as the probe set does not say how "
        "large the vocabulary is"
    )


def _milestones(curves: Curves, runs: xr.Dataset, *, level: float) -> xr.Dataset:
    """`arm_ratios` of each of `MEASURES`."""
    dims = ("unit", "run")
    return xr.merge(
        [
            arm_ratios(
                name, xr.DataArray(curves.sums[..., i], dims=dims),
                xr.DataArray(curves.counts[..., i], dims=dims),
                runs, long_name=long_name, units=units, level=level,
            )
            for i, (name, (long_name, units)) in enumerate(MEASURES.items())
        ],
        compat="equals",
        join="exact",
    )  # fmt: skip


def report(study: Study, options: cli.Options) -> Report:
    """The analysis of a study, with its tables, figures and caveats."""
    observed = [run.name for run in study.runs if len(run.committed)]
    loss, probe_set = study.dataset("losses")["loss"].sel(run=observed), study.probe_set.load()
    result = learning_order(
        loss,
        probe_set,
        unit_labels(probe_set, options.unit),
        n_resamples=options.n_resamples,
        progress=lambda description: partial(cli.track, description=description),
        rng=np.random.default_rng(options.seed),
    )
    hashes = study.dataset("training")["stream_hash"].sel(run=observed)
    same_stream, stream = stream_sentence(hashes)
    return Report(
        analysis="learning_order",
        study=study.name,
        definition=definition_of(str(__doc__)),
        finding=_finding(result) + stream_doubt(same_stream, stream),
        tables=tuple(tables(result, probe_set)),
        drawings=tuple(_drawings(result)),
        reading="Each pair of runs is one dot. Higher means that two models learn tokens in more "
        "nearly the same order. Any two models learn frequent tokens first, which puts the "
        "correlation well above 0; the right panel holds that fixed. In the column dense-MoE the "
        "dashed line is where the mean would lie if noise of single runs were all that differs: "
        "below it, dense and MoE models each have something of an order of their own.",
        caveats=(stream, *_caveats(result, same_stream), *_data_caveats(result, probe_set)),
        result=result,
        command=options.command,
        provenance=options.provenance | {"seed of k-means": str(options.seed)},
    )


def _drawings(result: xr.Dataset) -> Iterator[Drawing]:
    unit = result["unit"].attrs["long_name"]
    yield Drawing(
        name="order_similarity",
        title="How alike two runs order the tokens, by kind of pair",
        caption="A dot is a pair of runs, its halves in the colours of the two arms. The circle is "
        f"the mean of the kind, the thick bar its interval over {unit}s, the thin one over runs.",
        figure=plot_similarity(result),
        data={
            "order_by_pair": result[["pair_rho", "pair_rho_ci"]],
            "order_by_kind": result[["kind_rho", "kind_rho_ci", "kind_rho_run_ci"]],
        },
    )
    yield Drawing(
        name="ages",
        title="When tokens are learned",
        caption="Share of all tokens of the probe set that are acquired by a step, mean of the "
        f"runs of an arm; bands are intervals over {unit}s, dotted lines over runs, of arms with "
        f"{ENOUGH_SEEDS} runs or more. A line ends at the share that is learned at all. Step 0 is "
        "initialization; the axis is linear to 1, then logarithmic.",
        figure=plot_ages(result),
        data={"acquired": _arm_data(result, "acquired")},
    )
    names = [n for n in ("age_by_surprisal", "predictor_rho") if f"arm_{n}" in result]
    binned = "Left: mean age in tenths of the tokens by unigram surprisal. Right: " * (
        len(names) == 2
    )
    yield Drawing(
        name="predictors",
        title="What goes with the age of acquisition",
        caption=f"{binned}Spearman's correlation of age with token statistics. Bands and thick "
        f"bars are intervals over {unit}s, dotted lines and thin bars over runs, of arms with "
        f"{ENOUGH_SEEDS} runs or more. Tokens that all runs learned.",
        figure=plot_predictors(result),
        data={name: _arm_data(result, name) for name in names},
    )
    if "curve_mean" in result:
        yield Drawing(
            name="curve_kinds",
            title="Kinds of learning curves",
            caption="Mean smoothed loss of the tokens of each kind, a line an arm; dashed is "
            "chance. Kinds are clusters of the shape of curves averaged over the runs of an arm, "
            "in the order in which they fall.",
            figure=plot_kinds(result),
            data={
                "curve_kinds": result[["curve_mean"]],
                "curve_shares": result[["curve_share", "curve_share_ci"]],
            },
        )


def _arm_data(result: xr.Dataset, name: str) -> xr.Dataset:
    return result[[f"arm_{name}{suffix}" for suffix in ("", "_ci", "_run_ci")]]


def _finding(result: xr.Dataset) -> str:
    n_tokens, n_compared = int(result["n_tokens"].sum()), int(result["n_compared"].sum())
    compared = f"{n_compared:,} of {n_tokens:,} tokens"
    explained = 100 * result["arm_explained"].values
    return " ".join(
        [
            "Runs learn tokens in orders whose rank correlation is "
            f"{estimates(result.sel(control=CONTROLS[0]), 'rho')} pairs, with "
            f"{bracketed(result, compared)}.",
            f"Token statistics explain {number(explained.min(), digits=1)} to "
            f"{number(explained.max(), digits=1)}% of these orders.",
            *filter(None, [_own_order(result)]),
            runs_sentence(result["arm"].values),
        ]
    )


def _tested(result: xr.Dataset) -> xr.Dataset:
    """Contrasts of two arms, with either thing held fixed, that runs could be permuted for."""
    return result.stack(test=("contrast", "control")).dropna("test", subset=["contrast_p"])


def _own_order(result: xr.Dataset) -> str:
    """Whether two arms have orders of their own, by permutation of runs; "" if it is not known."""
    tested = _tested(result)
    if not tested.sizes["test"] or tested["contrast_smallest_holm_p"].min() > 0.05:
        return ""
    own = tested.isel(test=np.flatnonzero(tested["contrast_holm_p"] <= 0.05))
    if not own.sizes["test"]:
        return "No two arms are shown to have orders of their own."
    return (
        f"Two arms have orders of their own in {own.sizes['test']} of {tested.sizes['test']} "
        f"comparisons, most {_furthest(own)}."
    )


def _furthest(tested: xr.Dataset) -> str:
    """The two arms that differ most in their order, with the evidence."""
    at = tested.isel(test=int(tested["rho2"].values.argmin()))
    over_runs = at["rho2_run_ci"].values
    ci = f", over runs {interval(*over_runs)}" * bool(np.isfinite(over_runs).all())
    p, smallest = float(at["contrast_holm_p"]), float(at["contrast_smallest_holm_p"])
    bound = ", the smallest that so many runs allow" * (p <= smallest)
    return (
        f"{at['contrast'].item()} with {at['control'].item()} held fixed (rho2 "
        f"{number(at['rho2'])}{ci}; corrected p {p:.2g}{bound})"
    )


def _contrast_caveat(result: xr.Dataset) -> str:
    """What the contrasts of arms cannot tell."""
    tested = _tested(result)
    if not tested.sizes["test"]:
        return (
            "Whether an arm has an order of its own cannot be told: that takes two arms of two "
            "runs or more whose correlations are above 0."
        )
    smallest = float(tested["contrast_smallest_holm_p"].min())
    few = (
        "Whether arms have orders of their own cannot be told from so few runs: permuting them "
        f"gives a corrected p of {smallest:.2g} at best. "
    ) * (smallest > 0.05)
    return (
        f"{few}Furthest apart are {_furthest(tested)}. The contrasts are many, and their intervals "
        "hold one by one."
    )


def _caveats(result: xr.Dataset, same_stream: bool) -> Iterator[str]:
    steps, attrs = result["common_step"].values, result.attrs
    learned = 100 * result["run_learned"]
    yield (
        f"Chance is {number(attrs['chance'])} nats: {attrs['chance_is']}. A token counts as "
        f"learned if its final smoothed loss is {attrs['margin']:g} nat or more below. Runs "
        f"learned {float(learned.min()):.1f} to {float(learned.max()):.1f}% of the tokens; those "
        "that some run did not learn have no place in the order here."
    )
    yield (
        f"An age is relative to the token's own final loss at step {int(steps[-1]):,}. Where the "
        "loss still falls, longer training would give other ages, and a token may be half-way to "
        "a poor prediction early. Ages say when learning happens, not how good it is."
    )
    yield (
        f"Curves have {len(steps)} steps; between them, ages are interpolated on a curve smoothed "
        f"with penalty {attrs['penalty']:g}. Intervals hold for this smoothing and these steps."
    )
    if same_stream:
        yield (
            "All runs saw the same batches at the same steps, so what a batch teaches comes at one "
            "time for all. Part of the agreement may be due to that and not to the models."
        )
    yield (
        "Forgetting starts at the lowest point of a curve, which is lower than it should be by "
        "noise alone: with no forgetting at all the mean rise would still be above 0. Compare arms."
    )
    yield (
        "Token statistics are estimates (another n-gram model would give others), so the "
        "correlation with them held fixed is an upper bound of what models share beyond them."
    )
    yield _contrast_caveat(result)
    dense = np.unique(result["arm"].values[result["architecture"].values == "dense"])
    if len(dense) > 1:
        yield (
            f"The kind dense-dense mixes pairs that differ in seed with pairs that differ in size "
            f"({listed(dense)}), and the dashed line inherits that; the table by arms and rho2 "
            "keep them apart."
        )


def _data_caveats(result: xr.Dataset, probe_set: xr.Dataset) -> Iterator[str]:
    """What this study's data leave open."""
    if "curve_stability" in result:
        agreement = result["curve_stability"].values
        yield (
            f"k-means finds {result.sizes['curve_kind']} kinds in any cloud of curves, if asked "
            "for as many. Fitted to either half of the text, the kinds agree with an adjusted Rand "
            f"index of {number(np.mean(agreement), digits=2)} (least of {len(agreement)} splits "
            f"{number(np.min(agreement), digits=2)}; 1 is the same, 0 is chance). Read them as a "
            "summary of shapes, not as classes of tokens."
        )
    all_steps = result["step"].values
    if left_out := sorted(set(all_steps.tolist()) - set(result["common_step"].values.tolist())):
        missing = result["loss_mean"].isnull().sum("step")
        runs = result["run"].values[missing.values > 0]
        yield (
            f"{len(left_out)} of {len(all_steps)} steps are left out, which {listed(runs)} did not "
            "observe with finite losses."
        )
    lacking = [n for n in ("ngram_surprisal", "token_frequency") if n not in probe_set]
    if lacking:
        yield f"The probe set has no {listed(lacking)}, which are missing from token statistics."
    is_document = result["unit"].attrs["long_name"] == "document"
    if is_document and (works := works_sentence(probe_set)) is not None:
        yield f"{works} Use --unit work."


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    analysis = cli.Analysis(
        "learning_order", str(__doc__), report, uses=frozenset({"random", "unit"})
    )
    return cli.run(analysis, argv)


if __name__ == "__main__":
    raise SystemExit(main())
