"""Repetition of experts along the text, of all runs: one run, step and layer is held at a time."""

from functools import partial
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from analyses.comparison.arm_means import arm_means
from analyses.comparison.runs import run_coordinates
from analyses.comparison.summary import PLAIN, Scale
from analyses.comparison.walk import Progress, mapped
from analyses.routing.observed import seen_steps, text_units
from analyses.statistics.locality import lags, load_chance, repetitions
from analyses.statistics.resampling import leave_one_out

ALL, OTHER = "all", "of two token ids"
SHARE = Scale(np.asarray, lambda ci: np.clip(ci, 0.0, 1.0))
_OF_PAIRS = ("choice", "pairs")
# name: dimensions beyond run, (step) and layer, label, scale of the interval
MEASURES: dict[str, tuple[tuple[str, ...], str, Scale]] = {
    "repetition": (_OF_PAIRS, "share of next tokens with the same expert", SHARE),
    "text_chance": (_OF_PAIRS, "the same in any other order of the sequence", SHARE),
    "beyond_text": (_OF_PAIRS, "repetition beyond the loads of the sequence", PLAIN),
    "load_chance": (("choice",), "repetition by chance, given the loads", SHARE),
    "beyond_load": (("choice",), "repetition beyond the loads", PLAIN),
}
BY_LAG = {
    f"lag_{name}": ((*_OF_PAIRS, "lag"), f"{title}, at a lag", scale)
    for name, (_, title, scale) in MEASURES.items()
    if name in ("repetition", "text_chance", "beyond_text")
}


def common_steps(expert_index: xr.DataArray) -> NDArray[np.intp]:
    """Indices of the steps that all runs observed.

    Parameters
    ----------
    expert_index : DataArray (run, step, layer, sequence, pos, top_k), -1 where not observed.

    Raises
    ------
    ValueError
        If there is none.
    """
    seen = seen_steps(expert_index)
    common = np.flatnonzero(seen.all(axis=0))
    if not len(common):
        raise ValueError(
            f"no step was observed by all of {len(seen)} runs; wait until the runs got further, "
            "or give the paths of runs that have steps in common"
        )
    return common


def whole_choices(at: xr.DataArray) -> NDArray[np.int64]:
    """Choices of one run, step and layer, (sequence, pos, top_k).

    Raises
    ------
    ValueError
        If some are missing.
    """
    choice = at.transpose("sequence", "pos", "top_k").values.astype(np.int64)
    if (choice < 0).any():
        raise ValueError(
            f"layer {int(at['layer'])} of run {at['run'].item()!r} lacks choices of some tokens at "
            f"step {int(at['step']):,}; give the paths of the other runs"
        )
    return choice


def layer_means(
    name: str, estimate: xr.DataArray, deleted: xr.DataArray, runs: xr.Dataset, **options: Any
) -> xr.Dataset:
    """`arm_means` of a measure x by layer, with `x` and `x_ci` of runs, and of its layer mean.

    Parameters
    ----------
    estimate, deleted : DataArray (run, layer, ...), and with `unit`, as for `arm_means`.
    options : as for `arm_means`.

    Returns
    -------
    Dataset
        `x`, `x_ci`, `arm_x`, `arm_x_ci`, `arm_x_run_ci`, and these last three of `x_mean`.
    """
    by_layer = arm_means(name, estimate, deleted, runs, **options)
    mean, without = (values.mean("layer", skipna=False) for values in (estimate, deleted))
    overall = arm_means(f"{name}_mean", mean, without, runs, **options)
    overall = overall.drop_vars([f"run_{name}_mean", f"run_{name}_mean_ci"])
    by_layer = by_layer.rename({f"run_{name}": name, f"run_{name}_ci": f"{name}_ci"})
    return by_layer.merge(overall, compat="equals")


