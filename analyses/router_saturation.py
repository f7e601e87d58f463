r"""When do routes of tokens settle, and how much of that is a lookup of the token id?

The route A_t(c) of token t at step c is the set of the k of N experts that it chose. For each MoE
run and layer, and every two steps c and c', the router saturation [1]_ is

    Sat(c, c') = mean_t |A_t(c) ∩ A_t(c')| / k

the share of choices that the two steps have in common. Of more than 60 steps, c' is one of 60 at
equal distances in the list of steps, the first and the last among them. Expert numbers mean the
same at all steps of one run, and nothing between runs. Two levels that saturation has for reasons
of no interest:

    chance    chi(c, c') = (1/k) sum_i q_i(c) q_i(c'), with q_i the share of tokens that chose i
    lookup    a token's route at c against that at c' of another token with the same id

Chance is k/N if loads are even. Beyond it, kappa = (Sat - chi) / (1 - chi) [2]_. The token-lookup
floor is what is left of saturation if routes at c' change places among the occurrences of each id,
so that only the id tells the route, as early in OpenMoE [5]_; it is averaged over all such
exchanges in closed form, over the tokens whose id occurs again. (Sat - floor) / (1 - floor) on the
same tokens is what the context of a token keeps, 0 if its id alone decides.

The change rate of a step c is 1 - Sat(c', c) divided by the difference of their log2(1 + step),
with c' the last step that lies a doubling or more before c: the share of choices changed per
doubling of training. The age of a route is log2(1 + step) of the
first step from which on a token's route, as a set, is its last one. Ages are correlated (Spearman)
with the frequency of the token in the training text, and with the age of acquisition of the loss at
the same place, the first time that it is half-way down [3]_; tokens whose loss is not learned count
as later than all others. In the partial correlation the ranks of the frequencies of the token and
of the one to be predicted are held fixed.

A route may change because the router did, or because what it reads did. Where `python -m
models.reroute` has routed tokens anew, the last routes are compared with those of the last router
on the representation of c, which differ by the representation alone, and with those of the router
of c on the last representation, which differ by the router alone.

Two intervals, never pooled. Over units of text (works, or documents): one unit is deleted at a time
[4]_, correlations on Fisher's z. Over runs: one run of an arm is deleted at a time. Layers are
averaged last.

    python -m analyses.router_saturation studies/quick

References
----------
.. [1] Muennighoff et al. (2024), OLMoE, arXiv:2409.02060 (router saturation).
.. [2] Cohen (1960), doi:10.1177/001316446002000104 (agreement beyond chance).
.. [3] Chang and Bergen (2022), doi:10.1162/tacl_a_00444 (age of acquisition).
.. [4] Efron and Stein (1981), doi:10.1214/aos/1176345462 (the jackknife estimate of variance).
.. [5] Xue et al. (2024), OpenMoE, arXiv:2402.01739 (routing by token id, fixed early).
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
from analyses.reporting.report import Drawing, Report, definition_of
from analyses.reporting.rerouting import (
    rerouting_caveats,
    rerouting_drawing,
    rerouting_table,
)
from analyses.reporting.saturation_figures import (
    plot_ages,
    plot_frequency,
    plot_matrices,
    plot_stability,
)
from analyses.reporting.saturation_tables import tables
from analyses.reporting.text import interval, labels, listed, number
from analyses.routing.observed import observed_routing, router_notes
from analyses.routing.rerouting import against_last, recorded_rerouting
from analyses.routing.saturation import observed_steps, saturations
from store.study import Study


def router_saturation(
    expert_index: xr.DataArray,
    probe_set: xr.Dataset,
    unit: xr.DataArray,
    *,
    n_experts: int,
    loss: xr.DataArray | None = None,
    level: float = 0.95,
    progress: Progress = iter,
    dask: str | None = None,
) -> xr.Dataset:
    """Saturation between steps, its chance and its token-lookup floor, and ages of routes.

    The routes of one run and layer, at all steps, are held at a time.

    Parameters
    ----------
    expert_index : DataArray (run, step, layer, sequence, pos, top_k), with the coordinate `arm` on
        `run`; -1 where not observed. Steps that not all runs observed are left out.
    probe_set : Dataset with `token` and `target (sequence, pos)`, and if known `token_frequency
        (d_vocab)`.
    unit : DataArray (sequence), name of each sequence's unit of text (`unit_labels`).
    n_experts : N.
    loss : DataArray (run, step, sequence, pos), nats, of at least the same runs and steps; without,
        the age of the loss is left out.
    level : coverage of the intervals.
    progress : wraps the list of runs and layers, to show how far the work is.
    dask : None, "local", or the address of a scheduler.

    Returns
    -------
    Dataset
        For each measure x of `routing.saturation.MEASURES`: `x (run, layer, ...)` with `x_ci
        (ci_bound)` over units; the mean over the runs of an arm, `arm_x (each_arm, layer, ...)`,
        with `arm_x_ci` and `arm_x_run_ci` over runs; and the same averaged over layers,
        `arm_x_mean`. `...` is (step, other_step), (step), (frequency_bin) or nothing, and
        `other_step` holds `routing.saturation.compared_steps`.
        `settled_chance (run, layer, step)` and `arm_settled_chance`, without an interval;
        `uniform_chance`, k/N; `repeated_share`, of tokens whose id occurs again; `skipped_step`,
        the steps left out. Attribute `level`.

    Raises
    ------
    ValueError
        With fewer than two steps that all runs observed, or two units of text; or where a step is
        observed in part.
    """
    common = observed_steps(expert_index)
    steps = expert_index["step"].values
    result = saturations(
        expert_index.isel(step=common), probe_set, unit,
        n_experts=n_experts, loss=loss, level=level, progress=progress, dask=dask,
    )  # fmt: skip
    _, counts = np.unique(probe_set["token"].values, return_counts=True)
    repeated = counts[counts > 1].sum() / counts.sum()
    uniform = expert_index.sizes["top_k"] / n_experts
    result["uniform_chance"] = (), uniform, labels("k/N")
    result["repeated_share"] = (), repeated, labels("tokens whose id occurs again")
    result["skipped_step"] = "skipped", np.delete(steps, common), labels("steps left out")
    return result.assign_attrs(level=level)


def report(study: Study, options: cli.Options) -> Report:
    """The analysis of a study, with its tables, figures and caveats."""
    routing, probe_set = observed_routing(study), study.probe_set.load()
    result = router_saturation(
        routing["expert_index"],
        probe_set,
        unit_labels(probe_set, options.unit),
        n_experts=routing.sizes["expert"],
        loss=study.dataset("losses")["loss"],
        progress=partial(cli.track, description="runs and layers"),
        dask=options.dask,
    )
    anew = _anew(study, routing, unit_labels(probe_set, options.unit))
    shown, drawn = [*tables(result)], [*_drawings(result)]
    if anew is not None:
        shown.append(rerouting_table(anew))
        drawn.append(rerouting_drawing(anew))
        result = _with_rerouting(result, anew)
    return Report(
        analysis="router_saturation",
        study=study.name,
        definition=definition_of(str(__doc__)),
        finding=_finding(result),
        tables=tuple(shown),
        drawings=tuple(drawn),
        reading="Compare saturation with the lines below it, not with 0. Grey is what two routers "
        "with these loads share by chance. Between grey and the dashed floor is what a fixed "
        "choice for each token id would give; only what is above the floor shows that routes of "
        "single tokens in their context have settled. The curve against the last step rises to "
        "1 by definition; how early it does tells when routes were found.",
        caveats=(*_caveats(result, anew), *filter(None, [works_sentence(probe_set)])),
        result=result,
        command=options.command,
        provenance=options.provenance,
    )


def _anew(study: Study, routing: xr.Dataset, unit: xr.DataArray) -> xr.Dataset | None:
    """Routes with the router, or the representation, of the last step; None if there are none."""
    rerouted = recorded_rerouting(study)
    if rerouted is None:
        return None
    of_text = unit.isel(sequence=rerouted["sequence"].values)
    n_experts = routing.sizes["expert"]
    return against_last(routing["expert_index"], rerouted, of_text, n_experts=n_experts)


def _with_rerouting(result: xr.Dataset, anew: xr.Dataset) -> xr.Dataset:
    """Both in one, though not of the same runs and steps."""
    anew = anew.drop_vars(["unit", "n_tokens"])
    names = {str(name) for name in (*anew.dims, *anew.variables)} - {"ci_bound"}
    renamed = anew.rename({name: f"rerouted_{name}" for name in names})
    return result.merge(renamed, compat="equals")


_BY_ARM = ("", "_ci", "_run_ci")


def _data(result: xr.Dataset, *names: str) -> xr.Dataset:
    of_arms = [f"arm_{name}{suffix}" for name in names for suffix in _BY_ARM]
    of_runs = [f"{name}{suffix}" for name in names for suffix in ("", "_ci")]
    return result[[*of_runs, *of_arms]]


def _some_steps(result: xr.Dataset) -> str:
    """Which steps are compared with every other, where not all are."""
    n, n_others = result.sizes["step"], result.sizes["other_step"]
    if n_others == n:
        return ""
    return f"Shown are {n_others} of {n:,} steps, at equal distances in the list of steps. "


def _drawings(result: xr.Dataset) -> Iterator[Drawing]:
    unit = result["unit"].attrs["long_name"]
    layers = f"Shown are layers {listed(shown_layers(result))}."
    bands = f"Bands are intervals over {unit}s, dotted lines the ends of those over runs."
    yield Drawing(
        name="saturation_matrix",
        title="Saturation of every two steps",
        caption="Percent of choices that two steps have in common, averaged over the runs of an "
        f"arm. White is k/N = {float(result['uniform_chance']):.3g}, the chance of even loads. "
        f"{_some_steps(result)}{layers}",
        figure=plot_matrices(result),
        data={"saturation": _data(result, "saturation", "chance", "kappa")},
    )
    yield Drawing(
        name="saturation_over_time",
        title="Saturation with the last step and with the step before, and what is lookup",
        caption="Means over the runs of an arm. Solid: saturation. Dashed, in the arm's colour: "
        "the token-lookup floor. Grey: chance given the loads. Below: how fast routes change. "
        f"{bands} {layers}",
        figure=plot_stability(result),
        data={
            "change_rate": _data(result, "change_rate"),
            "saturation_previous": _data(result, "saturation_previous", "chance_previous"),
            "lookup": _data(
                result, "floor_last", "beyond_floor_last", "floor_previous", "beyond_floor_previous"
            ),
        },
    )
    yield Drawing(
        name="route_age",
        title="Share of tokens whose route is their last one for good, from each step on",
        caption=f"Means over the runs of an arm. Grey, dashed: routes drawn anew at each step from "
        f"the loads. {bands} {layers}",
        figure=plot_ages(result),
        data={
            "settled": _data(result, "settled"),
            "settled_chance": result[["settled_chance", "arm_settled_chance"]],
        },
    )
    yield Drawing(
        name="route_age_by_frequency",
        title="Age of routes by frequency of the token",
        caption="Tokens are divided into eight equal parts by the frequency of their id in the "
        f"training text. {bands} {layers}",
        figure=plot_frequency(result),
        data={"route_age_by_frequency": _data(result, "age_by_frequency")},
    )


def _finding(result: xr.Dataset) -> str:
    """How far routes are settled half-way through the steps, beside a lookup of the token id."""
    steps, parts = result["step"].values, []
    at = result.isel(step=len(steps) // 2, other_step=-1)
    for arm in result["each_arm"].values:
        of_arm = at.sel(each_arm=arm)
        share, floor = (
            f"{number(of_arm[f'arm_{n}_mean'])} ({interval(*of_arm[f'arm_{n}_mean_ci'].values)})"
            for n in ("saturation", "floor_last")
        )
        parts.append(
            f"{share} of the choices of {arm} runs are those of the last step, {floor} by "
            "a lookup of the token id"
        )
    return (
        f"At step {int(at['step']):,} of {int(steps[-1]):,}, averaged over runs and layers, "
        f"{'; '.join(parts)}; with {bracketed(result, over_runs=False)}. "
        f"{runs_sentence(result['arm'].values)}"
    )


def _caveats(result: xr.Dataset, anew: xr.Dataset | None) -> Iterator[str]:
    unit = result["unit"].attrs["long_name"]
    yield from router_notes(
        result["router"].values.astype(str) if "router" in result.coords else (),
        hash_means="Its saturation is 1 from step 0 on, and so is its token-lookup floor; its "
        "routes have age 0, and there is nothing beyond the floor to measure.",
    )
    yield (
        f"Intervals over {unit}s hold for other text and these very checkpoints; intervals over "
        "runs hold for other seeds and this very text. Neither contains the other."
    )
    yield (
        f"The token-lookup floor counts the {100 * float(result['repeated_share']):.1f}% of tokens "
        "whose id occurs again in the probe set. Tokens of one id share more than their id, such "
        "as the text they stand in, so the floor is an upper bound of what the id alone gives."
    )
    yield (
        "A route at the last step counts as its last one for good, though training further could "
        "change it; ages are too low for that, and depend on the steps that were observed. A token "
        "near the border of two experts may change to and fro and still have a late age."
    )
    yield (
        "A choice may change more than once in a doubling of training, or change and come back: "
        "the change rate counts where it is in the end."
    )
    yield from rerouting_caveats(anew, result["run"].values.tolist())
    if result.sizes["skipped"]:
        yield (
            f"Steps {listed(f'{step:,}' for step in result['skipped_step'].values)} are left out, "
            "as not all runs observed them."
        )


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    uses = frozenset({"unit", "dask"})
    return cli.run(cli.Analysis("router_saturation", str(__doc__), report, uses), argv)


if __name__ == "__main__":
    raise SystemExit(main())
