r"""What does a token's expert in one layer tell of its expert in the next, beyond the token's id?

Token t chooses k of N experts in each MoE layer; E and E' are one of them in a layer and in the
next one, at random, so that all k x k pairs count 1/k². They are tied by

    T(i -> j) = P(E' = j | E = i)        I(E; E')        I(E; E' | V)

in nats, V the token's id. Both layers may only read the id: then the first information is large,
and nothing is left once the id is known. What is left given the id, the layers share of the
context, or one hands it on to the other. The difference, which may be below 0, goes with the id.

Information from finite text is above 0 by chance alone. In the null of I(E; E'), the earlier
layer's choices of a unit of text (a work, or document) are laid, whole, along the text of another
unit. In that of I(E; E' | V) they move through the occurrences of the same id, each id's in a
circle in which occurrences of a unit stand together [1]_, by a turn of its own [2]_. With I_0 the
mean of B draws,

    share = (I - I_0) / (I_max - I_0),        I_max = H(E') - ln k, or H(E' | V) - ln k

is 0 at chance and 1 if one layer settles the next [3]_; which of its k choices E' is, no other
layer can tell. For k = 1, I lies between I - I_0, which takes away too much where layers are tied,
and the Miller-Madow correction [4]_, which takes away too little.

At the last step transitions and paths are shown: the order of experts, and the commonest paths of
first choices through all MoE layers, are chosen on one half of the units and shown on the other,
beside what loads alone would give.

Only ids that occur often enough are counted in the information. Two intervals, never pooled. Over
units of text: one is deleted at a time, I_0 held fixed. Over runs: one run of an arm is deleted at
a time. Layers are averaged last.

    python -m analyses.expert_paths studies/quick

References
----------
.. [1] Berrett et al. (2020), doi:10.1111/rssb.12340 (permutations that keep a third variable).
.. [2] Harris (2021), arXiv:2012.06862 (shifting a series along itself as a null).
.. [3] Vinh, Epps and Bailey (2010), https://jmlr.org/papers/v11/vinh10a.html (adjusted mutual
   information).
.. [4] Paninski (2003), doi:10.1162/089976603321780272.
"""

from collections.abc import Iterator, Sequence
from functools import partial

import numpy as np
import xarray as xr

from analyses.comparison.unanswerable import Unanswerable
from analyses.comparison.units import unit_labels
from analyses.comparison.walk import Progress
from analyses.reporting import cli
from analyses.reporting.cohort import bracketed, runs_sentence, works_sentence
from analyses.reporting.paths_figures import plot_between, plot_ties, plot_transitions
from analyses.reporting.paths_tables import pair_names, tables
from analyses.reporting.report import Drawing, Report, definition_of
from analyses.reporting.text import interval, labels, listed, number
from analyses.routing.locality import common_steps
from analyses.routing.observed import observed_routing, router_notes
from analyses.routing.paths import KINDS, MEASURES, layer_ties
from store.study import Study


