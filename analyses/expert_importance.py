r"""Which experts matter, and can that be told without knocking them out?

The importance of an expert is how much the loss rises when it is knocked out [1]_: the mean of
L_t(without e) - L_t over all tokens t, or over the tokens that it serves, in nats. Both include
what follows from the change in later layers and at later tokens; the first counts the tokens that
the expert does not serve too. Three things stand in for the expert at the tokens it serves: the
mean of its outputs there, zero, and the router's second choice. `python -m models.ablate` measures
this.

What can be observed without an intervention: load n_e / (T k); gate mass, the router's probability
of e summed where e is chosen, over T [2]_; over the tokens served, the mean of that probability, of
the router's entropy, and of the loss; domain specialization,

    KL(p(D | e) || p(D)),    with I(D; E) = sum_e f_e KL(p(D | e) || p(D)) [3]_

and vocabulary specialization, the probability that another occurrence of the token's id goes to e
as well, less the share of tokens that e serves.

Spearman's rho [4]_ relates each to importance over the experts of one run and layer; it is averaged
over layers, then over the runs of an arm. p is by permutation: experts of a layer exchange their
importances, in every run and layer by itself. Two intervals, never pooled: over units of text
(works, or documents), one deleted at a time, and over runs, one run of an arm deleted at a time.
Which metric predicts best is chosen on all runs but one and judged on that one.

Do experts matter more where they specialize? With M_de the mean change in domain d without e,

    mean_e [ (M_{d*e} - M_{d*.}) - mean_{d != d*} (M_de - M_d.) ]

M_d. being the mean over experts, and d* the domain of whose tokens e takes the largest share. It is
chosen on one half of the units and the change is measured on the other, both ways round.

    python -m models.ablate studies/quick/switch-seed0.zarr
    python -m analyses.expert_importance studies/quick

References
----------
.. [1] Wang et al. (2022), arXiv:2211.00593 (mean ablation); Lu et al. (2024), arXiv:2402.14800
   (leaving out experts).
.. [2] Muzio et al. (2024), SEER-MoE, arXiv:2404.05089 (hard and soft counts).
.. [3] DeWeese and Meister (1999), doi:10.1088/0954-898X/10/4/303.
.. [4] Spearman (1904), doi:10.2307/1412159.
"""

from collections.abc import Iterator, Sequence
from functools import partial

import numpy as np
import xarray as xr

from analyses.comparison.unanswerable import Unanswerable
from analyses.comparison.units import unit_labels
from analyses.comparison.walk import Progress
from analyses.reporting import cli
from analyses.reporting.cohort import works_sentence
from analyses.reporting.importance_figures import (
    PRIMARY,
    plot_best,
    plot_domains,
    plot_prediction,
)
from analyses.reporting.importance_tables import tables
from analyses.reporting.importance_text import best_metrics, caveats, finding
from analyses.reporting.layer_panels import shown_layers
from analyses.reporting.report import Drawing, Report, definition_of
from analyses.reporting.text import listed
from analyses.routing.importance import ablated_text, experts_of_runs
from analyses.routing.prediction import METRICS
from store.study import Study


def expert_importance(
    ablation: xr.Dataset,
    routing: xr.Dataset,
    loss: xr.DataArray,
    probe_set: xr.Dataset,
    unit: xr.DataArray,
    *,
    n_resamples: int = 500,
    level: float = 0.95,
    progress: Progress = iter,
    dask: str | None = None,
    rng: np.random.Generator,
) -> xr.Dataset:
    """Importance of every expert, what was observed of it, and how well one tells the other.

    Parameters
    ----------
    ablation : Dataset with `loss_change_x (run, step, layer, expert, sequence, pos)` for the
        replacements x, nats, with the coordinate `arm` on `run`.
    routing : Dataset with `expert_index (run, step, layer, sequence, pos, top_k)` and `router_prob
        (run, step, layer, sequence, pos, expert)`; may have more of everything.
    loss : DataArray (run, step, sequence, pos), nats.
    probe_set : Dataset with `token`, `target (sequence, pos)` and `domain (sequence)`, and what
        else tells classes of tokens.
    unit : DataArray (sequence), name of each sequence's unit of text (`unit_labels`).
    n_resamples : permutations of the experts.
    level : coverage of the intervals.
    progress, dask : as everywhere.
    rng : draws the halves of the text and the permutations.

    Returns
    -------
    Dataset
        `importance (run, step, layer, replacement, tokens, expert)` and `importance_ci`;
        `metric_value (..., metric, expert)`; `rho (..., metric, replacement, tokens)`, averaged
        over layers `run_rho_mean`, over an arm's runs `arm_rho` and `arm_rho_mean` with `_ci` over
        units and `_run_ci` over runs, and `arm_p`; the same for `contrast`, an expert's top domain
        against the others, and `own_change (..., token_class)`, the change of a token's loss
        without its first choice; `change_by_domain` and `share_of_domain`; `held_out_metric` and
        `held_out_rho (run, step)`. What was not ablated is NaN.

    Raises
    ------
    ValueError
        With fewer than two units of text.
    """
    sequences = ablation["sequence"].values
    part = {"sequence": sequences}
    text = ablated_text(
        probe_set.assign_coords(sequence=np.arange(probe_set.sizes["sequence"])).sel(part),
        unit.isel(part),
        rng,
    )
    result = experts_of_runs(
        ablation,
        routing.sel(part),
        loss.isel(part),
        text,
        n_resamples=n_resamples,
        level=level,
        progress=progress,
        dask=dask,
        rng=rng,
    )
    n_pos, n_all = ablation.sizes["pos"], probe_set.sizes["sequence"]
    return result.assign_attrs(
        level=level, n_tokens=len(sequences) * n_pos, all_tokens=n_all * n_pos
    )


