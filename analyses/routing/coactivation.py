"""Co-activation in the routers of all runs: one layer of one run and step is read at a time."""

from functools import partial
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from analyses.comparison.arm_means import arm_means
from analyses.comparison.runs import run_coordinates
from analyses.comparison.summary import Scale
from analyses.comparison.walk import Progress, mapped
from analyses.reporting.text import labels
from analyses.routing.observed import seen_steps, text_units
from analyses.statistics import coactivation as pairs
from analyses.statistics.pairs import pair_indices
from analyses.statistics.resampling import jackknife


def _root(square: NDArray) -> NDArray[np.float64]:
    """A mean square as a typical size; one below 0, as a debiased one may be, as 0."""
    return np.sqrt(np.maximum(square, 0.0))


ROOT = Scale(_root, _root)
# an unbiased ratio may leave [-1, 1] by its error
_COSINE = Scale(lambda r: np.clip(r, -1.0, 1.0), lambda ci: np.clip(ci, -1.0, 1.0))
MEASURES: dict[str, tuple[str, Scale]] = {
    "spread": ("typical |lift - 1|", ROOT),
    "spread_within": ("typical |lift - 1|, loads kept in each unit of text", ROOT),
    "agreement": ("agreement of lifts with those at the last step", _COSINE),
}
_OF_PAIRS = {
    "pair_count": "tokens that chose both experts",
    "lift": "lift: observed over expected from the loads",
    "lift_within": "lift beyond the loads in each unit of text",
    "z": "z of observed minus expected",
    "z_within": "z beyond the loads in each unit of text",
}


def complete_steps(expert_index: xr.DataArray) -> NDArray[np.intp]:
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
            "runs are compared at steps that all of them observed, and there is none; wait until "
            "the runs got further, or give the paths of runs that have steps in common"
        )
    return common


def coactivations(
    expert_index: xr.DataArray,
    unit: xr.DataArray,
    *,
    n_experts: int,
    n_resamples: int,
    level: float = 0.95,
    progress: Progress = iter,
    dask: str | None = None,
    rng: np.random.Generator,
) -> xr.Dataset:
    """Every measure of `MEASURES` by run, by arm and averaged over layers, and of every pair."""
    units, token_unit = text_units(unit, n_pos=expert_index.sizes["pos"])
    n_runs, n_layers = expert_index.sizes["run"], expert_index.sizes["layer"]
    seed = int(rng.integers(2**32))
    at = partial(_measured, expert_index, token_unit, n_experts, n_resamples, level, seed)
    items = [(run, layer) for run in range(n_runs) for layer in range(n_layers)]
    found = list(mapped(at, items, progress, dask))

    def gathered(name: str) -> NDArray:
        values = np.stack([of_item[name] for of_item in found])
        return values.reshape(n_runs, n_layers, *values.shape[1:])

    dims = ("run", "layer", "step")
    coords: dict[str, Any] = {name: expert_index[name].variable for name in dims}
    runs = run_coordinates(expert_index)
    result = xr.Dataset(coords=dict(runs.coords) | coords | dict(units.coords))
    for name, (long_name, scale) in MEASURES.items():
        estimate = xr.DataArray(gathered(name), dims=dims, coords=coords)
        deleted = xr.DataArray(gathered(f"{name}_deleted"), dims=(*dims, "unit"))
        named: dict[str, Any] = {"scale": scale, "long_name": long_name, "level": level}
        by_layer = arm_means(name, estimate, deleted, runs, **named)
        mean, without = (x.mean("layer", skipna=False) for x in (estimate, deleted))
        overall = arm_means(f"{name}_mean", mean, without, runs, **named)
        overall = overall.drop_vars([f"run_{name}_mean", f"run_{name}_mean_ci"])
        by_layer = by_layer.rename({f"run_{name}": name, f"run_{name}_ci": f"{name}_ci"})
        result = result.merge(by_layer, compat="equals").merge(overall, compat="equals")
    noise = gathered("noise")
    arm = runs["arm"].values
    of_arms = np.stack([noise[arm == name].mean(axis=0) for name in dict.fromkeys(arm)])
    by_noise = labels("typical |lift - 1| from noise alone, if it is not taken off")
    result["noise"] = dims, np.sqrt(noise), by_noise
    result["arm_noise"] = ("each_arm", *dims[1:]), np.sqrt(of_arms), by_noise
    of_layers = np.sqrt(of_arms.mean(axis=1))
    result["arm_noise_mean"] = ("each_arm", "step"), of_layers, by_noise
    ratio = labels("error over units of text, over that if tokens were independent")
    result["error_ratio"] = dims[:2], gathered("error_ratio"), ratio
    return result.merge(_of_pairs(gathered, dims, n_experts=n_experts))


