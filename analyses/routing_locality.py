r"""Does a token go to the expert of its neighbour, beyond what the topic of the text gives?

For each MoE run and layer, repetition at lag d is the share of pairs of tokens t and t + d, of one
sequence, whose first choice is the same expert; and for k > 1 choices also the share of those that
have any of them in common [1]_:

    Rep(d) = P(a_t = a_{t+d})        P(A_t ∩ A_{t+d} not empty)

Three levels that it has if neighbours mean nothing:

    uniform    1/N, or 1 - C(N-k, k) / C(N, k) for any
    loads      sum_i f_i², f_i the share of tokens that chose expert i; for any, two independent
               sets of k of the distribution of largest entropy that has these loads [2]_
    sequence   the mean over all pairs of tokens of the same sequence, at any distance

The last is what Rep(d) would be if the tokens of each sequence stood in any other order, as an
exact mean over all orders; for first choices it is (sum_i n_i² - n) / (n (n - 1)), n_i of the
sequence's n tokens having chosen expert i. It knows the topic of the text, in so far as the
topic sets the loads of the sequence: from the loads to it is topic, from it to Rep(d) is
neighbourhood. Averaged over all lags, that excess is 0: if near tokens agree more, far ones must
agree less.

A word often stands near itself, and equal tokens tend to the same expert wherever they stand. So
all is also measured on pairs of two token ids only, against the same pairs in any other order.

Two intervals, never pooled. Over units of text (works, or documents): one unit is deleted at a time
[3]_. Over runs: one run of an arm is deleted at a time. Layers are averaged last.

    python -m analyses.routing_locality studies/quick

References
----------
.. [1] Jiang et al. (2024), Mixtral of Experts, arXiv:2401.04088 (temporal locality of experts).
.. [2] Chen, Dempster and Liu (1994), doi:10.1093/biomet/81.3.457.
.. [3] Efron and Stein (1981), doi:10.1214/aos/1176345462 (the jackknife estimate of variance).
"""

from collections.abc import Iterator, Sequence
from functools import partial

import numpy as np
import xarray as xr

from analyses.comparison.units import unit_labels
from analyses.comparison.walk import Progress
from analyses.reporting import cli
from analyses.reporting.cohort import bracketed, runs_sentence, works_sentence
from analyses.reporting.layer_panels import shown_layers
from analyses.reporting.locality_figures import plot_lags, plot_steps
from analyses.reporting.locality_tables import tables
from analyses.reporting.report import Drawing, Report, definition_of
from analyses.reporting.text import interval, labels, listed, number
from analyses.routing.locality import ALL, BY_LAG, MEASURES, OTHER, common_steps, locality
from analyses.routing.observed import observed_routing, router_notes
from analyses.statistics.locality import uniform_chance
from store.study import Study


def routing_locality(
    expert_index: xr.DataArray,
    probe_set: xr.Dataset,
    unit: xr.DataArray,
    *,
    n_experts: int,
    level: float = 0.95,
    progress: Progress = iter,
    dask: str | None = None,
) -> xr.Dataset:
    """Repetition of experts at lag 1 over training, and at all lags at the last step.

    One layer of one run and step is read at a time.

    Parameters
    ----------
    expert_index : DataArray (run, step, layer, sequence, pos, top_k), with the coordinate `arm` on
        `run`; -1 where not observed. Steps that not all runs observed are left out.
    probe_set : Dataset with `token (sequence, pos)`.
    unit : DataArray (sequence), name of each sequence's unit of text (`unit_labels`).
    n_experts : N.
    level : coverage of the intervals.
    progress : wraps the list of runs and steps, to show how far the work is.
    dask : None, "local", or the address of a scheduler.

    Returns
    -------
    Dataset
        For each measure x of `routing.locality.MEASURES`: `x (run, step, layer, ...)` with `x_ci
        (ci_bound)` over units; the mean over the runs of an arm, `arm_x (each_arm, step, layer,
        ...)`, with `arm_x_ci` and `arm_x_run_ci` over runs; and the same averaged over layers,
        `arm_x_mean`. Those of `BY_LAG`, at the last step, have `lag` in place of `step`. `choice`
        is first, and for k > 1 any; `pairs` all, or of two token ids. `uniform_chance (choice)`;
        `equal_pairs (lag)`, share of pairs that are of one token id; `skipped_step`. Attributes
        `level`, `top_k`, `n_experts`.

    Raises
    ------
    ValueError
        With no step that all runs observed, fewer than two units of text, sequences of one token,
        or where a step is observed in part.
    """
    common, steps = common_steps(expert_index), expert_index["step"].values
    result = locality(
        expert_index.isel(step=common), probe_set["token"], unit,
        n_experts=n_experts, level=level, progress=progress, dask=dask,
    )  # fmt: skip
    top_k = expert_index.sizes["top_k"]
    even = uniform_chance(n_experts, top_k)
    result["uniform_chance"] = "choice", even, labels("repetition by chance, loads even")
    token = probe_set["token"].transpose("sequence", "pos").values
    equal = [float((token[:, :-d] == token[:, d:]).mean()) for d in result["lag"].values.tolist()]
    result["equal_pairs"] = "lag", equal, labels("share of pairs that are of one token id")
    result["skipped_step"] = "skipped", np.delete(steps, common), labels("steps left out")
    return result.assign_attrs(level=level, top_k=top_k, n_experts=n_experts)


