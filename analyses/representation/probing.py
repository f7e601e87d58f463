"""Probes of all runs over training: of one run and step, a few layers are held at a time."""

from collections.abc import Mapping
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from analyses.comparison.walk import Progress, mapped
from analyses.representation.probe_targets import EXPERT, Places, next_router
from analyses.representation.recorded import by_layer
from analyses.statistics.probe_baselines import control_labels, lookup, majority
from analyses.statistics.probing import predicted
from store.study import Study

COUNTED = ("accuracy", "control", "lookup", "majority")
Activations = Mapping[str, xr.Dataset]
Choices = Mapping[str, xr.DataArray]


class _Text(NamedTuple):
    """What is the same for all representations: labels with their controls, folds, and baselines.

    Attributes
    ----------
    places : tokens and their targets.
    fold : (token)
    ranks : (control, d_vocab), random permutations of the token ids.
    tasks : for each target of the text, (1 + control, token).
    baselines : hits (lookup or majority, target, unit).
    """

    places: Places
    fold: NDArray[np.intp]
    ranks: NDArray[np.intp]
    tasks: list[NDArray[np.intp]]
    baselines: NDArray[np.float64]


def router_choices(study: Study, activations: Activations) -> dict[str, xr.DataArray]:
    """First choices of the routers of the MoE runs, lazily, where activations were recorded.

    Returns
    -------
    dict
        For each run that has routing a DataArray (step, layer, sequence, pos) of experts, with
        the run's own steps and layers.
    """
    found = {}
    for run in study.runs:
        if run.name in activations and "routing" in run.groups:
            at = activations[run.name]
            index = run.dataset("routing")["expert_index"].isel(top_k=0, drop=True)
            found[run.name] = index.sel(sequence=at["sequence"], pos=at["pos"])
    return found


def hits(
    activations: Activations,
    choices: Choices,
    places: Places,
    fold: NDArray[np.intp],
    *,
    n_controls: int,
    progress: Progress = iter,
    dask: str | None = None,
    rng: np.random.Generator,
) -> xr.Dataset:
    """How many tokens of each unit are told right, by the probe and by what it is compared with.

    Parameters
    ----------
    activations : for each run a Dataset of sites (step, layer, sequence, pos, d_model), of the
        same steps, sequences and positions.
    choices : of `router_choices`.
    places : the same sequences and positions.
    fold : (token) of `unit_folds`.
    n_controls : control tasks of each target; hits on them are averaged.

    Returns
    -------
    Dataset
        `hits (count, unit, run, step, layer, site, target)`, `count` as in `COUNTED`; NaN where a
        run lacks the layer, or no router follows. `n_tokens (unit, target)`.
    """
    text = _text(places, fold, n_controls=n_controls, rng=rng)
    first = next(iter(activations.values()))
    layers = sorted({int(at) for d in activations.values() for at in d["layer"].values})
    targets = [*places.targets, *([EXPERT] if choices else [])]
    items = [(run, step) for run in activations for step in range(first.sizes["step"])]
    at = partial(_measured, activations, choices, text, layers)
    import scipy.linalg  # noqa: F401 - a BLAS that is loaded later would not be limited
    from threadpoolctl import threadpool_limits

    # (run * step, count, layer, site, target, unit); matrices this small lose by being shared out
    with threadpool_limits(1):
        found = np.stack(list(mapped(at, items, progress, dask)))
    found = found.reshape(len(activations), first.sizes["step"], *found.shape[1:])
    dims = ("run", "step", "count", "layer", "site", "target", "unit")
    counted = [target.label >= 0 for target in places.targets.values()]
    counted += [np.ones(len(fold), dtype=bool)] * bool(choices)
    sizes = [np.bincount(places.unit[tokens], minlength=len(places.units)) for tokens in counted]
    return xr.Dataset(
        {
            "hits": (dims, found),
            "n_tokens": (("target", "unit"), np.stack(sizes).astype(np.float64)),
        },
        {
            "count": list(COUNTED),
            "run": list(activations),
            "step": first["step"].variable,
            "layer": layers,
            "site": list(first.data_vars),
            "target": targets,
            "unit": places.units,
        },
    ).transpose("count", "unit", ...)


