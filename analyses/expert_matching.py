r"""Do routers of other seeds and other arms divide the tokens alike, once experts are matched?

Expert numbers mean nothing between runs. With A_t the set of k of N experts that token t chose in
one run and A'_t in another, expert i is matched to expert pi(i) so that the phi coefficients of
1[i in A_t] and 1[pi(i) in A'_t] sum to the most [1]_. Units of text are divided at random into two
halves, and each half is scored with the matching found on the other, and beyond chance [5]_:

    agreement = mean_t |pi(A_t) ∩ A'_t| / k,        kappa = (agreement - chance) / (1 - chance)

Chance is the mean agreement of the same procedure, matching included, when whole units of text
exchange the choices of one run. It is k/N for even loads, and on either side of it for uneven ones.

Two routers may agree only because both go by the token id, as hash layers do [6]_. Two levels tell
how far that goes:

    token ids alone    what two different tokens of one id in the other half have in common, one
                       routed by the first run and one by the second
    usual experts      agreement if either run sent each token to the k experts that its id
                       chose most in the other half

Beyond token ids is (agreement - floor) / (1 - floor), with the first as the floor; above 0, the
runs also agree on what the context adds. The second has no noise of contexts, and may exceed
agreement.

Without any matching: adjusted mutual information of first choices [2]_, over (H + H')/2; and
routing CKA, linear CKA [3]_ of the indicators 1[i in A_t], beside CKA of the hidden states at the
end of the same layer, where they were recorded. Runs may route alike only because their hidden
states are alike. CKA compares no two tokens of one unit of text, which would be alike in any
representation: with M_u = sum over the tokens of unit u of the centred x_t y_t',

    CKA = C(X, Y) / sqrt(C(X, X) C(Y, Y)),        C(X, Y) = ||sum_u M_u||² - c sum_u ||M_u||²

and c slightly above 1, for what estimated means add. All of these are 0 on average for routers
whose choices are independent, and 1 for routers that differ only in the numbers of their experts.

Two intervals, never pooled. Over units of text (works, or documents), with matchings, chance and
means as found on all of them: one unit is deleted at a time [4]_. Over runs: one run is deleted at
a time, with all its pairs. Layers are averaged last.

    python -m analyses.expert_matching studies/seeds

References
----------
.. [1] Kuhn (1955), doi:10.1002/nav.3800020109 (the assignment problem).
.. [2] Vinh, Epps and Bailey (2010), https://jmlr.org/papers/v11/vinh10a.html (adjusted mutual
   information).
.. [3] Kornblith et al. (2019), arXiv:1905.00414; Nguyen et al. (2021), arXiv:2010.15327.
.. [4] Efron and Stein (1981), doi:10.1214/aos/1176345462 (the jackknife estimate of variance).
.. [5] Cohen (1960), doi:10.1177/001316446002000104 (agreement beyond chance).
.. [6] Roller et al. (2021), arXiv:2106.04426 (hash layers).
"""

from collections.abc import Iterator, Mapping, Sequence
from functools import partial

import numpy as np
import xarray as xr

from analyses.comparison.runs import sorted_by_arm
from analyses.comparison.unanswerable import Unanswerable
from analyses.comparison.units import unit_labels
from analyses.comparison.walk import Progress
from analyses.reporting import cli
from analyses.reporting.cohort import bracketed, runs_sentence, works_sentence
from analyses.reporting.layer_panels import shown_layers
from analyses.reporting.matching_figures import arms_of, plot_agreement, plot_cka, plot_matched
from analyses.reporting.matching_tables import estimate, tables
from analyses.reporting.report import Drawing, Report, definition_of
from analyses.reporting.text import labels, listed, number
from analyses.routing.hidden_states import hidden_states
from analyses.routing.matched_text import matched_text
from analyses.routing.matching import matched_table, matchings
from analyses.routing.observed import observed_routing, router_notes
from store.study import Study

# chance is a mean over exchanges, which more of them would hardly move
MOST_EXCHANGES = 100