def report(study: Study, options: cli.Options) -> Report:
    """The analysis of a study, with its tables, figures and caveats."""
    routing, probe_set = observed_routing(study), study.probe_set.load()
    result = routing_locality(
        routing["expert_index"],
        probe_set,
        unit_labels(probe_set, options.unit),
        n_experts=routing.sizes["expert"],
        progress=partial(cli.track, description="runs and steps"),
        dask=options.dask,
    )
    return Report(
        analysis="routing_locality",
        study=study.name,
        definition=definition_of(str(__doc__)),
        finding=_finding(result),
        tables=tuple(tables(result)),
        drawings=tuple(_drawings(result)),
        reading="Compare repetition with the dashed line, not with 1/N. From grey to the dashed "
        "line is what the loads of a sequence give in any order of its tokens: topic, not "
        "neighbourhood. The rows below show what is left. What is left of all pairs but not of "
        "pairs of two token ids comes from words that are repeated. How the excess falls with the "
        "lag is the reach of the neighbourhood; below 0, tokens so far apart agree less than "
        "those of the sequence do on average.",
        caveats=(*_caveats(result), *filter(None, [works_sentence(probe_set)])),
        result=result,
        command=options.command,
        provenance=options.provenance,
    )


_BY_ARM = ("", "_ci", "_run_ci")


def _data(result: xr.Dataset, names: Sequence[str]) -> dict[str, xr.Dataset]:
    return {
        "by_run": result[[f"{name}{suffix}" for name in names for suffix in ("", "_ci")]],
        "by_arm": result[[f"arm_{name}{suffix}" for name in names for suffix in _BY_ARM]],
    }


def _drawings(result: xr.Dataset) -> Iterator[Drawing]:
    unit = result["unit"].attrs["long_name"]
    layers = f"Shown are layers {listed(shown_layers(result))}."
    lines = (
        "Means over the runs of an arm. Dashed, in the arm's colour: the tokens of each sequence "
        "in any other order. Grey: chance given the loads of all text; dotted: of even loads, "
        f"{listed(f'{float(p):.3g}' for p in result['uniform_chance'])}. "
        f"Below: the excess over the dashed line. Bands are intervals over {unit}s, dotted lines "
        f"the ends of those over runs. {layers}"
    )
    over_time, by_lag = (_data(result, list(names)) for names in (MEASURES, BY_LAG))
    yield Drawing(
        name="repetition_over_time",
        title="How often the next token has the same expert, over training",
        caption=lines,
        figure=plot_steps(result),
        data={f"repetition_over_time_{name}": data for name, data in over_time.items()},
    )
    yield Drawing(
        name="repetition_by_lag",
        title=f"How often a token further on has the same expert, at step "
        f"{int(result['step'][-1]):,}",
        caption=lines,
        figure=plot_lags(result),
        data={f"repetition_by_lag_{name}": data for name, data in by_lag.items()},
    )


def _finding(result: xr.Dataset) -> str:
    last, parts = result.isel(choice=0, step=-1), []
    for arm in result["each_arm"].values:
        of_arm = last.sel(each_arm=arm)
        every, other = (_beyond_text(of_arm.sel(pairs=pairs)) for pairs in (ALL, OTHER))
        repeated = number(100 * of_arm["arm_repetition_mean"].sel(pairs=ALL), digits=1)
        parts.append(f"{every} of {repeated}% in {arm} runs, {other} on pairs of two token ids")
    return (
        f"At step {int(last['step']):,}, averaged over runs and layers, the next token has the "
        "same first choice more often than in any other order of the sequence by, in points, "
        f"{'; '.join(parts)}; with {bracketed(result, over_runs=False)}. "
        f"{runs_sentence(result['arm'].values)}"
    )


def _beyond_text(of_arm: xr.Dataset) -> str:
    """A difference of shares in points of percent, with its interval over units."""
    value, ends = (100 * of_arm[f"arm_beyond_text_mean{suffix}"].values for suffix in ("", "_ci"))
    return f"{float(value):+.1f} ({interval(*ends, digits=1)})"


def _caveats(result: xr.Dataset) -> Iterator[str]:
    unit = result["unit"].attrs["long_name"]
    yield from router_notes(
        result["router"].values.astype(str) if "router" in result.coords else (),
        hash_means="Equal tokens always repeat its expert. Two token ids share an expert by the "
        "accident of the map, so without equal tokens a single run lies off chance only in so far "
        "as its map joins or parts ids that often stand side by side; over many maps that is 0.",
    )
    yield (
        f"Intervals over {unit}s hold for other text and these very checkpoints; intervals over "
        "runs hold for other seeds and this very text. Neither contains the other."
    )
    first = float(result["equal_pairs"][0])
    yield (
        f"{100 * first:.1f}% of next tokens have the same id. Neighbours of two ids may still "
        "agree because of their ids, as some kinds of word stand side by side: that is locality, "
        "but needs no router that looks at the context. Locality at step 0 is that of a router "
        "and a model which have learned nothing: neighbours look alike to it."
    )
    yield (
        "Pairs never reach across the end of a sequence. That the loads of a sequence are those "
        "of its topic is a choice: what changes within a sequence, such as a change of speaker, "
        "counts as neighbourhood."
    )
    if result.sizes["skipped"]:
        yield (
            f"Steps {listed(f'{step:,}' for step in result['skipped_step'].values)} are left out, "
            "as not all runs observed them."
        )


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    uses = frozenset({"unit", "dask"})
    return cli.run(cli.Analysis("routing_locality", str(__doc__), report, uses), argv)


if __name__ == "__main__":
    raise SystemExit(main())
