r"""What settles which expert a token goes to: its id, its neighbour, its place, or the domain?

Token t of a layer chooses k of N experts; E is one of them at random. A label X of the tokens
(their id V, the previous id, character class, position, domain D of the text) tells, in nats,

    I(X; E) = H(E) - H(E | X)        I(D; E | V) = H(E | V) - H(E | V, D)

about the choice. The second is what the domain tells beyond the token ids: domains use different
words, so a router that looks at nothing but the token tells them apart too.

Information from finite text is above 0 by chance alone. In the null whole units of text (works, or
documents) change places: their domains, or their runs of choices laid along the text of another
unit; for the position, each unit's choices are moved along its own text by a turn of its own. Then

    share = (I - I_0) / (I_max - I_0),    p = (1 + #{null >= observed}) / (B + 1)

with I_0 the mean of B draws of the null [1]_ [2]_ and I_max = H(E) - ln k, or H(E | V) - ln k for
the domain given the token id: which of its k choices E is, a token does not tell. A share of 0 is
chance, 1 a label that settles every choice. For the token id the share is context independence: 1
if routing is a token lookup, and context does not matter.

The information itself lies between I - I_0, which takes away too much where a label settles a lot,
and the Miller-Madow correction [3]_, which takes away too little, as tokens of a unit are not
independent; the two stand as a bracket. For k = 1 the adjusted mutual information (AMI) [2]_
follows, whose chance is that of independent tokens.

Vocabulary specialization [4]_ is the share of an id's occurrences that went to its commonest
expert, max_i n_xi / n_x, averaged over ids, or over tokens. It lies between k/N and 1.

Does it matter which expert a token gets? Among tokens of one id, partial eta² and omega² [5]_ are
the share of the variance of the loss between those that went to different (first) experts; in the
null, tokens of one id exchange their choices.

Only ids that occur often enough are counted. Two intervals, never pooled. Over units of text: one
is deleted at a time, I_0 held fixed. Over runs: one run of an arm is deleted at a time. Layers are
averaged last.

    python -m analyses.expert_specialization studies/quick

References
----------
.. [1] Phipson and Smyth (2010), doi:10.2202/1544-6115.1585.
.. [2] Vinh, Epps and Bailey (2010), https://jmlr.org/papers/v11/vinh10a.html (adjusted mutual
   information).
.. [3] Paninski (2003), doi:10.1162/089976603321780272.
.. [4] Muennighoff et al. (2024), OLMoE, arXiv:2409.02060.
.. [5] Olejnik and Algina (2003), doi:10.1037/1082-989X.8.4.434.
"""

from collections.abc import Iterator, Sequence
from functools import partial

import numpy as np
import xarray as xr

from analyses.comparison.units import unit_labels
from analyses.comparison.walk import Progress
from analyses.reporting import cli
from analyses.reporting.cohort import bracketed, runs_sentence, works_sentence
from analyses.reporting.coloured_text import plot_text, shown_text
from analyses.reporting.layer_panels import shown_layers
from analyses.reporting.report import Drawing, Report, definition_of
from analyses.reporting.specialization_figures import plot_profile, plot_scores, plot_shares
from analyses.reporting.specialization_tables import tables
from analyses.reporting.text import interval, labels, listed, number
from analyses.routing.observed import observed_routing, router_notes
from analyses.routing.specialization import drawn, measured
from analyses.routing.specialization_summary import SCORES, described
from analyses.routing.text_labels import GIVEN, TOKEN, text_labels
from store.study import Study