def expert_paths(
    expert_index: xr.DataArray,
    probe_set: xr.Dataset,
    unit: xr.DataArray,
    *,
    n_experts: int,
    min_count: int = 10,
    n_resamples: int = 500,
    level: float = 0.95,
    progress: Progress = iter,
    dask: str | None = None,
    rng: np.random.Generator,
) -> xr.Dataset:
    """Ties between the experts of consecutive MoE layers over training, and paths at the last step.

    Two layers of one run and step are read at a time. Before the last step a 25th of the draws is
    used, but at least 20.

    Parameters
    ----------
    expert_index : DataArray (run, step, layer, sequence, pos, top_k), with the coordinate `arm` on
        `run`; -1 where not observed. Steps that not all runs observed are left out.
    probe_set : Dataset with `token (sequence, pos)`.
    unit : DataArray (sequence), name of each sequence's unit of text (`unit_labels`).
    n_experts : N.
    min_count : occurrences that a token id needs to be counted.
    n_resamples : draws of each null.
    level : coverage of the intervals.
    progress : wraps the list of runs and steps, to show how far the work is.
    dask : None, "local", or the address of a scheduler.
    rng : draws the nulls, and the halves of the text.

    Returns
    -------
    Dataset
        `layer` is the earlier of two layers, `next_layer (layer)` the one after it. For each
        measure x of `routing.paths.MEASURES`: `x (run, step, layer)` with `x_ci (ci_bound)` over
        units; the mean over the runs of an arm, `arm_x (each_arm, step, layer)`, with `arm_x_ci`
        and `arm_x_run_ci` over runs; and the same averaged over layers, `arm_x_mean`. Of what they
        are made of, by run, step and layer, each also `_given_token`: `information`,
        `miller_madow`, `open_entropy`, `null_mean`, `null_band (ci_bound)`. At the last step:
        `transition (run, layer, from_rank, to_rank)`, `next_load`, `from_expert`, `to_expert`;
        `path (run, rank, moe_layer)`, `path_chosen`, `path_share`, `path_independent`; `between
        (run, moe_layer, later_layer)`. `skipped_step`; attributes `level`, `top_k`, `min_count`.

    Raises
    ------
    Unanswerable
        With a single MoE layer.
    ValueError
        With no step that all runs observed, fewer than two units of text, no id that occurs often
        enough, no resample, or where a step is observed in part.
    """
    if expert_index.sizes["layer"] < 2:
        raise Unanswerable(
            f"paths lead from one MoE layer to the next, and these runs have "
            f"{expert_index.sizes['layer']}; train runs with more layers, such as --set "
            "model.n_layers=4"
        )
    common, steps = common_steps(expert_index), expert_index["step"].values
    result = layer_ties(
        expert_index.isel(step=common), probe_set["token"], unit,
        n_experts=n_experts, min_count=min_count, n_resamples=n_resamples, level=level,
        progress=progress, dask=dask, rng=rng,
    )  # fmt: skip
    result["skipped_step"] = "skipped", np.delete(steps, common), labels("steps left out")
    top_k = expert_index.sizes["top_k"]
    return result.assign_attrs(min_count=min_count, top_k=top_k, n_experts=n_experts)


def report(study: Study, options: cli.Options) -> Report:
    """The analysis of a study, with its tables, figures and caveats."""
    routing, probe_set = observed_routing(study), study.probe_set.load()
    result = expert_paths(
        routing["expert_index"],
        probe_set,
        unit_labels(probe_set, options.unit),
        n_experts=routing.sizes["expert"],
        n_resamples=options.n_resamples,
        progress=partial(cli.track, description="runs and steps"),
        dask=options.dask,
        rng=np.random.default_rng(options.seed),
    )
    return Report(
        analysis="expert_paths",
        study=study.name,
        definition=definition_of(str(__doc__)),
        finding=_finding(result),
        tables=tuple(tables(result)),
        drawings=tuple(_drawings(result)),
        reading="A solid line far above the dashed one is a tie that the token id explains: both "
        "layers look at the id. The dashed line is what layers share beyond it. In a matrix of "
        "transitions compare each row with the last one, which is what every row would be if "
        "layers had nothing to do with each other: a diagonal darker than it is a path that "
        "tokens keep to.",
        caveats=(*_caveats(result), *filter(None, [works_sentence(probe_set)])),
        result=result,
        command=options.command,
        provenance=options.provenance
        | {"draws of each null": f"{options.n_resamples}, seed {options.seed}"},
    )


_BY_ARM = ("", "_ci", "_run_ci")
_SINGLE = ("information", "miller_madow", "open_entropy", "null_mean", "null_band")


