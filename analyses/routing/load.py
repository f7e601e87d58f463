"""Load and uncertainty of the routers of all runs: what is read once for a run and a step."""

from functools import partial
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from analyses.comparison.arm_means import arm_means
from analyses.comparison.controls import Controls
from analyses.comparison.runs import run_coordinates
from analyses.comparison.summary import PLAIN, R, Scale
from analyses.comparison.walk import Progress, mapped
from analyses.reporting.text import labels
from analyses.routing.observed import text_units
from analyses.statistics import load as balance
from analyses.statistics.permutation import permutation_p
from analyses.statistics.resampling import jackknife, leave_one_out
from analyses.statistics.router_entropy import decomposition, loss_relation, uncertainty
from analyses.statistics.routing import document_choices, effective_experts, load

AT_LEAST_0 = Scale(np.asarray, lambda ci: np.maximum(ci, 0.0))
UNIT = Scale(np.asarray, lambda ci: np.clip(ci, 0.0, 1.0))
# name: label, unit, and the scale that keeps an interval inside what is possible
MEASURES: dict[str, tuple[str, str, Scale]] = {
    "fair_index": ("fair index of load", "1", UNIT),
    "effective_experts": ("effective experts", "1", PLAIN),
    "max_violation": ("MaxVio: busiest expert above its even share", "1", AT_LEAST_0),
    "gini": ("Gini coefficient of load", "1", UNIT),
    "router_entropy": ("H(mean r), entropy of the router's mean distribution", "nat", AT_LEAST_0),
    "token_entropy": ("mean H(r), the router's entropy at a token", "nat", AT_LEAST_0),
    "token_information": ("I(token; expert)", "nat", AT_LEAST_0),
    "margin": ("margin of the first over the second probability", "1", UNIT),
    "entropy_loss_r": ("Pearson's r of router entropy and loss", "1", R),
    "entropy_loss_rho": ("Spearman's rho of router entropy and loss", "1", R),
    "entropy_loss_partial_r": ("partial r of router entropy and loss", "1", R),
}
WITH_NULL = ("fair_index", "max_violation", "gini")


def load_and_entropy(
    routing: xr.Dataset,
    unit: xr.DataArray,
    *,
    loss: xr.DataArray | None,
    controls: Controls,
    n_resamples: int,
    level: float = 0.95,
    progress: Progress = iter,
    dask: str | None = None,
    rng: np.random.Generator,
) -> xr.Dataset:
    """Every measure of `MEASURES`, by run, by arm and averaged over layers."""
    routing = routing.transpose("run", "step", "layer", "sequence", "pos", ...)
    units, token_unit = text_units(unit, n_pos=routing.sizes["pos"])
    at = partial(_measured, routing, loss, controls.columns, token_unit, n_resamples, _seed(rng))
    n_runs, n_steps = routing.sizes["run"], routing.sizes["step"]
    items = [(run, step) for run in range(n_runs) for step in range(n_steps)]
    found = list(mapped(at, items, progress, dask))

    def gathered(name: str) -> NDArray:
        values = np.stack([of_item[name] for of_item in found])
        return values.reshape(n_runs, n_steps, *values.shape[1:])

    dims = ("run", "step", "layer")
    coords = {name: routing[name].variable for name in ("run", "step", "layer")}
    runs = run_coordinates(routing)
    result = xr.Dataset(coords=dict(runs.coords) | coords | dict(units.coords))
    for name, (long_name, title_unit, scale) in MEASURES.items():
        if name not in found[0]:
            continue
        estimate = xr.DataArray(gathered(name), dims=dims, coords=coords)
        deleted = xr.DataArray(gathered(f"{name}_deleted"), dims=(*dims, "unit"))
        if name == "effective_experts":
            most, least = routing.sizes["expert"], routing.sizes["top_k"]
            scale = Scale(np.asarray, partial(np.clip, a_min=least, a_max=most))
        named: dict[str, Any] = {
            "scale": scale,
            "long_name": long_name,
            "units": title_unit,
            "level": level,
        }
        by_layer = arm_means(name, estimate, deleted, runs, **named)
        mean, without = (x.mean("layer", skipna=False) for x in (estimate, deleted))
        overall = arm_means(f"{name}_mean", mean, without, runs, **named)
        overall = overall.drop_vars([f"run_{name}_mean", f"run_{name}_mean_ci"])
        by_layer = by_layer.rename({f"run_{name}": name, f"run_{name}_ci": f"{name}_ci"})
        result = result.merge(by_layer, compat="equals").merge(overall, compat="equals")
        if name in WITH_NULL:
            null = gathered(f"{name}_null")
            result = result.merge(_beside_null(result[name], null, level=level))
    return result.merge(_experts(gathered("load"), gathered("load_deleted"), level=level))