def _text(
    places: Places, fold: NDArray[np.intp], *, n_controls: int, rng: np.random.Generator
) -> _Text:
    n_ids = int(places.token.max()) + 1
    ranks = np.stack([rng.permutation(n_ids) for _ in range(n_controls)])
    label = [target.label for target in places.targets.values()]
    tasks = [_with_controls(own, places.token, ranks) for own in label]
    baselines = [_baseline_hits(own, places, fold) for own in label]
    return _Text(places, fold, ranks, tasks, np.stack(baselines, axis=1))


def _with_controls(
    label: NDArray[np.intp], token: NDArray[np.intp], ranks: NDArray[np.intp]
) -> NDArray[np.intp]:
    return np.stack([label, *(control_labels(label, token, rank) for rank in ranks)])


def _baseline_hits(
    label: NDArray[np.intp], places: Places, fold: NDArray[np.intp]
) -> NDArray[np.float64]:
    """Hits of the lookup by token id and of the commonest class, (2, unit)."""
    answers = (lookup(label, places.token, fold), majority(label, fold))
    return np.stack([_unit_hits(answer, label, places) for answer in answers])


def _unit_hits(
    answer: NDArray[np.intp], label: NDArray[np.intp], places: Places
) -> NDArray[np.float64]:
    right = (answer == label) & (label >= 0)
    return np.bincount(places.unit[right], minlength=len(places.units)).astype(np.float64)


def _measured(
    activations: Activations,
    choices: Choices,
    text: _Text,
    layers: list[int],
    item: tuple[str, int],
) -> NDArray[np.float32]:
    """Hits of one run and step, (count, layer, site, target, unit)."""
    run, step = item
    of_run = activations[run].isel(step=step)
    sites, n_text = list(of_run.data_vars), len(text.tasks)
    shape = (len(sites), n_text + bool(choices), len(text.places.units))
    found = np.full((len(COUNTED), len(layers), *shape), np.nan, dtype=np.float32)
    of_router = _expert_tasks(choices.get(run), int(of_run["step"]), text)
    for site, name in enumerate(sites):
        for at in by_layer(of_run[name]):
            depth = int(at["layer"])
            tasks, baselines = list(text.tasks), text.baselines
            router = next_router(np.array(list(of_router)), depth, str(name))
            if router is not None:
                task, of_task = of_router[router]
                tasks.append(task)
                baselines = np.concatenate([baselines, of_task[:, None]], axis=1)
            here = found[:, layers.index(depth), site]
            here[2:, : len(tasks)] = baselines
            for i, answers in enumerate(predicted(_finite(at, run), tasks, text.fold)):
                of_variants = [_unit_hits(*both, text.places)
                               for both in zip(answers, tasks[i], strict=True)]  # fmt: skip
                here[0, i], here[1, i] = of_variants[0], np.mean(of_variants[1:], axis=0)
    return found


def _finite(values: xr.DataArray, run: str) -> NDArray:
    """Features (token, feature)."""
    x = values.values.reshape(-1, values.sizes["d_model"])
    if not np.isfinite(x).all():
        raise ValueError(
            f"{values.name} of layer {int(values['layer'])} of run {run!r} is not finite at step "
            f"{int(values['step']):,}; give the paths of the other runs"
        )
    return x


def _expert_tasks(
    choice: xr.DataArray | None, step: int, text: _Text
) -> dict[int, tuple[NDArray[np.intp], NDArray[np.float64]]]:
    """For each layer with a router, its first choices with controls, and hits of the baselines.

    Empty if the choices were not recorded at the step.
    """
    if choice is None or step not in choice["step"]:
        return {}
    at_step = choice.sel(step=step).transpose("layer", "sequence", "pos").load()
    if (at_step < 0).any():
        return {}
    found = {}
    for at in at_step:
        chosen = at.values.ravel().astype(np.intp)
        controls = _with_controls(chosen, text.places.token, text.ranks)
        found[int(at["layer"])] = controls, _baseline_hits(chosen, text.places, text.fold)
    return found


def run_labels(activations: Activations) -> xr.Dataset:
    """Coordinates on `run`, of the runs in their order."""
    known = [name for name in ("arm", "architecture", "router")
             if all(name in d.coords for d in activations.values())]  # fmt: skip
    coords: dict[str, Any] = {"run": list(activations)}
    for name in known:
        coords[name] = "run", [str(d[name].item()) for d in activations.values()]
    return xr.Dataset(coords=coords)
