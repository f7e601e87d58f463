"""Outputs of all experts of a layer compared, one layer and step at a time, beside a dense MLP."""

from collections.abc import Mapping
from functools import partial
from itertools import combinations
from typing import Any, NamedTuple

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from analyses.comparison.arm_means import arm_means
from analyses.comparison.summary import LOG, R, Scale
from analyses.comparison.walk import Progress, mapped
from analyses.reporting.text import labels
from analyses.representation.dense_mlp import WithDense, dense_summary, with_dense
from analyses.statistics.correlation import fisher_z
from analyses.statistics.expert_outputs import (
    Measured,
    effective_ranks,
    log_norms,
    mean_cosine,
    own_token_ratios,
)
from analyses.statistics.minibatch_cka import (
    Grams,
    Preprocessing,
    batches,
    cka_from,
    cka_of_all,
    gram_features,
    hsic_table,
    hsic_without_each_unit,
    normalised,
    permuted,
)

# name: label, scale of the interval
MEASURES: dict[str, tuple[str, Scale]] = {
    "cka": ("CKA of two experts", R),
    "cka_raw": ("CKA of two experts, raw", R),
    "cka_either": ("CKA of two experts, tokens that chose either", R),
    "cosine": ("cosine of two experts at the same token", R),
    "participation": ("participation ratio", LOG),
    "effective_rank": ("effective rank", LOG),
    "norm": ("root mean square norm", LOG),
    "own_ratio": ("norm at own tokens over others", LOG),
    "own_contrast": ("the same beyond other experts", LOG),
}
CHANCE = {
    "cka_chance": "CKA of two experts, units of text exchanged",
    "cosine_chance": "cosine of two experts, units of text exchanged",
}
MOST_PAIRS = 120
_LARGEST_BATCH = 250


class Tokens(NamedTuple):
    """The tokens at which experts were run, and how they are dealt into batches.

    Attributes
    ----------
    unit : (token)
    batches : positions of tokens, at most one of each unit.
    permutation : (unit), which exchanges units.
    seed : of what is dealt anew for the tokens of two experts.
    """

    unit: NDArray[np.intp]
    batches: list[NDArray[np.intp]]
    permutation: NDArray[np.intp]
    seed: int


def dealt(unit: NDArray[np.intp], rng: np.random.Generator) -> Tokens:
    """Batches of the tokens.

    Parameters
    ----------
    unit : (token), integer labels from 0.

    Raises
    ------
    ValueError
        With fewer than four units.
    """
    of_all = batches(unit, largest=_LARGEST_BATCH, rng=rng)
    permutation = rng.permutation(int(unit.max()) + 1)
    return Tokens(unit, _largest(of_all), permutation, int(rng.integers(2**31)))


