r"""Do models that learned the same text represent it alike, layer by layer, and since when?

For each run, step and depth, the representation of a token is the residual stream there; depths
follow one another as they are computed: after the attention of layer 0, after its MLP or experts,
after the attention of layer 1, and so on. Two representations are alike by CKA [1]_ if they find
the same pairs of tokens alike. With U-centred Gram matrices K~ and L~ of the tokens of a batch,

    T(X, Y) = sum_batches <K~, L~>,        CKA = T(X, Y) / sqrt(T(X, X) T(Y, Y))

which is the minibatch estimator with an unbiased HSIC [2]_ [3]_: about 0 for representations that
have nothing in common, 1 if they are the same up to rotation and scale. A batch holds at most one
token of each unit of text (works, or documents), since tokens of one text are alike in anything:
over all tokens, independent representations score well above 0 however CKA is debiased.

Few tokens of large norm, or few features of large variance, can decide CKA [4]_. So it is shown for
three preparations: each token scaled to unit length, "rows"; raw; and each feature scaled to unit
variance, "z". The first is the headline, because attention, MLP and experts read the residual
stream through a normalisation of each token, and never see its length.

Pairs of runs are of three kinds, dense-dense, dense-MoE and MoE-MoE; values are averaged on
Fisher's z over the pairs of a kind, or of two arms, and over depths. If runs i have Gram matrices
K_i = T + E_i, what is their own unrelated, then CKA_ij = a_i a_j. So CKA between arms A and B is
compared with that within them,

    rho2 = mean CKA_AB / sqrt(mean CKA_AA mean CKA_BB)        (geometric means)

which is 1 if arms differ in nothing but what single runs differ in. It is called rho2 as for losses
(`r2_over_time`) because CKA is on the scale of r²: of a single feature each, it is r².

Beside them stand CKA of a run with its own last step, and of every two of its steps; 1 - CKA of
each depth with the one before, which tells how much an attention, an MLP, or the experts change;
and, at the last step, what other measures say of all pairs: CKA over all tokens, Procrustes, and
mutual nearest neighbours [6]_.

Baselines: step 0, where models share the tokens and nothing learned; units of text exchanged
between the two runs; and, as a ceiling of dense-MoE, the geometric mean of dense-dense and MoE-MoE.

Two intervals, never pooled. Over units of text: one is deleted at a time from the sums T [5]_. Over
runs: one run of an arm is deleted at a time. Tokens never count as if they were independent.

    python -m analyses.cka_over_time studies/quick

References
----------
.. [1] Kornblith et al. (2019), arXiv:1905.00414 (CKA).
.. [2] Nguyen, Raghu and Kornblith (2021), arXiv:2010.15327 (HSIC summed over minibatches).
.. [3] Song et al. (2012), https://jmlr.org/papers/v13/song12a.html (unbiased HSIC).
.. [4] Davari et al. (2022), arXiv:2210.16156 (what moves CKA, and what does not).
.. [5] Efron and Stein (1981), doi:10.1214/aos/1176345462 (the jackknife estimate of variance).
.. [6] Huh et al. (2024), arXiv:2405.07987 (mutual nearest neighbours).
"""

from collections.abc import Iterator, Sequence
from functools import partial

import numpy as np
import xarray as xr

from analyses.comparison.runs import run_coordinates, sorted_by_arm
from analyses.comparison.units import unit_labels
from analyses.comparison.walk import Progress, mapped
from analyses.reporting import cli
from analyses.reporting.cka_figures import (
    plot_change,
    plot_depths,
    plot_kinds,
    plot_pairs,
    plot_preparations,
    plot_ratios,
    plot_steps,
    plot_with_last,
)
from analyses.reporting.cka_tables import caveats, finding, most_changed, tables
from analyses.reporting.report import Drawing, Report, definition_of
from analyses.reporting.text import labels, listed
from analyses.representation.cka import HEADLINE, Activations, cohort, grams_at
from analyses.representation.cka_details import depth_by_depth, step_by_step, typical_pairs
from analyses.representation.cka_measures import measures
from analyses.representation.cka_summary import joined, step_summary
from analyses.representation.recorded import recorded_activations
from store.study import Study