def expert_matching(
    expert_index: xr.DataArray,
    token: xr.DataArray,
    unit: xr.DataArray,
    *,
    n_experts: int,
    hidden: Mapping[str, xr.DataArray] | None = None,
    n_resamples: int = 100,
    level: float = 0.95,
    progress: Progress = iter,
    dask: str | None = None,
    rng: np.random.Generator | None = None,
) -> xr.Dataset:
    """Agreement of the routers of every two runs, by pair and by pair of arms.

    The choices of all runs at one step and layer are held at a time.

    Parameters
    ----------
    expert_index : DataArray (run, step, layer, sequence, pos, top_k), with the coordinates `arm`
        and `architecture` on `run`; -1 where not observed.
    token : DataArray (sequence, pos), token ids.
    unit : DataArray (sequence), name of each sequence's unit of text (`unit_labels`).
    n_experts : N.
    hidden : hidden states by run (`hidden_states`); without, CKA of hidden states is left out.
    n_resamples : exchanges of units, for chance.
    level : coverage of the intervals.
    progress : wraps the list of layers and steps, to show how far the work is.
    dask : None, "local", or the address of a scheduler.
    rng : divides the units into halves and exchanges them; `default_rng(0)` if None.

    Returns
    -------
    Dataset
        For each measure x of `routing.matching.MEASURES`, as `comparison.summary.summarize` has it:
        `pair_x (pair, layer, step)`, `arms_x (arms, layer, step)`, their `_ci` over units and, for
        arms, `_run_ci` over runs; and the same averaged over layers, `pair_x_mean`, `arms_x_mean`.
        `pair_chance`, `arms_chance` and `arms_chance_mean`; `pair_chance_draws (..., resample)` and
        `pair_chance_p`, that agreement is above chance. `matched_share (layer, expert,
        matched_expert)` with `partner`, of the pair named in its attributes, at the last step that
        both observed; `uniform_chance`, k/N. Attribute `level`. NaN where a run was not observed.

    Raises
    ------
    Unanswerable
        With fewer than two runs.
    ValueError
        With fewer than four units of text, or if no two runs have a step in common.
    """
    if expert_index.sizes["run"] < 2:
        raise Unanswerable(
            "experts are matched between two runs, and only "
            f"{expert_index['run'].values[0]} has experts that were observed; train an MoE of "
            "another seed or arm, or give its path as well"
        )
    index, rng = sorted_by_arm(expert_index), rng or np.random.default_rng(0)
    text = matched_text(token, unit, n_resamples=n_resamples, rng=rng)
    result = matchings(
        index, text,
        n_experts=n_experts, hidden=hidden or {}, level=level, progress=progress, dask=dask,
    )  # fmt: skip
    runs, step = _shown_pair(result)
    table = matched_table(index.sel(run=list(runs), step=step), text, n_experts=n_experts)
    shown = {"first_run": runs[0], "second_run": runs[1], "step": step}
    return result.assign(
        matched_share=table.assign_attrs(shown),
        uniform_chance=((), index.sizes["top_k"] / n_experts, labels("k/N")),
    ).assign_attrs(level=level)


def _shown_pair(result: xr.Dataset) -> tuple[tuple[str, str], int]:
    """The pair whose experts are shown, if possible of one learned arm, and its last step."""
    known = result["pair_agreement"].notnull().all("layer")
    run, arm = result["run"].values.astype(str), result["arm"].values.astype(str)
    learned = result["router"].values.astype(str) if "router" in result.coords else arm
    first, second = np.triu_indices(len(run), k=1)
    some = known.any("step").values
    rank = np.where(arm[first] == arm[second], 0, 1) + np.where(learned[first] == "hash", 2, 0)
    pair = int(np.where(some, rank, 9).argmin())
    step = result["step"].values[known.isel(pair=pair).values][-1]
    return (run[first[pair]], run[second[pair]]), int(step)


def report(study: Study, options: cli.Options) -> Report:
    """The analysis of a study, with its tables, figures and caveats."""
    routing, probe_set = observed_routing(study), study.probe_set.load()
    unit = unit_labels(probe_set, options.unit)
    of_sequence = unit.assign_coords(sequence=probe_set["sequence"].values)
    result = expert_matching(
        routing["expert_index"],
        probe_set["token"],
        unit,
        n_experts=routing.sizes["expert"],
        hidden=hidden_states(study, routing["run"].values, of_sequence),
        n_resamples=min(options.n_resamples, MOST_EXCHANGES),
        progress=partial(cli.track, description="layers and steps"),
        dask=options.dask,
        rng=np.random.default_rng(options.seed),
    )
    last = result.isel(step=int(_full_steps(result)[-1]))
    return Report(
        analysis="expert_matching",
        study=study.name,
        definition=definition_of(str(__doc__)),
        finding=_finding(last),
        tables=tuple(tables(last)),
        drawings=tuple(_drawings(result)),
        reading="Kappa is 0 at chance and 1 if two runs divide the tokens alike. Compare it first "
        "with the dashed line, which token ids alone would give, then with hash routers, if the "
        "study has any: they share nothing, but each sends a frequent token always to one place, "
        "and matching lays the places of frequent tokens on each other. Kappa of learned routers "
        "as high as theirs is no sign that seeds find the same experts.",
        caveats=(*_caveats(result), *filter(None, [works_sentence(probe_set)])),
        result=result,
        command=options.command,
        provenance=options.provenance,
    )


def _full_steps(result: xr.Dataset) -> np.ndarray:
    """Indices of the steps at which as many pairs of arms have a value as anywhere."""
    known = result["arms_agreement_mean"].notnull().sum("arms").values
    return np.flatnonzero(known == known.max())


def _data(result: xr.Dataset, *names: str) -> xr.Dataset:
    suffixes = ("", "_ci", "_run_ci")
    return result[[f"arms_{name}{suffix}" for name in names for suffix in suffixes]]


