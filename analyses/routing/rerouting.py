"""Routes with the last step's router or representation, against the last routes.

`python -m models.reroute` routes every token anew at each step c, with one of the two taken from
the last step. Saturation with the last step then tells what the other one alone changed.
"""

from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from analyses.comparison.arm_means import arm_means
from analyses.comparison.runs import run_coordinates
from analyses.comparison.summary import Scale
from analyses.reporting.text import labels
from analyses.routing.observed import text_units
from analyses.statistics.resampling import leave_one_out
from analyses.statistics.saturation import overlap
from store.study import Study

_SHARE = Scale(np.asarray, lambda ci: np.clip(ci, 0.0, 1.0))
# name: its label, by what is compared with the last routes
AGAINST_LAST: dict[str, str] = {
    "as_it_was": "share of the last choices, router and representation of the step",
    "representation_alone": "share of the last choices, the last router on the step's input",
    "router_alone": "share of the last choices, the step's router on the last input",
}
_STORED = {
    "representation_alone": "expert_index_last_router",
    "router_alone": "expert_index_last_representation",
}


def recorded_rerouting(study: Study) -> xr.Dataset | None:
    """Group `rerouted` of the runs that have it at two steps or more, lazily; None if none has."""
    names = [
        run.name
        for run in study.runs
        if "rerouted" in run.groups and len(run.committed_in("rerouted")) > 1
    ]
    if not names:
        return None
    found = study.dataset("rerouted").sel(run=names)
    runs, arms = found["run"].values.astype(str), found["arm"].values.astype(str)
    return found.isel(run=np.lexsort([runs, arms]))


def against_last(
    expert_index: xr.DataArray,
    rerouted: xr.Dataset,
    unit: xr.DataArray,
    *,
    n_experts: int,
    level: float = 0.95,
) -> xr.Dataset:
    """What the representation alone, and the router alone, change of a route up to the last step.

    Routes of one run, step and layer are held at a time.

    Parameters
    ----------
    expert_index : DataArray (run, step, layer, sequence, pos, top_k) of at least the same runs and
        steps, the last of which is compared with.
    rerouted : Dataset with `expert_index_last_router` and `expert_index_last_representation`, of
        the same dimensions; -1 where not routed anew.
    unit : DataArray (sequence), name of the unit of text of each sequence of `rerouted`.
    n_experts : N.
    level : coverage of the intervals.

    Returns
    -------
    Dataset
        For each x of `AGAINST_LAST` `run_x (step, layer, run)` and `arm_x (each_arm, step, layer)`,
        with `_ci` over units and `_run_ci` over runs, and the same averaged over layers,
        `arm_x_mean (each_arm, step)`; NaN where not routed anew. `even_chance`, k/N. Coordinates
        `unit` and `n_tokens (unit)`.
    """
    units, token_unit = text_units(unit, n_pos=rerouted.sizes["pos"])
    places = {dim: rerouted[dim].values for dim in ("sequence", "pos")}
    index = expert_index.isel(
        {dim: expert_index.get_index(dim).get_indexer(at) for dim, at in places.items()}
    )
    runs = run_coordinates(rerouted)
    sizes = {dim: rerouted.sizes[dim] for dim in ("step", "layer", "run")}
    tokens, top_k = np.bincount(token_unit), rerouted.sizes["top_k"]
    sums = {name: np.full((len(tokens), *sizes.values()), np.nan) for name in AGAINST_LAST}
    for r, at in np.ndindex(sizes["run"], sizes["layer"]):
        place = {"run": rerouted["run"].values[r], "layer": rerouted["layer"].values[at]}
        own = index.sel(place)
        last = _routes(own.isel(step=-1))
        for s, step in enumerate(rerouted["step"].values):
            routed = {
                name: _routes(rerouted[stored].isel(step=s).sel(place))
                for name, stored in _STORED.items()
            }
            if any((route < 0).any() for route in routed.values()):
                continue
            routed["as_it_was"] = _routes(own.sel(step=step))
            for name, route in routed.items():
                common = overlap(route, last) / top_k
                sums[name][:, s, at, r] = np.bincount(token_unit, common, len(tokens))
    result = xr.Dataset(coords=dict(units.coords))
    for name, long_name in AGAINST_LAST.items():
        means = sums[name].sum(axis=0) / tokens.sum()
        left = leave_one_out(sums[name]) / leave_one_out(tokens)[:, None, None, None]
        dims = ("step", "layer", "run")
        coords = {dim: rerouted[dim].values for dim in ("step", "layer")}
        estimate = xr.DataArray(means, dims=dims, coords=coords)
        deleted = xr.DataArray(left, dims=("unit", *dims))
        options: dict[str, Any] = {"scale": _SHARE, "long_name": long_name, "level": level}
        average, without = (x.mean("layer", skipna=False) for x in (estimate, deleted))
        by_layer = arm_means(name, estimate, deleted, runs, **options)
        mean = arm_means(f"{name}_mean", average, without, runs, **options)
        result = result.merge(by_layer, compat="override").merge(mean, compat="override")
    result["even_chance"] = (), top_k / n_experts, labels("k/N")
    return result.assign_coords(runs.coords)


def _routes(of_place: xr.DataArray) -> NDArray:
    """(token, top_k)"""
    values = of_place.transpose("sequence", "pos", "top_k").values
    return values.reshape(-1, values.shape[-1])