def expert_specialization(
    expert_index: xr.DataArray,
    probe_set: xr.Dataset,
    unit: xr.DataArray,
    *,
    loss: xr.DataArray | None = None,
    min_count: int = 10,
    n_resamples: int = 500,
    level: float = 0.95,
    progress: Progress = iter,
    dask: str | None = None,
    rng: np.random.Generator,
) -> xr.Dataset:
    """What labels of tokens tell of the choices of every MoE run, layer and step, beside chance.

    One layer of one run and step is read at a time. All runs, layers and steps share the draws of
    a null; before a run's last step only a tenth of them is used, but at least 20.

    Parameters
    ----------
    expert_index : DataArray (run, step, layer, sequence, pos, top_k), with the coordinates `arm`
        and `n_experts` on `run`; where any choice is -1, that run, step and layer was not observed.
    probe_set : Dataset with `token (sequence, pos)` and `domain (sequence)`; without `vocabulary
        (d_vocab)`, the character class is left out.
    unit : DataArray (sequence), name of each sequence's unit of text (`unit_labels`).
    loss : DataArray (run, step, sequence, pos), nats; without, the tie to the loss is left out.
    min_count : occurrences that a token id needs to be counted.
    n_resamples : draws of each null.
    level : coverage of intervals and of the bands of the nulls.
    progress : wraps the list of runs and steps, to show how far the work is.
    dask : None, "local", or the address of a scheduler.
    rng : draws the nulls, and the halves of the text.

    Returns
    -------
    Dataset
        `information (run, step, layer, label)`, nats, with `_limit`, `_null (resample)`,
        `_null_mean`, `_null_band`, `_adjusted`, `_miller_madow` and `_deleted (unit)`; `share` of
        the same shape; `token_specialization` and `type_specialization (run, step, layer)`.
        `arm_x (each_arm, step, layer, ...)` for these last three, `arm_x_ci` over units and
        `arm_x_run_ci` over runs. At each run's last observed step `last_step (run)`: `load`,
        `domain_specialization (run, layer, expert, domain)`, `ami`, `top_token (run, layer, expert,
        rank)` with `top_share_chosen` and `top_share_held_out`, `first_choice`, `loss_eta2` and
        `loss_omega2`; and of arms, `arm_last_x (each_arm, place, ...)`, where `place` is a layer or
        "mean", with `arm_last_x_p`.

    Raises
    ------
    ValueError
        With fewer than two units of text, a unit of two domains, no id that occurs often enough, or
        without a resample.
    """
    text = text_labels(probe_set, unit, min_count=min_count)
    draws = drawn(text, n_resamples=n_resamples, rng=rng)
    n_experts = int(expert_index["n_experts"].max())
    arrays, last = measured(
        expert_index, loss, text, draws, n_experts=n_experts, progress=progress, dask=dask
    )
    result = described(arrays, expert_index, text, last, n_early=draws.n_early, level=level)
    top_k, at = expert_index.sizes["top_k"], text.of_tokens[TOKEN]
    n_of_domain = np.bincount(text.of_domain.label, minlength=len(text.domains))
    result["uniform_share"] = (), top_k / n_experts, labels("share if all experts were alike, k/N")
    result["n_of_domain"] = "domain", n_of_domain, labels("tokens of the domain")
    result["n_frequent_tokens"] = (), len(at.counted), labels("tokens of frequent ids")
    result["n_frequent_ids"] = (), at.n_labels, labels("frequent ids")
    return result.assign_attrs(min_count=min_count, top_k=top_k, n_early=draws.n_early)


def report(study: Study, options: cli.Options) -> Report:
    """The analysis of a study, with its tables, figures and caveats."""
    probe_set = study.probe_set.load()
    result = expert_specialization(
        observed_routing(study)["expert_index"],
        probe_set,
        unit_labels(probe_set, options.unit),
        loss=study.dataset("losses")["loss"],
        n_resamples=options.n_resamples,
        progress=partial(cli.track, description="runs and steps"),
        dask=options.dask,
        rng=np.random.default_rng(options.seed),
    )
    return Report(
        analysis="expert_specialization",
        study=study.name,
        definition=definition_of(str(__doc__)),
        finding=_finding(result),
        tables=tuple(tables(result, probe_set)),
        drawings=tuple(_drawings(result, probe_set)),
        reading="A share says how much of a router's choice a label settles, after what chance "
        "gives is taken away from both: a line inside the grey band is chance. Shares of two "
        "labels may overlap: the domain and the token id tell partly the same, so compare the "
        "domain with the domain given the token id. Vocabulary specialization of runs of uneven "
        "load is not comparable before its own chance, the dashed line, is taken away.",
        caveats=(*_caveats(result), *filter(None, [works_sentence(probe_set)])),
        result=result,
        command=options.command,
        provenance=options.provenance
        | {"draws of each null": f"{options.n_resamples}, seed {options.seed}"},
    )


def _drawings(result: xr.Dataset, probe_set: xr.Dataset) -> Iterator[Drawing]:
    unit, n_early = result["unit"].attrs["long_name"], result.attrs["n_early"]
    layers = f"Shown are layers {listed(shown_layers(result))}."
    intervals = ("", "_ci", "_run_ci")
    draws = f"{result.sizes['resample']} draws at the last step, {n_early} before"
    yield Drawing(
        name="shares",
        title="What settles the choice of expert, over training",
        caption="Share of the choice that each label settles beyond chance, mean over the runs of "
        f"an arm; the band is the interval over {unit}s. Grey is what permuted {unit}s give, of "
        f"the run whose null is widest ({draws}). {layers}",
        figure=plot_shares(result),
        data={"shares": result[[f"arm_share{s}" for s in intervals]],
              "information": result[["information", "information_limit", "information_null_mean",
                                     "information_null_band", "information_miller_madow",
                                     "share", "run_share_ci"]]},
    )  # fmt: skip
    yield Drawing(
        name="vocabulary_specialization",
        title="Vocabulary specialization over training",
        caption="How often an id goes to its commonest expert, averaged over tokens and, as by "
        f"OLMoE, over ids; mean over the runs of an arm, its band the interval over {unit}s. "
        f"Dashed: the mean of permuted {unit}s, which keeps the load; dotted: k/N. {layers}",
        figure=plot_scores(result),
        data={"vocabulary_specialization": result[
            [f"arm_{score}{s}" for score in SCORES for s in intervals]
            + [f"{score}{s}" for score in SCORES for s in ("", "_null_mean", "_null_band")]
        ]},
    )  # fmt: skip
    for i, (arm, of_arm) in enumerate(result.groupby("arm"), 1):
        yield Drawing(
            name=f"domain_profile_{i}",
            title=f"Domains that the experts take at the last step: {arm}",
            caption="Percent of a domain's tokens that chose the expert; in column all, of all "
            "tokens, which is k times the load. White is k/N, what every cell would be if experts "
            "ignored the text; a row of one colour is a busy or an idle expert, not a specialist. "
            "Experts are sorted by the domain they take most of, which makes a faint diagonal of "
            "noise too; their numbers mean nothing outside their run and layer.",
            figure=plot_profile(of_arm),
            data={f"domain_profile_{i}": of_arm[["domain_specialization"]]},
        )
    for i, (_, of_arm) in enumerate(result.groupby("arm"), 1):
        run = of_arm.isel(run=0)
        shown = shown_text(run, probe_set)
        yield Drawing(
            name=f"text_by_expert_{i}",
            title=f"Text by expert at the last step: {run['run'].item()}",
            caption="The beginnings of a few sequences of the probe set, every token on the colour "
            "of its first expert. Colours go to the experts that take most of what is shown, layer "
            "by layer; other experts are grey. ⏎ is a line break. An expert of one layer has "
            "nothing to do with that of the same colour in another.",
            figure=plot_text(shown),
            data={f"text_by_expert_{i}": shown},
        )


