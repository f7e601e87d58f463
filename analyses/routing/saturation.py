"""Saturation of the routers of all runs: the routes of one run and layer are held at a time."""

from functools import partial
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from analyses.comparison.arm_means import arm_means
from analyses.comparison.runs import run_coordinates
from analyses.comparison.summary import PLAIN, R, Scale
from analyses.comparison.walk import Progress, mapped
from analyses.routing.observed import seen_steps, text_units
from analyses.routing.token_frequency import N_BINS, Text, bin_frequency, text_of
from analyses.statistics import saturation as routes
from analyses.statistics.correlation import (
    average_ranks,
    document_moments,
    fisher_z,
    partial_r,
    pearson_r,
)
from analyses.statistics.learning import log_step, milestones, smoothing_matrix
from analyses.statistics.resampling import leave_one_out
from analyses.statistics.token_lookup import lookup

MOST_OTHER_STEPS = 60
_SHARE = Scale(np.asarray, lambda ci: np.clip(ci, 0.0, 1.0))
_AT_LEAST_0 = Scale(np.asarray, lambda ci: np.maximum(ci, 0.0))
_MATRIX = ("step", "other_step")
_CURVE = ("step",)
# name: dimensions beyond run and layer, label, scale of the interval
MEASURES: dict[str, tuple[tuple[str, ...], str, Scale]] = {
    "saturation": (_MATRIX, "router saturation", _SHARE),
    "chance": (_MATRIX, "saturation by chance, given the loads", _SHARE),
    "kappa": (_MATRIX, "saturation beyond chance, kappa", PLAIN),
    "saturation_previous": (_CURVE, "router saturation with the step before", _SHARE),
    "chance_previous": (_CURVE, "its chance, given the loads", _SHARE),
    "change_rate": (_CURVE, "share of choices changed, per doubling of training", _AT_LEAST_0),
    "floor_last": (_CURVE, "token-lookup floor of saturation with the last step", _SHARE),
    "beyond_floor_last": (_CURVE, "saturation with the last step beyond token lookup", PLAIN),
    "floor_previous": (_CURVE, "token-lookup floor of saturation with the step before", _SHARE),
    "beyond_floor_previous": (_CURVE, "saturation with the step before beyond token lookup", PLAIN),
    "settled": (_CURVE, "share of tokens whose route is their last for good", _SHARE),
    "route_age": ((), "age of routes, log2(1 + step)", _AT_LEAST_0),
    "age_by_frequency": (("frequency_bin",), "age of routes, log2(1 + step)", _AT_LEAST_0),
    "age_frequency_rho": ((), "rank correlation of a route's age with the token's frequency", R),
    "age_loss_rho": ((), "rank correlation of a route's age with the age of the loss", R),
    "age_loss_partial_rho": ((), "the same with frequencies held fixed", R),
}


def observed_steps(expert_index: xr.DataArray) -> NDArray[np.intp]:
    """Indices of the steps that all runs observed.

    Parameters
    ----------
    expert_index : DataArray (run, step, layer, sequence, pos, top_k), -1 where not observed.

    Raises
    ------
    ValueError
        If they are fewer than two.
    """
    seen = seen_steps(expert_index)
    common = np.flatnonzero(seen.all(axis=0))
    if len(common) < 2:
        n_steps = seen.sum(axis=1)
        least = expert_index["run"].values[n_steps.argmin()]
        raise ValueError(
            f"saturation compares steps, and there are {len(common)} that all runs observed "
            f"({least} observed {n_steps.min()}); wait until the runs got further, or give the "
            "paths of runs that have steps in common"
        )
    return common


def compared_steps(n_steps: int) -> NDArray[np.intp]:
    """Indices of the steps that each is compared with: all, or 60 of them at equal distances.

    So time and memory grow with the number of steps and not with its square. The first and the last
    are among them.
    """
    n = min(n_steps, MOST_OTHER_STEPS)
    return np.linspace(0, n_steps - 1, n).round().astype(np.intp)