def locality(
    expert_index: xr.DataArray,
    token: xr.DataArray,
    unit: xr.DataArray,
    *,
    n_experts: int,
    level: float = 0.95,
    progress: Progress = iter,
    dask: str | None = None,
) -> xr.Dataset:
    """Every measure of `MEASURES` at lag 1 and all steps, and of `BY_LAG` at the last step."""
    index = expert_index.transpose("run", "step", "layer", "sequence", "pos", "top_k")
    units, token_unit = text_units(unit, n_pos=index.sizes["pos"])
    of_sequence = token_unit[:: index.sizes["pos"]]
    ids = token.transpose("sequence", "pos").values
    lag = lags(index.sizes["pos"])
    n_runs, n_steps = index.sizes["run"], index.sizes["step"]
    items = [(run, step) for run in range(n_runs) for step in range(n_steps)]
    at = partial(_measured, index, ids, of_sequence, lag, n_experts)
    found = list(mapped(at, items, progress, dask))
    choices = ["first", "any"][: 1 if index.sizes["top_k"] == 1 else 2]
    runs = run_coordinates(index)
    coords: dict[str, Any] = {n: index[n].variable for n in ("run", "step", "layer")}
    coords |= {"choice": choices, "pairs": [ALL, OTHER], "lag": lag}
    result = xr.Dataset(coords=dict(runs.coords) | coords | dict(units.coords))
    result["lag"].attrs = {"long_name": "tokens between the two", "units": "1"}
    at_last, described = found[n_steps - 1 :: n_steps], []
    for name, (dims, long_name, scale) in (MEASURES | BY_LAG).items():
        outer: tuple[str, ...] = ("run", "step", "layer")
        parts = found
        shape: tuple[int, ...] = (n_runs, n_steps)
        if name in BY_LAG:
            outer, parts, shape = ("run", "layer"), at_last, (n_runs,)
        values, draws = (
            _gathered([of_item[f"{name}{suffix}"] for of_item in parts], shape)
            for suffix in ("", "_deleted")
        )
        own = {dim: coords[dim] for dim in (*outer, *dims)}
        estimate = xr.DataArray(values, dims=(*outer, *dims), coords=own)
        # from (run, step, layer, unit, ...)
        deleted = xr.DataArray(draws, dims=(*outer, "unit", *dims))
        means = layer_means(
            name, estimate, deleted, runs, scale=scale, long_name=long_name, level=level
        )
        described.append(means)
    return xr.merge([result, *described], compat="equals", join="exact")


def _gathered(parts: list[NDArray], shape: tuple[int, ...]) -> NDArray[np.float64]:
    return np.stack(parts).reshape(*shape, *parts[0].shape)


def _measured(
    index: xr.DataArray,
    token: NDArray,
    of_sequence: NDArray[np.intp],
    lag: list[int],
    n_experts: int,
    item: tuple[int, int],
) -> dict[str, NDArray]:
    """Each layer of one run and step: estimates (layer, ...), and (layer, unit, ...) without it."""
    run, step = item
    own = lag if step == index.sizes["step"] - 1 else lag[:1]
    layers = []
    for layer in range(index.sizes["layer"]):
        choice = whole_choices(index.isel(run=run, step=step, layer=layer))
        layers.append(_of_layer(choice, token, of_sequence, own, n_experts=n_experts))
    return {name: np.stack([of_layer[name] for of_layer in layers]) for name in layers[0]}


def _of_layer(
    choice: NDArray[np.int64],
    token: NDArray,
    of_sequence: NDArray[np.intp],
    lag: list[int],
    *,
    n_experts: int,
) -> dict[str, NDArray]:
    n_units, top_k = int(of_sequence.max()) + 1, choice.shape[-1]
    sums = []
    for values in repetitions(choice, token, lag, n_experts=n_experts):
        of_units = np.zeros((n_units, *values.shape[1:]))
        np.add.at(of_units, of_sequence, values)
        sums.append(of_units)
    taken = [choice[..., :1], choice][: 1 if top_k == 1 else 2]
    counts = [_unit_counts(part, of_sequence, n_units, n_experts) for part in taken]
    found: dict[str, NDArray] = {}
    for suffix, summed in (("", _total), ("_deleted", leave_one_out)):
        agree, expected, pairs = map(summed, sums)
        with np.errstate(invalid="ignore", divide="ignore"):
            repeated, in_text = (x / pairs[..., None, :, :] for x in (agree, expected))
        by_load = np.stack(
            [
                load_chance(summed(of_units), top_k=part.shape[-1])
                for of_units, part in zip(counts, taken, strict=True)
            ],
            axis=-1,
        )
        by_lag = {
            "repetition": repeated, "text_chance": in_text, "beyond_text": repeated - in_text,
        }  # fmt: skip
        found |= {f"{name}{suffix}": values[..., 0] for name, values in by_lag.items()}
        found |= {f"lag_{name}{suffix}": values for name, values in by_lag.items()}
        found[f"load_chance{suffix}"] = by_load
        found[f"beyond_load{suffix}"] = repeated[..., 0, 0] - by_load
    return found


def _total(sums: NDArray) -> NDArray:
    return sums.sum(axis=0)


def _unit_counts(
    choice: NDArray[np.int64], of_sequence: NDArray[np.intp], n_units: int, n_experts: int
) -> NDArray[np.float64]:
    """Choices of each expert in each unit, (unit, expert)."""
    code = of_sequence[:, None, None] * n_experts + choice
    counts = np.bincount(code.ravel(), minlength=n_units * n_experts)
    return counts.reshape(n_units, n_experts).astype(np.float64)
