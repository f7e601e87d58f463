r"""What can be read linearly from representations, where and when, and is it more than token ids?

A probe is a linear classifier from the activations of one run, step, layer and site to a label of
the token that the model has just seen [1]_: the token itself, the one before, what kind of token
comes next, position, domain, whether the token begins a word or has occurred before in its
sequence, and in MoE runs the expert that the next router will choose first. Units of text (works,
or documents) are divided into five folds. Probes are fitted to four folds and scored on the fifth,

    accuracy = tokens of held-out units told right / tokens

Probes are ridge classifiers on standardised features: least squares on one column a class, the
largest column being the answer, exactly as scikit-learn's. Over 21 targets and representations of
the `seeds` study their accuracy was within .04 of ridge-penalised logistic regression, on average
.005 below it, and within .04 of linear discriminant analysis. What decides is time: all targets
share one factorization, so that nested cross-validation of eight targets and their 24 control tasks
takes .14 s a representation, where one target takes 1.4 s with scikit-learn's ridge classifier and
2.0 s with its logistic regression. The strength is chosen inside the four folds, one of them held
out at a time, never by the fifth.

Accuracy is to be read beside

    majority     the commonest class of the four folds
    lookup       the commonest class of the token's id in the four folds: a bag of token ids
    control      a probe of labels dealt to token ids at random, in the shares of the classes

and selectivity = accuracy - control [2]_. A representation that keeps the token id apart lets a
probe learn any label of ids by heart, so that accuracy alone says little of how it is organised
[4]_.

Only classes with at least 20 tokens, in at least five units, are targets, of token ids at most the
32 commonest; tokens of other classes are left out. All experts are kept.

Two intervals, never pooled. Over units of text: one unit is deleted at a time [3]_ from the hits of
the cross-validated probes, which are held fixed, so that what other training text would have
changed in the probes is not in it. Over runs: one run of an arm is deleted at a time. Layers and
sites are averaged last.

    python -m analyses.linear_probe studies/quick

References
----------
.. [1] Alain and Bengio (2016), arXiv:1610.01644 (linear probes of layers).
.. [2] Hewitt and Liang (2019), arXiv:1909.03368 (control tasks, selectivity).
.. [3] Efron and Stein (1981), doi:10.1214/aos/1176345462 (the jackknife estimate of variance).
.. [4] Belinkov (2022), doi:10.1162/coli_a_00422 (what probes can and cannot show).
"""

from collections.abc import Iterator, Sequence
from functools import partial

import numpy as np
import xarray as xr

from analyses.comparison.units import unit_labels
from analyses.comparison.walk import Progress
from analyses.reporting import cli
from analyses.reporting.cohort import works_sentence
from analyses.reporting.probe_figures import plot_depth, plot_training
from analyses.reporting.probe_tables import tables
from analyses.reporting.probe_text import caveats, finding
from analyses.reporting.report import Drawing, Report, definition_of
from analyses.reporting.text import labels
from analyses.representation.probe_measures import measures
from analyses.representation.probe_targets import places
from analyses.representation.probing import (
    Activations,
    Choices,
    hits,
    router_choices,
    run_labels,
)
from analyses.representation.recorded import left_out, recorded_activations
from analyses.statistics.probing import unit_folds
from store.study import Study