def saturations(
    expert_index: xr.DataArray,
    probe_set: xr.Dataset,
    unit: xr.DataArray,
    *,
    n_experts: int,
    loss: xr.DataArray | None,
    level: float = 0.95,
    progress: Progress = iter,
    dask: str | None = None,
) -> xr.Dataset:
    """Every measure of `MEASURES`, by run, by arm and averaged over layers."""
    units, token_unit = text_units(unit, n_pos=expert_index.sizes["pos"])
    text = text_of(probe_set, token_unit)
    n_runs, n_layers = expert_index.sizes["run"], expert_index.sizes["layer"]
    chance = float(np.log(probe_set.sizes.get("d_vocab", 0) or len(np.unique(text.label))))
    at = partial(_measured, expert_index, loss, text, n_experts, chance)
    items = [(run, layer) for run in range(n_runs) for layer in range(n_layers)]
    found = list(mapped(at, items, progress, dask))

    def gathered(name: str) -> NDArray:
        # taken out, so that what has been stacked is not held twice
        values = np.stack([of_item.pop(name) for of_item in found])
        return values.reshape(n_runs, n_layers, *values.shape[1:])

    step = expert_index["step"].values
    coords: dict[str, Any] = {
        "run": expert_index["run"].variable,
        "layer": expert_index["layer"].variable,
    }
    along = {
        "step": expert_index["step"].variable,
        "other_step": ("other_step", step[compared_steps(len(step))]),
    }
    along["frequency_bin"] = ("frequency_bin", bin_frequency(text))
    runs = run_coordinates(expert_index)
    result = xr.Dataset(coords=dict(runs.coords) | coords | along | dict(units.coords))
    result["frequency_bin"].attrs = {"long_name": "median frequency of the token", "units": "1"}
    for name, (dims, long_name, scale) in MEASURES.items():
        if name not in found[0]:
            continue
        of_name = coords | {dim: along[dim] for dim in dims}
        values, draws = gathered(name), gathered(f"{name}_deleted")
        estimate = xr.DataArray(values, dims=("run", "layer", *dims), coords=of_name)
        deleted = xr.DataArray(draws, dims=("run", "layer", "unit", *dims))
        named: dict[str, Any] = {"scale": scale, "long_name": long_name, "level": level}
        by_layer = arm_means(name, estimate, deleted, runs, **named)
        mean, without = (x.mean("layer", skipna=False) for x in (estimate, deleted))
        overall = arm_means(f"{name}_mean", mean, without, runs, **named)
        overall = overall.drop_vars([f"run_{name}_mean", f"run_{name}_mean_ci"])
        by_layer = by_layer.rename({f"run_{name}": name, f"run_{name}_ci": f"{name}_ci"})
        result = result.merge(by_layer, compat="equals").merge(overall, compat="equals")
    return result.assign(_settled_chance(gathered("settled_chance"), runs["arm"].values))


def _settled_chance(values: NDArray, arm: NDArray) -> dict[str, Any]:
    """Share of tokens settled by chance, by run and by arm."""
    title = {"long_name": "share of tokens settled by chance, given the loads", "units": "1"}
    of_arms = [values[arm == name].mean(axis=0) for name in dict.fromkeys(arm)]
    return {
        "settled_chance": (("run", "layer", "step"), values, title),
        "arm_settled_chance": (("each_arm", "layer", "step"), np.stack(of_arms), title),
    }


def _measured(
    index: xr.DataArray,
    loss: xr.DataArray | None,
    text: Text,
    n_experts: int,
    chance: float,
    item: tuple[int, int],
) -> dict[str, NDArray]:
    """Everything of one run and layer: estimates (...), and those without each unit (unit, ...)."""
    # read before it is turned: to turn what is read lazily, xarray lists the places of all choices
    at = index.isel(run=item[0], layer=item[1]).compute()
    at = at.transpose("step", "sequence", "pos", "top_k")
    choice = at.values.reshape(at.sizes["step"], -1, at.sizes["top_k"])
    if (choice < 0).any():
        step = int(at["step"].values[(choice < 0).any(axis=(1, 2)).argmax()])
        raise ValueError(
            f"layer {int(at['layer'])} of run {at['run'].item()!r} lacks choices at step {step:,}; "
            "a route is known only if all of its choices are: give the paths of the other runs"
        )
    x = log_step(at["step"].values)
    measured = _from_overlaps(choice, text, x, n_experts=n_experts)
    measured |= _from_lookup(choice, text, n_experts=n_experts)
    code = routes.route_codes(choice, n_experts=n_experts)
    measured["settled_chance"] = routes.settled_by_chance(code)
    curves = None
    if loss is not None:
        of_run = loss.sel(run=at["run"], step=at["step"]).compute()
        curves = of_run.transpose("step", "sequence", "pos").values.reshape(len(x), -1)
    return measured | _from_ages(routes.settled_from(code), x, text, curves, chance=chance)