_SETTLED = 0.9


def cka_over_time(
    activations: Activations,
    unit: xr.DataArray,
    *,
    level: float = 0.95,
    n_shuffles: int = 2,
    most_bytes: int = 2**30,
    progress: Progress = iter,
    dask: str | None = None,
    rng: np.random.Generator | None = None,
) -> xr.Dataset:
    """Similarity of the representations of all runs, at every depth and step.

    Memory is that of the Gram matrices of one step and of the last step, `most_bytes` and a third
    of it, and of a layer of one run at one step; a step adds its results alone.

    Parameters
    ----------
    activations : for each run a Dataset of sites (step, layer, sequence, pos, d_model) with the
        scalar coordinates `arm` and `architecture`; steps, sequences and positions are the same in
        all (`recorded_activations`). Layers and sites that not all runs have are left out.
    unit : DataArray (sequence), name of the unit of text of each of these sequences
        (`unit_labels`).
    level : coverage of the intervals.
    n_shuffles : exchanges of units that the baseline averages, the same at every step.
    most_bytes : that the Gram matrices of one step may take: the smaller, the smaller batches are.
    progress : wraps the list of steps, to show how far the work is.
    dask : None, "local", or the address of a scheduler.
    rng : deals tokens into batches, and exchanges units; `default_rng(0)` if None.

    Returns
    -------
    Dataset
        For g in `pair`, `kind`, `arms`: `g_cka (g, step, preparation, depth)` and `g_cka_mean (g,
        step)`, averaged over depths of the first preparation (`averaged (step, depth)`, those that
        no run lacks), with `_ci` over units of text and `_run_ci` over runs
        (`comparison.summary.summarize`, without draws). Of the first
        preparation: `ceiling (step)` and `depth_ceiling (step, depth)`; `rho2 (contrast, step,
        depth)` and `rho2_mean (contrast, step)`; for x `with_last` and `change`, `run_x` and
        `arm_x` (`comparison.arm_means`); `shuffled (kind, step, depth)` and `largest_shuffled
        (step)`; `unusable (run, step, depth)`, representations that are not finite or the same for
        all tokens, which are NaN in all of these; and those of `depth_by_depth` for a typical pair
        of each kind at the last step, of `step_by_step` and of `measures`. Attributes `level`,
        `n_tokens_used`, `n_batches` and `largest_batch`.

    Raises
    ------
    Unanswerable
        With fewer than two runs, or if these have no depth in common.
    ValueError
        With fewer than four units of text, or if runs were observed at different places.
    """
    from threadpoolctl import threadpool_limits

    rng = rng or np.random.default_rng(0)
    runs = run_coordinates(sorted_by_arm(_labelled(activations)))
    ordered = {str(run): activations[str(run)] for run in runs["run"].values}
    shared = cohort(ordered, unit, most_bytes=most_bytes, rng=rng)
    permutations = np.stack([rng.permutation(len(shared.units)) for _ in range(n_shuffles)])
    step = next(iter(ordered.values()))["step"]
    # threads gain nothing on matrices of a batch, and wait for each other on a busy machine
    with threadpool_limits(1):
        (last,) = grams_at(shared, -1, [HEADLINE])
        of_step = partial(step_summary, shared, runs, last, permutations, level=level)
        found = list(mapped(of_step, range(step.size), progress, dask))
        result = joined(found, step, shared.depths)
        typical = typical_pairs(result.isel(step=-1), runs)
        for details in (
            depth_by_depth(shared, last, typical, level=level),
            step_by_step(shared, runs, step, most_bytes=most_bytes, level=level, dask=dask),
            measures(shared, runs, permutations[0], level=level, dask=dask),
        ):
            result = result.merge(details, compat="override")
    n_tokens = np.bincount(shared.unit, minlength=len(shared.units))
    return result.assign_coords(runs.coords).assign_coords(
        unit=("unit", shared.units, {"long_name": str(unit.attrs.get("unit", "unit"))}),
        n_tokens=("unit", n_tokens, labels("tokens in batches")),
        other_depth=result["depth"].values,
    ).assign_attrs(
        level=level, n_batches=len(shared.batches),
        n_tokens=int(unit.sizes["sequence"] * next(iter(ordered.values())).sizes["pos"]),
        n_tokens_used=len(shared.tokens), largest_batch=max(map(len, shared.batches)),
    )  # fmt: skip