def _drawings(result: xr.Dataset) -> Iterator[Drawing]:
    unit = result["unit"].attrs["long_name"]
    layers = f"Shown are layers {listed(shown_layers(result))}."
    yield Drawing(
        name="agreement",
        title="Agreement of matched experts beyond chance",
        caption="Means over the pairs of runs of one arm, above, and of two arms, below, whose "
        "colours share a dot. Dashed: kappa if token ids alone tied the two. Bands are intervals "
        f"over {unit}s, dotted lines the ends of those over runs. Step 0 is initialization. "
        f"{layers}",
        figure=plot_agreement(result),
        data={
            "agreement": _data(result, "agreement", "kappa"),
            "token_ids": _data(result, "floor_kappa", "beyond_floor", "lookup"),
            "agreement_by_pair": result[["pair_agreement", "pair_kappa", "pair_chance"]],
        },
    )
    table = result["matched_share"]
    first, second = table.attrs["first_run"], table.attrs["second_run"]
    yield Drawing(
        name="matched_experts",
        title=f"Experts of {first}, and where their tokens go in {second}",
        caption=f"Percent of an expert's tokens, at step {table.attrs['step']:,}. Columns stand in "
        "the order of the rows that they are matched to, so the diagonal agrees. Matched on half "
        f"of the {unit}s, counted on the other half. White is k/N. {layers}",
        figure=plot_matched(table, (first, second), uniform=float(result["uniform_chance"])),
        data={"matched_experts": table.drop_attrs().to_dataset(name="share")},
    )
    if "pair_hidden_cka" in result and result["pair_hidden_cka"].notnull().any():
        yield Drawing(
            name="routing_against_hidden_states",
            title="Routing CKA against hidden-state CKA",
            caption="Dots are pairs of runs at the last step with hidden states, their halves in "
            "the colours of the two arms; a line is the mean of two arms over training. Hidden "
            "states with rows of unit length, where the layer ends, on the part of the text that "
            f"has them. {layers}",
            figure=plot_cka(result),
            data={"cka": _data(result, "routing_cka", "hidden_cka", "hidden_cka_raw")},
        )


def _finding(at: xr.Dataset) -> str:
    parts, arms = [], arms_of(at)
    same = [name for name, (a, b) in arms.items() if a == b]
    for name in same or list(arms):
        of_arms = at.sel(arms=name)
        parts.append(
            f"{estimate(of_arms, 'arms_kappa_mean')} for {name}, "
            f"{number(of_arms['arms_floor_kappa_mean'])} by token ids alone"
        )
    other = sorted((float(at["arms_kappa_mean"].sel(arms=n)), n) for n in arms if n not in same)
    between = ""
    if same and other:
        (low, lowest), (high, highest) = other[0], other[-1]
        between = f" Between two arms kappa is {low:.3f} ({lowest})"
        between += f" to {high:.3f} ({highest})." if len(other) > 1 else "."
    return (
        f"At step {int(at['step']):,}, averaged over layers, matched experts of two runs agree "
        f"beyond chance with a kappa of {'; '.join(parts)}; with {bracketed(at)}.{between} "
        f"{runs_sentence(at['arm'].values)}"
    )


def _caveats(result: xr.Dataset) -> Iterator[str]:
    unit, hidden = result["unit"].attrs["long_name"], "pair_hidden_cka" in result
    yield from router_notes(
        result["router"].values.astype(str) if "router" in result.coords else (),
        hash_means="Each seed has another map, so two hash routers share nothing but that both go "
        "by the id. Their kappa is still above 0, as the same few frequent ids weigh much in both: "
        "it is what matching makes of two unrelated lookups. Beyond token ids it is near 0.",
    )
    yield (
        f"Intervals over {unit}s hold for other text and these very checkpoints; intervals over "
        "runs hold for other seeds and this very text. Neither contains the other. Those over "
        f"{unit}s leave out that other text might match other experts, and that the halves, drawn "
        "once, might fall otherwise."
    )
    yield (
        "Tokens of one id share more than their id, such as the text they stand in, so what token "
        "ids alone give is an upper bound. An id that the other half has once at most is taken to "
        "be routed by the loads."
    )
    yield (
        "AMI takes tokens to be independent in its chance, which they are not within a text; it "
        "may be a little above 0 for unrelated routers."
    )
    yield (
        f"Hidden-state CKA rests on a small part of the text. Its intervals are over the few "
        f"{unit}s in it, and it compares residual streams where the layer ends, not the router's "
        "input, which is not recorded."
        if hidden
        else "CKA of hidden states is left out: fewer than two of these runs recorded them, or on "
        f"too few {unit}s."
    )


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    uses = frozenset({"random", "unit", "dask"})
    return cli.run(cli.Analysis("expert_matching", str(__doc__), report, uses), argv)


if __name__ == "__main__":
    raise SystemExit(main())