def _from_overlaps(
    choice: NDArray, text: Text, x: NDArray[np.float64], *, n_experts: int
) -> dict[str, NDArray]:
    others, top_k = compared_steps(len(x)), choice.shape[-1]
    earlier = np.stack([np.arange(len(x)) - 1, routes.doubling_before(x)], axis=1)
    sums = (
        *routes.unit_overlaps(choice, text.unit, n_experts=n_experts, others=others),
        routes.overlaps_with(choice, text.unit, earlier),
    )
    measured: dict[str, NDArray] = {}
    for suffix, (common, counts, tokens, before) in (
        ("", [part.sum(axis=0) for part in sums]),
        ("_deleted", [leave_one_out(part) for part in sums]),
    ):
        alike = routes.saturation(common, tokens, top_k=top_k)
        chance = routes.load_chance(counts, tokens, top_k=top_k, others=others)
        previous, doubling = np.moveaxis(routes.saturation(before, tokens, top_k=top_k), -1, 0)
        of_sums = {
            "saturation": alike,
            "chance": chance,
            "kappa": routes.beyond(alike, chance),
            # the first step has none before it
            "saturation_previous": np.where(np.arange(len(x)) > 0, previous, np.nan),
            "chance_previous": routes.chance_with_previous(counts, tokens, top_k=top_k),
            "change_rate": routes.change_rate(doubling, x),
        }
        measured |= {name + suffix: value for name, value in of_sums.items()}
    return measured


def _from_lookup(choice: NDArray, text: Text, *, n_experts: int) -> dict[str, NDArray]:
    n = len(choice)
    step = np.arange(n)
    with_last = np.stack([step, np.full(n, n - 1)], axis=1)
    with_previous = np.stack([np.maximum(step - 1, 0), step], axis=1)
    pairs = np.concatenate([with_last, with_previous])
    found = lookup(choice, text.label, text.unit, pairs, n_experts=n_experts)
    measured: dict[str, NDArray] = {}
    for suffix, repeated, floor in (
        ("", found.repeated, found.floor),
        ("_deleted", found.repeated_deleted, found.floor_deleted),
    ):
        for name, part in (("last", slice(n)), ("previous", slice(n, None))):
            value = floor[..., part].copy()
            above = routes.beyond(repeated[..., part], value)
            if name == "previous":
                value[..., 0] = above[..., 0] = np.nan
            measured |= {f"floor_{name}{suffix}": value, f"beyond_floor_{name}{suffix}": above}
    return measured


def _from_ages(
    settled: NDArray[np.intp],
    x: NDArray[np.float64],
    text: Text,
    curves: NDArray | None,
    *,
    chance: float,
) -> dict[str, NDArray]:
    """Ages of routes, their distribution, and what they go with.

    Parameters
    ----------
    settled : (token), index of the first step of the last route.
    curves : (step, token), losses in nats.
    """
    age, n_units = x[settled], int(text.unit.max()) + 1
    size = np.bincount(text.unit).astype(np.float64)
    # a token settled from a step on counts there and at all later ones
    first = np.bincount(text.unit * len(x) + settled, minlength=n_units * len(x))
    by_step = first.reshape(n_units, -1).cumsum(axis=1)
    cell, shape = text.unit * N_BINS + text.bin, (n_units, N_BINS)
    in_bin, of_bin = (
        np.bincount(cell, weights, minlength=n_units * N_BINS).reshape(shape)
        for weights in (None, age)
    )
    measured: dict[str, NDArray] = {}
    with np.errstate(invalid="ignore", divide="ignore"):
        for name, sums, counts in (
            ("settled", by_step, size[:, None]),
            ("route_age", np.bincount(text.unit, age), size),
            ("age_by_frequency", of_bin, in_bin),
        ):
            measured[name] = sums.sum(axis=0) / counts.sum(axis=0)
            measured[f"{name}_deleted"] = leave_one_out(sums) / leave_one_out(counts)
    columns: list[NDArray] = [age, text.frequency]
    if curves is not None:
        columns += [_loss_age(curves, x, chance=chance), text.target_frequency]
    moments = document_moments(average_ranks(np.stack(columns)), text.unit)
    for suffix, of_units in (("", moments.sum(axis=0)), ("_deleted", leave_one_out(moments))):
        r = fisher_z(pearson_r(of_units))
        measured[f"age_frequency_rho{suffix}"] = r[..., 0, 1]
        if len(columns) > 2:
            measured[f"age_loss_rho{suffix}"] = r[..., 0, 2]
            # the controls, both frequencies, come last
            order = [0, 1, 3, 2, 4]
            ordered = of_units[..., order, :][..., order]
            partial_z = fisher_z(partial_r(ordered, n_controls=2))
            measured[f"age_loss_partial_rho{suffix}"] = partial_z[..., 0, 1]
    return measured


def _loss_age(curves: NDArray, x: NDArray[np.float64], *, chance: float) -> NDArray[np.float64]:
    """Age of acquisition of each loss, after all others where it is not learned; NaN if unknown."""
    if len(x) < 3 or not np.isfinite(curves).all():
        return np.full(curves.shape[1], np.nan)
    learned = milestones(smoothing_matrix(x, penalty=0.03) @ curves, x, chance=chance).age
    return np.where(np.isfinite(learned), learned, x[-1] + 1)