def _labelled(activations: Activations) -> xr.Dataset:
    """The labels of the runs, on `run`."""
    names = {str(n) for d in activations.values() for n, c in d.coords.items() if not c.dims}
    shared = [n for n in names - {"run"} if all(n in d.coords for d in activations.values())]
    return xr.Dataset(
        coords={"run": list(activations)}
        | {n: ("run", [d[n].item() for d in activations.values()]) for n in sorted(shared)}
    )


def report(study: Study, options: cli.Options) -> Report:
    """The analysis of a study, with its tables, figures and caveats."""
    activations, probe_set = recorded_activations(study, at_least=2), study.probe_set.load()
    sequences = next(iter(activations.values()))["sequence"].values
    at = probe_set.get_index("sequence").get_indexer(sequences)
    result = cka_over_time(
        activations,
        unit_labels(probe_set, options.unit).isel(sequence=at),
        progress=partial(cli.track, description="steps"),
        dask=options.dask,
        rng=np.random.default_rng(options.seed),
    )
    result = result.assign_attrs(moe_layers=_moe_layers(study))
    return Report(
        analysis="cka_over_time",
        study=study.name,
        definition=definition_of(str(__doc__)),
        finding=finding(result),
        tables=tuple(tables(result)),
        drawings=tuple(_drawings(result)),
        reading="Compare curves with the step 0 of the same depth and with the grey line, not with "
        "0 alone: untrained models are alike already, since equal tokens stay equal. Then compare "
        "kinds of pair with each other. The dashed line is where dense-MoE would lie if single "
        "runs differed, and architectures did not; rho2 divides by it, arm by arm. CKA says that "
        "the same tokens are alike, not that the same is computed: a linear map may set apart what "
        "CKA calls the same, and CKA may be low where a linear map reads one off the other.",
        caveats=tuple(caveats(result, study, activations)),
        result=result,
        command=options.command,
        provenance=options.provenance,
    )


def _moe_layers(study: Study) -> list[int]:
    routed = [run.dataset("routing") for run in study.runs if "routing" in run.groups]
    return sorted({int(layer) for d in routed for layer in d["layer"].values})


def _intervals(*names: str) -> list[str]:
    return [f"{name}{suffix}" for name in names for suffix in ("", "_ci", "_run_ci")]