def _finding(result: xr.Dataset) -> str:
    parts, last = [], result.sel(place="mean")
    for arm in result["each_arm"].values:
        of_arm = last.sel(each_arm=arm)

        def share(label: str, of_arm: xr.Dataset = of_arm) -> str:
            at = of_arm.sel(label=label)
            ends = interval(*at["arm_last_share_ci"].values)
            return f"{number(at['arm_last_share'])} ({ends})"

        independence = float(of_arm["arm_last_share"].sel(label=TOKEN))
        if np.isclose(independence, 1.0, atol=1e-9):
            parts.append(
                f"{arm} routing is a perfect token lookup (context independence 1), and the domain "
                "has nothing left to tell"
            )
        else:
            parts.append(
                f"in {arm} runs the token id settles {share(TOKEN)} of the choice beyond chance, "
                f"and the domain {share(GIVEN)} of what the id leaves open"
            )
    n_tokens, n_domains = int(result["n_tokens"].sum()), result.sizes["domain"]
    counted = f"{n_tokens:,} tokens, {n_domains} domains"
    return (
        f"At the last step, averaged over layers and runs, {'; '.join(parts)}; with "
        f"{bracketed(result, counted, over_runs=False)}. {runs_sentence(result['arm'].values)}"
    )


def _caveats(result: xr.Dataset) -> Iterator[str]:
    unit = result["unit"].attrs["long_name"]
    yield from router_notes(
        result["router"].values.astype(str) if "router" in result.coords else (),
        hash_means="Its context independence and its vocabulary specialization are 1 by "
        "construction, and the domain, given the token id, tells nothing. What it tells of other "
        "labels is what token ids tell of them. It is the yardstick for a routing that is nothing "
        "but a token lookup.",
    )
    yield (
        f"Intervals over {unit}s hold for other text and these very checkpoints; intervals over "
        "runs hold for other seeds and this very text. Neither contains the other. Both hold the "
        "mean of the null fixed."
    )
    yield (
        f"Token ids are counted that occur at least {result.attrs['min_count']} times: "
        f"{int(result['n_frequent_ids']):,} ids, "
        f"{100 * float(result['n_frequent_tokens'] / result['n_tokens'].sum()):.0f}% of the "
        "tokens. "
        "Rarer ids would seem to settle the choice by being rare. A token that begins a sequence "
        "has no previous token and, as it may continue a word, no character class."
    )
    yield (
        "The domain given the token id rests on few tokens of each id in each domain. Its null has "
        "the same few tokens, so what is beyond chance is not inflated, but small effects are lost."
    )
    yield (
        f"Adjusted mutual information (AMI) takes tokens to be independent; permuted {unit}s do "
        "not. It is a share of the mean of H(X) and H(E), so it stays below 1 for a token lookup: "
        "an expert does not tell the id."
    )
    if "loss_omega2" in result:
        yield (
            "The p of the loss takes tokens of one id to be exchangeable, also within a "
            f"{unit}, and so may be too small; the interval over {unit}s does not. The loss is "
            "that of the prediction made at the token. A different loss at another expert need not "
            "be the expert's doing: the router may send hard contexts there."
        )
    if (small := int(result["n_of_domain"].min())) < 1000:
        yield f"The smallest domain has {small} tokens; its column of the profile is noisy."
    missing = result["information"].isel(label=0).isnull().any("layer").sum("step")
    for run, n in zip(result["run"].values, missing.values, strict=True):
        if n:
            yield f"{run} was not observed at {n} of {result.sizes['step']} steps."


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    uses = frozenset({"random", "unit", "dask"})
    return cli.run(cli.Analysis("expert_specialization", str(__doc__), report, uses), argv)


if __name__ == "__main__":
    raise SystemExit(main())