def compared(
    outputs: Mapping[str, xr.DataArray],
    chosen: Mapping[str, xr.DataArray],
    dense: Mapping[str, xr.Dataset],
    tokens: Tokens,
    runs: xr.Dataset,
    *,
    step: NDArray[np.int64],
    layer: NDArray[np.int64],
    level: float,
    progress: Progress = iter,
    dask: str | None = None,
) -> xr.Dataset:
    """Every measure of `MEASURES` by run and arm, and averaged over layers; CKA with dense MLPs.

    Parameters
    ----------
    outputs : for each MoE run (step, layer, expert, sequence, pos, d_model).
    chosen : for each (step, layer, sequence, pos, top_k), of the same places.
    dense : for each dense run `mlp_out (step, layer, sequence, pos, d_model)`, of the same places,
        or `resid_mid` and `resid_post`, whose difference it is.
    runs : coordinates on `run`: of the dense runs, then of the others.
    step, layer : where; a run that lacks one is NaN there.
    """
    shape, n_runs = (len(step), len(layer)), len(runs["run"])
    items = [(s, at) for s in step.tolist() for at in layer.tolist()]
    at_place = partial(_compared_at, outputs, chosen, dense, tokens)
    found = list(mapped(at_place, items, progress, dask))
    result = xr.Dataset(
        coords=dict(runs.coords) | {"step": step, "layer": layer, "ci_bound": ["lower", "upper"]}
    )

    def gathered(name: str, part: int) -> NDArray:
        values = np.stack([at[name][part] for at in found])
        return values.reshape(*shape, *values.shape[1:])

    for name, (long_name, scale) in MEASURES.items():
        estimate = xr.DataArray(gathered(name, 0), dims=("step", "layer", "run"))
        deleted = xr.DataArray(gathered(name, 1), dims=("step", "layer", "unit", "run"))
        estimate, deleted = (x.assign_coords(step=step, layer=layer) for x in (estimate, deleted))
        options: dict[str, Any] = {"scale": scale, "long_name": long_name, "level": level}
        mean, without = (x.mean("layer", skipna=False) for x in (estimate, deleted))
        parts = (
            arm_means(name, estimate, deleted, runs, **options),
            arm_means(f"{name}_mean", mean, without, runs, **options),
        )
        for part in parts:
            result = result.merge(part, compat="override")
    compared_with = [
        np.stack([getattr(at["dense"], part) for at in found]) for part in WithDense._fields
    ]
    beside = WithDense(*(part.reshape(*shape, *part.shape[1:]) for part in compared_with))
    result = result.merge(dense_summary(beside, runs, level=level))
    dims = ("step", "layer", "run")
    for name, long_name in CHANCE.items():
        chance = xr.DataArray(gathered(name, 0), dims=dims, attrs=labels(long_name))
        result[name] = chance.transpose("run", ...)
    n_experts = max((of_run.sizes["expert"] for of_run in outputs.values()), default=0)
    pairs = np.full((n_runs, *shape, n_experts, n_experts), np.nan)
    for i, at in enumerate(found):
        for run, table in at["pairs"].items():
            n = len(table)
            where = int(np.flatnonzero(runs["run"].values.astype(str) == run)[0])
            pairs[where, i // shape[1], i % shape[1], :n, :n] = table
    result["cka_of_experts"] = (
        ("run", "step", "layer", "expert", "other_expert"), pairs, labels("CKA of two experts"),
    )  # fmt: skip
    return result


def _compared_at(
    outputs: Mapping[str, xr.DataArray],
    chosen: Mapping[str, xr.DataArray],
    dense: Mapping[str, xr.Dataset],
    tokens: Tokens,
    place: tuple[int, int],
) -> dict[str, Any]:
    """All runs at one step and layer: of each measure (run) and (unit, run), inner scale."""
    n_units = len(tokens.permutation)
    columns: list[dict[str, Measured]] = []
    tables: dict[str, NDArray] = {}
    of_dense: dict[int, Grams] = {}
    for i, sites in enumerate(dense.values()):
        found: dict[str, Measured] = {}
        if (x := _dense_at(sites, place)) is not None:
            x = x.reshape(1, -1, x.shape[-1])
            found = _sizes(x, tokens)
            if (grams := _grams(x[0], tokens.batches, "rows")) is not None:
                of_dense[i] = grams
        columns.append(found)

    def beside(grams: list[Grams], others: dict[int, Grams]) -> WithDense:
        return with_dense(grams, others, n_dense=len(dense), permutation=tokens.permutation,
                          batches=tokens.batches, unit=tokens.unit)  # fmt: skip

    with_others = [
        beside([of_dense[i]], {j: g for j, g in of_dense.items() if j != i})
        if i in of_dense else beside([], {})
        for i in range(len(dense))
    ]  # fmt: skip
    for run, of_run in outputs.items():
        found = {}
        grams_of_run: list[Grams] = []
        if (x := _at(of_run, place)) is not None:
            x = x.reshape(len(x), -1, x.shape[-1])
            index = _at(chosen[run], place)
            assert index is not None
            found, table, grams_of_run = _of_experts(x, index.reshape(-1, index.shape[-1]), tokens)
            tables[run] = table
        columns.append(found)
        with_others.append(beside(grams_of_run, of_dense if grams_of_run else {}))
    nothing = Measured(np.asarray(np.nan), np.full(n_units, np.nan))
    dense_parts = (np.stack(part, axis=-2) for part in zip(*with_others, strict=True))
    gathered: dict[str, Any] = {"pairs": tables, "dense": WithDense(*dense_parts)}
    for name in (*MEASURES, *CHANCE):
        measured = [column.get(name, nothing) for column in columns]
        gathered[name] = (
            np.array([float(m.estimate) for m in measured]),
            np.stack([m.deleted for m in measured], axis=1),
        )
    return gathered


def _of_experts(
    output: NDArray, index: NDArray, tokens: Tokens
) -> tuple[dict[str, Measured], NDArray[np.float64], list[Grams]]:
    """Measures of the experts of one layer, CKA of each two, and Gram matrices of scaled outputs.

    Parameters
    ----------
    output : (expert, token, feature)
    index : (token, top_k)
    """
    found = _sizes(output, tokens)
    z_of, tables = {}, {}
    for name, how in (("cka", "rows"), ("cka_raw", "raw")):
        grams = [_grams(x, tokens.batches, how) for x in output]  # type: ignore[arg-type]
        usable = [g for g in grams if g is not None]
        if len(usable) < 2:
            continue
        totals = hsic_table(usable).sum(axis=-1)
        without = hsic_without_each_unit(usable, batches=tokens.batches, unit=tokens.unit)
        z_of[name] = _mean_of_pairs(cka_of_all(totals), np.moveaxis(cka_of_all(without), -1, 0))
        tables[name] = (grams, cka_of_all(totals))
        if how == "rows":
            z_of["cka_chance"] = _exchanged(usable, totals, tokens)
    chosen = (index[None] == np.arange(len(output))[:, None, None]).any(axis=-1)
    z_of["cka_either"] = _either(output, chosen, tokens)
    cosine, chance = mean_cosine(output, tokens.unit)
    z_of["cosine"] = Measured(fisher_z(cosine.estimate), fisher_z(cosine.deleted))
    z_of["cosine_chance"] = Measured(np.asarray(chance), np.full_like(cosine.deleted, np.nan))
    norm, _ = log_norms(output, tokens.unit)
    ratios = own_token_ratios(norm, chosen, tokens.unit)
    for i, name in enumerate(("own_ratio", "own_contrast")):
        z_of[name] = Measured(ratios.estimate[i], ratios.deleted[:, i])
    table, scaled = np.full((len(output), len(output)), np.nan), []
    if "cka" in tables:
        grams, cka = tables["cka"]
        there = np.flatnonzero([g is not None for g in grams])
        table[np.ix_(there, there)] = cka
        scaled = [g for g in grams if g is not None]
    return found | z_of, table, scaled


def _sizes(output: NDArray, tokens: Tokens) -> dict[str, Measured]:
    """Ranks and norms, logarithms averaged over experts."""
    ranks = [effective_ranks(x, tokens.unit) for x in output]
    estimate = np.log(np.stack([r.estimate for r in ranks])).mean(axis=0)
    deleted = np.log(np.stack([r.deleted for r in ranks])).mean(axis=0)
    return {
        "participation": Measured(estimate[0], deleted[:, 0]),
        "effective_rank": Measured(estimate[1], deleted[:, 1]),
        "norm": log_norms(output, tokens.unit)[1],
    }


def _mean_of_pairs(cka: NDArray, deleted: NDArray) -> Measured:
    """Mean on Fisher's z over pairs, of (expert, expert) and (unit, expert, expert)."""
    first, second = np.triu_indices(len(cka), k=1)
    return Measured(
        fisher_z(cka[first, second]).mean(), fisher_z(deleted[:, first, second]).mean(axis=1)
    )


def _exchanged(grams: list[Grams], totals: NDArray, tokens: Tokens) -> Measured:
    """Mean CKA of pairs of experts with whole units exchanged in one of the two."""
    moved = [
        permuted(g, tokens.permutation, batches=tokens.batches, unit=tokens.unit) for g in grams
    ]
    own = np.diagonal(totals)
    cka = cka_from(hsic_table(grams, moved).sum(axis=-1), own[:, None], own)
    others = ~np.eye(len(cka), dtype=bool)
    n_units = len(tokens.permutation)
    return Measured(np.asarray(cka[others].mean()), np.full(n_units, np.nan))


def _either(output: NDArray, chosen: NDArray[np.bool_], tokens: Tokens) -> Measured:
    """Mean on Fisher's z over pairs of experts, each at the tokens that chose one or both.

    Of more than `MOST_PAIRS` pairs so many are drawn. Pairs with tokens of fewer than five units
    are left out, since one is deleted at a time and four are needed.
    """
    rng, n_units = np.random.default_rng(tokens.seed), len(tokens.permutation)
    pairs = list(combinations(range(len(output)), 2))
    if len(pairs) > MOST_PAIRS:
        pairs = [pairs[i] for i in np.sort(rng.choice(len(pairs), MOST_PAIRS, replace=False))]
    z, z_deleted = [], []
    for pair in pairs:
        where = np.flatnonzero(chosen[pair[0]] | chosen[pair[1]])
        unit = tokens.unit[where]
        if len(np.unique(unit)) < 5:
            continue
        parts = _largest(batches(unit, largest=_LARGEST_BATCH, rng=rng))
        grams = [_grams(output[expert][where], parts, "rows") for expert in pair]
        usable = [g for g in grams if g is not None]
        if len(usable) < 2:
            continue
        cka = cka_of_all(hsic_table(usable).sum(axis=-1))[0, 1]
        without = cka_of_all(hsic_without_each_unit(usable, batches=parts, unit=unit))[0, 1]
        all_units = np.full(n_units, cka)  # a unit with none of these tokens changes nothing
        all_units[: len(without)] = without
        z.append(fisher_z(cka))
        z_deleted.append(fisher_z(all_units))
    if not z:
        return Measured(np.asarray(np.nan), np.full(n_units, np.nan))
    return Measured(np.asarray(np.mean(z)), np.mean(z_deleted, axis=0))


def _grams(x: NDArray, parts: list[NDArray[np.intp]], how: Preprocessing) -> Grams | None:
    """Gram matrices of one representation; None if it is not finite, or the same everywhere."""
    try:
        return gram_features(normalised(x, how=how), parts)
    except ValueError:
        return None


def _largest(parts: list[NDArray[np.intp]]) -> list[NDArray[np.intp]]:
    """Batches of at least half the tokens of the largest: others are of the longest units alone."""
    fewest = max(map(len, parts)) / 2
    return [part for part in parts if len(part) >= fewest]


def _at(of_run: xr.DataArray, place: tuple[int, int]) -> NDArray | None:
    """Values at a step and layer, or None where the run has none, or some are not finite."""
    step, layer = place
    if step not in of_run["step"].values or layer not in of_run["layer"].values:
        return None
    values = of_run.sel(step=step, layer=layer).values
    return values if np.isfinite(values).all() else None


def _dense_at(of_run: xr.Dataset, place: tuple[int, int]) -> NDArray | None:
    """Output of a dense MLP at a step and layer, as `_at`."""
    if "mlp_out" in of_run:
        return _at(of_run["mlp_out"], place)
    before, after = (_at(of_run[name], place) for name in ("resid_mid", "resid_post"))
    if before is None or after is None:
        return None
    return after.astype(np.float32) - before