def _drawings(result: xr.Dataset) -> Iterator[Drawing]:
    unit, step = result["unit"].attrs["long_name"], int(result["step"][-1])
    both = f"Bands are intervals over {unit}s, bars or dotted lines those over runs."
    yield Drawing(
        name="cka_over_time",
        title="CKA at each depth over training, by kind of pair",
        caption="Row-normalised. Means over the pairs of a kind. Thin dotted lines: their value at "
        "step 0, where nothing is learned. Grey: units of text exchanged between the two runs. "
        f"Dashed: what differences of single runs alone would leave of dense-MoE. {both}",
        figure=plot_kinds(result),
        data={
            "cka_by_kind": result[_intervals("kind_cka")],
            "cka_by_arms": result[_intervals("arms_cka")],
            "cka_baselines": result[["shuffled", *_known(result, "depth_ceiling")]],
        },
    )
    yield Drawing(
        name="cka_by_pair",
        title="CKA of all pairs over training, averaged over depths",
        caption="Row-normalised. A dot is a pair of runs, its halves in the colours of the two "
        f"arms; the line is the mean of the kind, the band its interval over {unit}s, the bars "
        "that over runs.",
        figure=plot_pairs(result),
        data={"cka_by_pair": result[["pair_cka_mean", "pair_cka_mean_ci"]]},
    )
    if result.sizes.get("contrast", 0):
        yield Drawing(
            name="cka_rho2",
            title="CKA between arms over that within them, rho2, averaged over depths",
            caption="1 means that runs of two arms are as alike as seeds of one arm are. Drawn "
            f"from where CKA is 0.1 or more within and between all arms. {both}",
            figure=plot_ratios(result),
            data={"cka_rho2": result[_intervals("rho2_mean")],
                  "cka_rho2_by_depth": result[_intervals("rho2")]},
        )  # fmt: skip
    yield Drawing(
        name="cka_depths",
        title=f"CKA of every two depths at step {step:,}",
        caption="Row-normalised, in percent; of each kind the pair of runs whose CKA is nearest to "
        f"the mean of the kind. {_matched(result)}",
        figure=plot_depths(result),
        data={"cka_depths": result[["heat", "heat_ci"]]},
    )
    yield Drawing(
        name="cka_steps",
        title="CKA of every two steps of one run",
        caption="Row-normalised; the first run of each arm, at the first, a middle and the last "
        "depth. The diagonal is a step with itself. Orange squares with violet beside them: the "
        "representation left what it was and became another. The square that ends in the lower "
        "right corner holds the steps since which it has stayed what it became. "
        f"{_settled(result)}",
        figure=plot_steps(result),
        data={"cka_steps": result[["within", "within_ci"]]},
    )
    yield Drawing(
        name="cka_with_last",
        title="CKA of each run with its own last step",
        caption=f"Row-normalised. Means over the runs of an arm; 1 at the last step. {both}",
        figure=plot_with_last(result),
        data={"cka_with_last": result[_intervals("arm_with_last")]},
    )
    if bool(result["arm_change"].notnull().any()):
        yield Drawing(
            name="cka_change",
            title="How much each attention, and each MLP or experts, changes the residual stream",
            caption="1 - CKA of the residual stream before and after, row-normalised. Means over "
            f"the runs of an arm. {_experts(result)}{both}{most_changed(result.isel(step=-1))}",
            figure=plot_change(result),
            data={"cka_change": result[_intervals("arm_change")]},
        )
    yield Drawing(
        name="cka_preparations",
        title=f"CKA by preparation at step {step:,}",
        caption="Row-normalised, raw, and with each feature scaled to unit variance. Means over "
        f"the pairs of a kind; bands are intervals over {unit}s, bars those over runs.",
        figure=plot_preparations(result),
        data={
            "cka_preparations": result[_intervals("kind_cka")].isel(step=-1),
            "cka_measures": result[[*_intervals("kind_measured"), "measured_exchanged"]],
            "cka_measures_by_arms": result[_intervals("arms_measured")],
        },
    )


def _known(result: xr.Dataset, *names: str) -> list[str]:
    return [name for name in names if name in result]


def _experts(result: xr.Dataset) -> str:
    layers = result.attrs["moe_layers"]
    return f"MoE runs have experts in layers {listed(layers)}. " if layers else ""


def _matched(result: xr.Dataset) -> str:
    """At how many depths of one run the most similar depth of the other is the same."""
    known = result["heat"].dropna("heat_kind").transpose("heat_kind", "depth", "other_depth")
    if not known.size:
        return ""
    n = known.sizes["depth"]
    same = (known.values.argmax(axis=-1) == np.arange(n)).sum(axis=-1)
    kinds = known["heat_kind"].values
    parts = listed(f"{count} ({kind})" for count, kind in zip(same, kinds, strict=True))
    return f"Of {n} depths of one run, the most similar one of the other is the same for {parts}."


def _settled(result: xr.Dataset) -> str:
    """From which step on each run stays near its last step, at the last depth."""
    last = result["within"].isel(depth=-1, other_step=-1).dropna("within_run")
    near = (last >= _SETTLED).transpose("within_run", "at_step").values
    stays = np.logical_and.accumulate(near[:, ::-1], axis=1)[:, ::-1]
    first = last["at_step"].values[stays.argmax(axis=1)]
    if not len(first):
        return ""
    parts = listed(
        f"{at:,} ({run})" for at, run in zip(first, last["within_run"].values, strict=True)
    )
    return f"At the last depth, CKA with the last step is {_SETTLED} or more from step {parts} on."


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    uses = frozenset({"unit", "dask"})
    return cli.run(cli.Analysis("cka_over_time", str(__doc__), report, uses), argv)


if __name__ == "__main__":
    raise SystemExit(main())