def _drawings(result: xr.Dataset) -> Iterator[Drawing]:
    unit, step = result["unit"].attrs["long_name"], int(result["step"][-1])
    draws = (
        f"{result.attrs['n_resamples']} draws at the last step, {result.attrs['n_early']} before"
    )
    of_arms = [f"arm_{name}{suffix}" for name in MEASURES for suffix in _BY_ARM]
    single = [f"{name}{kind}" for kind in KINDS for name in _SINGLE]
    yield Drawing(
        name="ties_over_time",
        title="What a token's expert tells of its expert in the next MoE layer, over training",
        caption="Means over the runs of an arm, beyond chance. Solid: all of it; dashed: given the "
        "token id. Above in nats; below as a share of what there is to be known, without and given "
        "the id. Grey is 95% of the null, of the run whose null is widest "
        f"({draws}). Bands are intervals over {unit}s, dotted lines the ends of those over runs.",
        figure=plot_ties(result),
        data={
            "ties_by_arm": result[of_arms],
            "ties_by_run": result[[*single, *(f"{n}{s}" for n in MEASURES for s in ("", "_ci"))]],
        },
    )
    yield Drawing(
        name="transitions",
        title=f"Where the tokens of each expert go in the next MoE layer, at step {step:,}",
        caption="Percent of an expert's tokens (rows) that go to each expert of the next MoE layer "
        "(columns), in the first run of each arm. White is 1/N. The last row is all tokens. "
        "Experts are in the order that brings the commonest transitions to the diagonal, made on "
        f"the half of the {unit}s that is not shown.",
        figure=plot_transitions(result),
        data={
            "transitions": result[["transition", "from_expert", "to_expert"]],
            "next_load": result[["next_load"]],
        },
    )
    if result.sizes["moe_layer"] > 2:
        yield Drawing(
            name="between_layers",
            title=f"How much of a layer's choice every earlier layer settles, at step {step:,}",
            caption="Miller-Madow information as a share of the later layer's entropy less ln k, "
            "in percent, of all tokens, in the first run of each arm.",
            figure=plot_between(result),
            data={"between_layers": result[["between"]]},
        )


def _finding(result: xr.Dataset) -> str:
    last, parts = result.isel(step=-1), []
    for arm in result["each_arm"].values:
        of_arm = last.sel(each_arm=arm)
        tie, given = (
            f"{number(of_arm[f'arm_{name}_mean'])} "
            f"({interval(*of_arm[f'arm_{name}_mean_ci'].values)})"
            for name in ("tie", "tie_given_token")
        )
        parts.append(f"{tie} nats in {arm} runs and, given the token id, {given}")
    counted = f"{int(result['n_counted']):,} tokens"
    return (
        f"At step {int(last['step']):,}, averaged over runs and consecutive MoE layers "
        f"({listed(pair_names(result))}), a token's expert tells of its next one, beyond chance, "
        f"{'; '.join(parts)}; with {bracketed(result, counted, over_runs=False)}. "
        f"{runs_sentence(result['arm'].values)}"
    )


def _caveats(result: xr.Dataset) -> Iterator[str]:
    unit = result["unit"].attrs["long_name"]
    yield from router_notes(
        result["router"].values.astype(str) if "router" in result.coords else (),
        hash_means="Each layer looks the id up in a map of its own, so one expert tells much of "
        "the next, more the fewer ids there are; given the id nothing is left, exactly, and a "
        "share of nothing has no value.",
    )
    yield (
        f"Counted are the {int(result['n_counted']):,} of {int(result['n_tokens'].sum()):,} tokens "
        f"whose id occurs {result.attrs['min_count']} times or more; transitions and paths are of "
        "all tokens."
    )
    yield (
        f"Intervals over {unit}s hold for other text and these very checkpoints; intervals over "
        "runs hold for other seeds and this very text. Neither contains the other."
    )
    yield (
        "That two layers are tied beyond the id does not mean that one acts on the other: both may "
        "read the same context from the residual stream. Given the id, chance takes up much of the "
        "information, so that what is left depends on the correction (see the bracket)."
    )
    if result.sizes["skipped"]:
        yield (
            f"Steps {listed(f'{step:,}' for step in result['skipped_step'].values)} are left out, "
            "as not all runs observed them."
        )


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    uses = frozenset({"random", "unit", "dask"})
    return cli.run(cli.Analysis("expert_paths", str(__doc__), report, uses), argv)


if __name__ == "__main__":
    raise SystemExit(main())