def _measured(
    routing: xr.Dataset,
    loss: xr.DataArray | None,
    controls: NDArray[np.float64],
    unit: NDArray[np.intp],
    n_resamples: int,
    seed: int,
    item: tuple[int, int],
) -> dict[str, NDArray]:
    """All layers of one run and step; a layer with a choice missing is NaN throughout."""
    at, rng = routing.isel(run=item[0], step=item[1]), np.random.default_rng([seed, *item])
    layers, entropies = [], []
    for layer in range(at.sizes["layer"]):
        of_token, measured = _of_layer(at.isel(layer=layer), unit, n_resamples, rng)
        entropies.append(of_token)
        layers.append(measured)
    together = {name: np.stack([of_layer[name] for of_layer in layers]) for name in layers[0]}
    if loss is not None:
        values = loss.sel(run=at["run"], step=at["step"]).transpose("sequence", "pos").values
        related = loss_relation(np.stack(entropies), values.ravel(), unit, controls=controls)
        for name, (estimate, deleted) in related.items():
            together |= {name: estimate, f"{name}_deleted": deleted.T}
    return together


def _of_layer(
    at: xr.Dataset, unit: NDArray[np.intp], n_resamples: int, rng: np.random.Generator
) -> tuple[NDArray[np.float64], dict[str, NDArray]]:
    """Entropy of each token, and all measures that need no loss."""
    choice = at["expert_index"].values.reshape(len(unit), -1)
    prob = at["router_prob"].values.reshape(len(unit), -1)
    top_k, n_experts = choice.shape[1], prob.shape[1]
    missing = (choice < 0).any()
    counts = document_choices(np.where(missing, 0, choice), unit, n_experts=n_experts)
    null = balance.renamed_counts(counts, n_resamples=n_resamples, rng=rng)
    sure = uncertainty(np.where(missing, 1.0, prob) if missing else prob, unit)
    measured: dict[str, NDArray] = {}
    for suffix, of_counts, sums in (
        ("", counts.sum(axis=0), sure.sums.sum(axis=0)),
        ("_deleted", leave_one_out(counts), leave_one_out(sure.sums)),
        ("_null", null, None),
    ):
        of_load = {
            "fair_index": balance.fair_index(of_counts, top_k=top_k),
            "max_violation": balance.max_violation(of_counts),
            "gini": balance.gini(of_counts),
        }
        if sums is not None:
            of_load |= {"effective_experts": effective_experts(of_counts), "load": load(of_counts)}
            of_load |= decomposition(sums)
        measured |= {name + suffix: value for name, value in of_load.items()}
    if missing:
        nowhere = {name: np.full_like(value, np.nan) for name, value in measured.items()}
        return np.full(len(unit), np.nan), nowhere
    return sure.entropy, measured


def _beside_null(observed: xr.DataArray, null: NDArray, *, level: float) -> xr.Dataset:
    """A measure of load under renamed experts: draws, mean, band, and p of less even load."""
    name, title = str(observed.name), observed.attrs["long_name"]
    dims, tails = observed.dims, [(1 - level) / 2, (1 + level) / 2]
    band = np.moveaxis(np.quantile(null, tails, axis=-1), 0, -1)
    sign = -1 if name == "fair_index" else 1
    p = permutation_p(sign * observed.values, sign * np.moveaxis(null, -1, 0))
    by_chance = labels(f"{title}, experts renamed in each unit of text")
    return xr.Dataset(
        {
            f"{name}_null": ((*dims, "resample"), null, by_chance),
            f"{name}_null_mean": (dims, null.mean(axis=-1), by_chance),
            f"{name}_null_band": ((*dims, "ci_bound"), band, by_chance),
            f"{name}_p": (dims, p, labels(f"p of {title}")),
        }
    )


def _experts(share: NDArray, deleted: NDArray, *, level: float) -> xr.Dataset:
    """Load of each expert, and how many are dead or starved.

    The ends of the interval of a number of starved experts are how many have all, and how many
    have any, of the interval of their load below the limit.
    """
    dims = ("run", "step", "layer")
    ci = jackknife(share, np.moveaxis(deleted, 3, 0), level=level).ci
    low, high = np.moveaxis(ci, -1, 0)
    there = np.isfinite(share).all(axis=-1)
    number = [balance.starved_experts(x) for x in (share, high, low)]
    dead = balance.dead_experts(share)
    starved, surely, perhaps = (np.where(there, n, np.nan) for n in number)
    return xr.Dataset(
        {
            "load": ((*dims, "expert"), share, labels("load: share of choices")),
            "load_ci": ((*dims, "expert", "ci_bound"), np.clip(ci, 0, 1), labels("of load")),
            "dead_experts": (dims, np.where(there, dead, np.nan), labels("dead experts")),
            "starved_experts": (dims, starved, labels("starved experts")),
            "starved_experts_ci": (
                (*dims, "ci_bound"), np.stack([surely, perhaps], axis=-1),
                labels("starved experts, interval over units of text"),
            ),
        }
    )  # fmt: skip


def _seed(rng: np.random.Generator) -> int:
    """From which every run and step draws for itself, wherever it is computed."""
    return int(rng.integers(2**32))