def _of_pairs(gathered: Any, dims: tuple[str, ...], *, n_experts: int) -> xr.Dataset:
    """What is known of every pair of experts."""
    first, second = pair_indices(n_experts)
    data = {
        name: ((*dims, "expert_pair"), gathered(name), labels(title))
        for name, title in _OF_PAIRS.items()
    }
    for name in ("lift", "lift_within"):
        title = labels(f"{_OF_PAIRS[name]}, interval over units of text")
        data[f"{name}_ci"] = (*dims, "expert_pair", "ci_bound"), gathered(f"{name}_ci"), title
    for name in ("p", "p_within"):
        title = labels(f"p of z{name[1:]} at the last step, among all pairs of the layer")
        data[name] = (*dims[:2], "expert_pair"), gathered(name), title
    data["expert_count"] = (
        (*dims, "expert"), gathered("expert_count"), labels("tokens that chose the expert"),
    )  # fmt: skip
    coords = {"first_expert": ("expert_pair", first), "second_expert": ("expert_pair", second)}
    return xr.Dataset(data, coords)


def _measured(
    index: xr.DataArray,
    unit: NDArray[np.intp],
    n_experts: int,
    n_resamples: int,
    level: float,
    seed: int,
    item: tuple[int, int],
) -> dict[str, NDArray]:
    """All steps of one run and layer, the last one first, as all others are compared with it."""
    at, rng = index.isel(run=item[0], layer=item[1]), np.random.default_rng([seed, *item])
    n_steps, top_k = at.sizes["step"], at.sizes["top_k"]
    known: dict[str, Any] = {}
    last: NDArray | None = None
    steps: list[dict[str, Any]] = []
    for step in range(n_steps - 1, -1, -1):
        of_step = at.isel(step=step).compute().transpose("sequence", "pos", "top_k")
        choice = of_step.values.reshape(-1, top_k)
        if (choice < 0).any():
            raise ValueError(
                f"layer {int(at['layer'])} of run {at['run'].item()!r} lacks choices at step "
                f"{int(at['step'][step]):,}; pairs are known only if all choices of a token are: "
                "give the paths of the other runs"
            )
        counts = pairs.unit_counts(choice, unit, n_experts=n_experts)
        loads = pairs.beyond_loads(counts, top_k=top_k)
        within = pairs.beyond_unit_loads(counts, top_k=top_k)
        scaled = pairs.scaled_excess(loads)
        if last is None:
            last = scaled
            known = _at_last(choice, unit, loads, within, n_experts, n_resamples, rng)
        steps.append(
            _pair_values(counts, loads, within, level=level)
            | _summaries(scaled, last, pairs.scaled_excess(within), counts.tokens)
        )
    return known | {name: np.stack([of[name] for of in steps[::-1]]) for name in steps[0]}


def _at_last(
    choice: NDArray,
    unit: NDArray[np.intp],
    loads: pairs.Excess,
    within: pairs.Excess,
    n_experts: int,
    n_resamples: int,
    rng: np.random.Generator,
) -> dict[str, Any]:
    """p-values, and how much larger errors are than if tokens were independent."""
    shuffled = pairs.unit_counts(rng.permutation(choice), unit, n_experts=n_experts)
    independent = pairs.beyond_loads(shuffled, top_k=choice.shape[1])
    error, if_independent = (
        np.sqrt((pairs.standard_error(x) ** 2).sum()) for x in (loads, independent)
    )
    return {
        "p": pairs.largest_p(loads, n_resamples=n_resamples, rng=rng),
        "p_within": pairs.largest_p(within, n_resamples=n_resamples, rng=rng),
        "error_ratio": error / if_independent if if_independent > 0 else np.nan,
    }


def _pair_values(
    counts: pairs.Counts, loads: pairs.Excess, within: pairs.Excess, *, level: float
) -> dict[str, NDArray]:
    values: dict[str, NDArray] = {
        "pair_count": loads.observed,
        "expert_count": counts.experts.sum(axis=0),
    }
    for suffix, excess in (("", loads), ("_within", within)):
        lift = pairs.lift(excess)
        ci = jackknife(lift, excess.lift_deleted, level=level).ci
        values |= {
            f"lift{suffix}": lift,
            f"lift{suffix}_ci": np.maximum(ci, 0.0),
            f"z{suffix}": pairs.z_score(excess),
        }
    return values


def _summaries(
    scaled: NDArray, last: NDArray, within: NDArray, tokens: NDArray
) -> dict[str, NDArray | float]:
    """Mean squares, their noise, and the cosine with the last step, each without each unit."""
    own, own_within, own_last, cross = (
        pairs.unbiased_product(a, b, tokens)
        for a, b in ((scaled, scaled), (within, within), (last, last), (scaled, last))
    )
    found: dict[str, NDArray | float] = {"noise": pairs.noise(scaled, tokens)}
    for suffix in ("", "_deleted"):
        part = "deleted" if suffix else "estimate"
        found[f"spread{suffix}"] = getattr(own, part)
        found[f"spread_within{suffix}"] = getattr(own_within, part)
        squares = np.maximum(getattr(own, part), 0) * np.maximum(getattr(own_last, part), 0)
        norm = np.sqrt(np.where(squares > 0, squares, np.nan))
        found[f"agreement{suffix}"] = getattr(cross, part) / norm
    return found