def report(study: Study, options: cli.Options) -> Report:
    """The analysis of a study, with its tables, figures and caveats."""
    ablation, probe_set = _ablation(study), study.probe_set.load()
    names = ablation["run"].values
    result = expert_importance(
        ablation,
        study.dataset("routing").sel(run=names),
        study.dataset("losses")["loss"].sel(run=names),
        probe_set,
        unit_labels(probe_set, options.unit),
        n_resamples=options.n_resamples,
        progress=partial(cli.track, description="runs and steps"),
        dask=options.dask,
        rng=np.random.default_rng(options.seed),
    )
    at = result.isel(step=-1)
    return Report(
        analysis="expert_importance",
        study=study.name,
        definition=definition_of(str(__doc__)),
        finding=finding(at),
        tables=tuple(tables(at, METRICS, n_resamples=options.n_resamples)),
        drawings=tuple(_drawings(at)),
        reading="Rho near 1 means that ordering the experts of a layer by the metric orders them "
        "by importance. Over all tokens a busy expert matters more because more tokens use it; "
        "over the tokens served that part is gone, and what is left is how much a token depends on "
        "its expert. A positive contrast of domains means that knocking an expert out hurts most "
        "in the domain it takes most of; over the tokens served, that it is not only used more "
        "there, but needed more by those that use it.",
        caveats=(*caveats(result, at), *filter(None, [works_sentence(probe_set)])),
        result=result,
        command=options.command,
        provenance=options.provenance
        | {"permutations": f"{options.n_resamples}, seed {options.seed}"},
    )


def _ablation(study: Study) -> xr.Dataset:
    """Knock-outs of the runs that have some committed, sorted by arm."""
    has = [run for run in study.runs if "ablation" in run.groups]
    ablated = [run.name for run in has if len(run.committed_in("ablation"))]
    if not ablated:
        moe = [run for run in study.runs if run.coordinates.get("architecture") == "moe"]
        example = moe[0].path if moe else "RUN"
        raise Unanswerable(
            f"no expert of study {study.name!r} was knocked out yet ({len(moe)} of "
            f"{len(study.runs)} runs have experts); run `python -m models.ablate {example}`, which "
            "needs the weights that `python -m models.train ... --keep-weights` keeps"
        )
    ablation = study.dataset("ablation").sel(run=ablated)
    runs, arms = ablation["run"].values.astype(str), ablation["arm"].values.astype(str)
    return ablation.isel(run=np.lexsort([runs, arms]))


def _drawings(at: xr.Dataset) -> Iterator[Drawing]:
    unit, best = at["unit"].attrs["long_name"], best_metrics(at)
    step, layers = int(at["step"]), listed(shown_layers(at))
    yield Drawing(
        name="prediction",
        title=f"What predicts importance, at step {step:,}",
        caption="Rank correlation of what is observed of an expert with the change of loss when "
        "its output is replaced by its mean. A dot is the mean over layers and the runs of an arm.",
        figure=plot_prediction(at, METRICS),
        data={
            "prediction": at[["arm_rho_mean", "arm_rho_mean_ci", "arm_rho_mean_run_ci", "arm_p"]]
        },
    )
    if best:
        yield Drawing(
            name="best_predictor",
            title="Importance against the metric that predicts best",
            caption="A mark is an expert, its shape the run; bars are 95% intervals of its "
            f"importance over {unit}s. The metric is chosen on these very runs. Importance is over "
            f"all tokens, by mean replacement. Layers {layers}.",
            figure=plot_best(at, best, METRICS),
            data={"best_predictor": at[["importance", "importance_ci"]].sel(PRIMARY),
                  "metrics": at[["metric_value"]]},
        )  # fmt: skip
    for i, arm in enumerate(at["each_arm"].values.astype(str), 1):
        of_run = at.isel(run=int(np.flatnonzero(at["arm"].values.astype(str) == arm)[0]))
        yield Drawing(
            name=f"domains_{i}",
            title=f"Domains that experts take, and domains that miss them: {of_run['run'].item()}",
            caption="Left: percent of a domain's tokens that an expert serves; white is k/N. "
            "Right: change of the mean loss of the domain's tokens without the expert, by mean "
            "replacement, in the unit above each panel; white is 0. Experts are sorted by the "
            f"domain they take most of. Layers {layers}.",
            figure=plot_domains(of_run),
            data={
                f"domains_{i}": of_run[["change_by_domain", "share_of_domain"]].drop_vars(
                    [name for name in of_run.coords if not of_run[name].dims]
                )
            },
        )


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    uses = frozenset({"random", "unit", "dask"})
    return cli.run(cli.Analysis("expert_importance", str(__doc__), report, uses), argv)


if __name__ == "__main__":
    raise SystemExit(main())