def linear_probe(
    activations: Activations,
    choices: Choices,
    probe_set: xr.Dataset,
    unit: xr.DataArray,
    *,
    n_steps: int = 8,
    n_folds: int = 5,
    n_controls: int = 3,
    min_tokens: int = 20,
    most: int = 32,
    level: float = 0.95,
    progress: Progress = iter,
    dask: str | None = None,
    rng: np.random.Generator,
) -> xr.Dataset:
    """Accuracy and selectivity of probes of every target, by run, step, layer and site.

    A layer of one run, step and site is held at a time, or a few small ones.

    Parameters
    ----------
    activations : for each run a Dataset of sites (step, layer, sequence, pos, d_model) with the
        scalar coordinates `arm` and, of MoE runs, `n_experts`; steps, sequences and positions
        are the same in all (`recorded_activations`).
    choices : for each MoE run, experts chosen first, (step, layer, sequence, pos).
    probe_set : Dataset with `token` and `target (sequence, pos)` and `domain (sequence)`.
    unit : DataArray (sequence), name of each sequence's unit of text (`unit_labels`).
    n_steps : steps to probe, evenly spaced among the recorded ones, with the first and the last.
    n_folds : folds of units; also the units that a class must occur in.
    n_controls : control tasks that are averaged.
    min_tokens, most : tokens that a class needs, and classes that a target may have.
    level : coverage of the intervals.
    progress : wraps the list of runs and steps, to show how far the work is.
    dask : None, "local", or the address of a scheduler.
    rng : draws the control tasks, the same for all representations.

    Returns
    -------
    Dataset
        For each x of `probing.MEASURES`: `run_x (run, step, layer, site, target)`, `arm_x
        (each_arm, ...)`, and `run_x_mean`, `arm_x_mean` over layers and sites, with `_ci
        (ci_bound)` over units and, of arms, `_run_ci` over runs; for accuracy and selectivity
        `x_difference (each_arm, target)` at the last step from `first_arm (target)`;
        `target_tokens` and `n_classes (target)`; `skipped_step`, the recorded steps not probed.
        Attributes `level`, `n_folds`, `n_controls`, `min_tokens`, `most` and `left_out`, the
        targets with fewer than two classes.

    Raises
    ------
    ValueError
        With fewer than three units of text, no target with two classes, or activations that are
        not finite.
    """
    first = next(iter(activations.values()))
    steps, n_recorded = first["step"].values, first.sizes["step"]
    kept = np.unique(np.linspace(0, n_recorded - 1, min(n_steps, n_recorded)).round().astype(int))
    at = probe_set.get_index("sequence").get_indexer(first["sequence"].values)
    rules = {"min_tokens": min_tokens, "min_units": n_folds, "most": most}
    unit = unit.isel(sequence=at)
    text = places(probe_set.isel(sequence=at), unit, first["pos"].values, **rules)
    if not text.targets:
        raise ValueError(
            f"no target has two classes with {min_tokens} tokens in {n_folds} units of text; "
            "record more positions, or use a larger probe set"
        )
    probed = {run: of_run.isel(step=kept) for run, of_run in activations.items()}
    fold = unit_folds(text.unit, n_folds=n_folds)
    counted = hits(probed, choices, text, fold, n_controls=n_controls, progress=progress,
                   dask=dask, rng=rng)  # fmt: skip
    runs = run_labels(probed)
    result = measures(counted, runs, level=level).assign_coords(
        {name: runs[name].variable for name in runs.coords}
        | {"unit": ("unit", text.units, {"long_name": str(unit.attrs.get("unit", "unit"))})}
    )
    n_classes = [len(target.classes) for target in text.targets.values()]
    n_classes += [max(int(probed[run]["n_experts"]) for run in choices)] if choices else []
    n_tokens = counted["n_tokens"].sum("unit").astype(int)
    result["target_tokens"] = "target", n_tokens.values, labels("tokens")
    result["n_classes"] = "target", n_classes, labels("classes")
    result["skipped_step"] = "skipped", np.delete(steps, kept), labels("steps not probed")
    return result.assign_attrs(level=level, n_folds=len(np.unique(fold)), n_controls=n_controls,
                               min_units=n_folds, min_tokens=min_tokens, most=most,
                               left_out=list(text.left_out))  # fmt: skip


def report(study: Study, options: cli.Options) -> Report:
    """The analysis of a study, with its tables, figures and caveats."""
    activations, probe_set = recorded_activations(study), study.probe_set.load()
    result = linear_probe(
        activations,
        router_choices(study, activations),
        probe_set,
        unit_labels(probe_set, options.unit),
        progress=partial(cli.track, description="runs and steps"),
        dask=options.dask,
        rng=np.random.default_rng(options.seed),
    )
    return Report(
        analysis="linear_probe",
        study=study.name,
        definition=definition_of(str(__doc__)),
        finding=finding(result),
        tables=tuple(tables(result)),
        drawings=tuple(_drawings(result)),
        reading="An accuracy says something only beside the grey lines: what the commonest class "
        "gives (dotted) and what a lookup by token id gives (dashed). Above the lookup, the "
        "representation tells what the id alone does not. Selectivity above 0 means that the "
        "label is easier to read than random labels of token ids; below 0, the probe reads the id "
        "better than the label. The current token is itself a label of ids: its selectivity is "
        "about 0 whatever the representation.",
        caveats=(
            *caveats(result),
            *left_out(study, activations),
            *filter(None, [works_sentence(probe_set)]),
        ),
        result=result,
        command=options.command,
        provenance=options.provenance,
    )


def _data(result: xr.Dataset, *names: str) -> xr.Dataset:
    """What arms have of each measure."""
    return result[[f"arm_{name}{suffix}" for name in names for suffix in ("", "_ci", "_run_ci")]]


def _drawings(result: xr.Dataset) -> Iterator[Drawing]:
    unit, step = result["unit"].attrs["long_name"], int(result["step"][-1])
    bands = f"Bands are intervals over {unit}s, dotted lines of the arm's colour those over runs."
    baselines = {
        "accuracy": "Grey: the commonest class (dotted), and a lookup by token id (dashed); for "
        "the expert choice, which differs from run to run, the lookup has the arm's colour.",
        "selectivity": "Grey: 0, no easier to read than random labels of token ids.",
    }
    for name, baseline in baselines.items():
        yield Drawing(
            name=f"{name}_over_training",
            title=f"{name.capitalize()} over training, by target",
            caption="Means over the runs of an arm, at the last site of a block. Solid: the last "
            f"layer that has the target; thin, without markers: the first. {baseline} {bands}",
            figure=plot_training(result, name),
            data={f"{name}_over_training": _data(result, name)},
        )
    last = result.isel(step=-1)
    for name, baseline in baselines.items():
        yield Drawing(
            name=f"{name}_by_depth",
            title=f"{name.capitalize()} at step {step:,}, from the first site to the last",
            caption=f"Means over the runs of an arm. {baseline} {bands}",
            figure=plot_depth(last, name),
            data={f"{name}_by_depth": _data(last, name, *_BASELINES[name])},
        )


_BASELINES: dict[str, tuple[str, ...]] = {
    "accuracy": ("lookup", "majority", "control"),
    "selectivity": (),
}


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    uses = frozenset({"unit", "dask"})
    return cli.run(cli.Analysis("linear_probe", str(__doc__), report, uses), argv)


if __name__ == "__main__":
    raise SystemExit(main())
