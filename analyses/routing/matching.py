"""Agreement of the routers of every two runs; choices of one step and layer are held at a time."""

from collections.abc import Mapping
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from analyses.comparison.runs import pair_coordinates, run_coordinates, sorted_by_arm
from analyses.comparison.summary import PLAIN, Scale, summarize
from analyses.comparison.walk import Progress, mapped
from analyses.reporting.text import labels
from analyses.routing.hidden_states import HIDDEN_MEASURES, hidden_similarity
from analyses.routing.matched_text import Text
from analyses.statistics import lookup_agreement, matching, unit_cka
from analyses.statistics.pairs import mean_by_label, pair_indices
from analyses.statistics.permutation import permutation_p
from analyses.statistics.resampling import leave_one_out
from analyses.statistics.saturation import beyond

_SHARE = Scale(np.asarray, lambda ci: np.clip(ci, 0.0, 1.0))
MEASURES: dict[str, tuple[str, Scale]] = {
    "agreement": ("share of choices that agree, experts matched", _SHARE),
    "kappa": ("agreement beyond chance, kappa", PLAIN),
    "floor": ("agreement if token ids alone tied the routers", _SHARE),
    "floor_kappa": ("the same beyond chance", PLAIN),
    "beyond_floor": ("agreement beyond what token ids alone give", PLAIN),
    "lookup": ("agreement of the usual experts of each token id", _SHARE),
    "first_agreement": ("share of first choices that agree, experts matched", _SHARE),
    "first_kappa": ("agreement of first choices beyond chance, kappa", PLAIN),
    "ami": ("adjusted mutual information of first choices", PLAIN),
    "routing_cka": ("routing CKA", PLAIN),
    "hidden_cka": ("hidden-state CKA, rows of unit length", PLAIN),
    "hidden_cka_raw": ("hidden-state CKA", PLAIN),
}
Found = tuple[NDArray[np.float64], NDArray[np.float64]]


def matchings(
    expert_index: xr.DataArray,
    text: Text,
    *,
    n_experts: int,
    hidden: Mapping[str, xr.DataArray],
    level: float,
    progress: Progress = iter,
    dask: str | None = None,
) -> xr.Dataset:
    """Every measure of `MEASURES` by pair of runs and of arms; see `expert_matching`."""
    index = sorted_by_arm(expert_index)
    runs = run_coordinates(index)
    pairs = list(zip(*map(np.ndarray.tolist, pair_indices(index.sizes["run"])), strict=True))
    at = partial(_measured, index, text, pairs, n_experts, hidden)
    shape = index.sizes["layer"], index.sizes["step"]
    found = list(mapped(at, list(np.ndindex(shape)), progress, dask))
    some = next((of_place for of_place in found if of_place), None)
    if some is None:
        raise ValueError(
            "no two runs observed all choices at one step; wait until the runs got further, or "
            "give the paths of runs that have steps in common"
        )

    def gathered(name: str, part: int) -> NDArray:
        nothing = np.full_like(some[name][part], np.nan)
        values = [of_place[name][part] if of_place else nothing for of_place in found]
        return np.stack(values).reshape(*shape, *nothing.shape)

    coords = {"layer": index["layer"].variable, "step": index["step"].variable}
    result = xr.Dataset(coords=dict(runs.coords) | dict(pair_coordinates(runs).coords) | coords)
    for name, (long_name, scale) in MEASURES.items():
        if name not in some:
            continue
        estimate = xr.DataArray(gathered(name, 0), coords, ("layer", "step", "pair"))
        deleted = xr.DataArray(gathered(name, 1), dims=("layer", "step", "pair", "unit"))
        if name not in HIDDEN_MEASURES:
            deleted = deleted.assign_coords(text.units.coords)
        named: dict[str, Any] = {"scale": scale, "long_name": long_name, "level": level}
        mean = [part.mean("layer", skipna=False) for part in (estimate, deleted)]
        for x, of_x in ((name, [estimate, deleted]), (f"{name}_mean", mean)):
            part = summarize(x, of_x[0], of_x[1], runs, **named)
            # all pairs are of one kind here; and hidden states have fewer units of text
            part = part.drop_dims(["kind", *(["unit"] if name in HIDDEN_MEASURES else [])])
            spare = [v for v in part if str(v).endswith("_inner") or v == f"pair_{x}_deleted"]
            result = result.merge(part.drop_vars(spare), compat="override")
    agreement = gathered("agreement", 0)
    return result.assign(_chance(agreement, gathered("null", 0), result["pair_arms"].values))


def _chance(agreement: NDArray, null: NDArray, arms: NDArray) -> dict[str, Any]:
    """Agreement under exchanged units: draws and p by pair, means by pair and by arms."""
    by_chance = labels("agreement by chance: units of text exchange choices, experts matched anew")
    dims, mean = ("layer", "step", "pair"), null.mean(axis=-1)
    _, of_arms = mean_by_label(mean, arms, axis=-1)
    p = permutation_p(agreement, np.moveaxis(null, -1, 0))
    return {
        "pair_chance_draws": ((*dims, "resample"), null.astype(np.float32), by_chance),
        "pair_chance": (dims, mean, by_chance),
        "pair_chance_p": (dims, p, labels("p of agreement")),
        "arms_chance": (("layer", "step", "arms"), of_arms, by_chance),
        "arms_chance_mean": (("step", "arms"), of_arms.mean(axis=0), by_chance),
    }


def matched_table(expert_index: xr.DataArray, text: Text, *, n_experts: int) -> xr.DataArray:
    """Where the tokens of each expert of one run go in another, experts in matched order.

    Matched on the first half of the units, counted on the second.

    Parameters
    ----------
    expert_index : DataArray (run, layer, sequence, pos, top_k) of two runs, all observed.

    Returns
    -------
    DataArray (layer, expert, matched_expert)
        Share of the tokens with `expert` in the first run that have in the second run the expert
        matched to `matched_expert`; the diagonal agrees, rows sum to k. NaN for an expert without
        tokens. The coordinate `partner (layer, matched_expert)` names the matched expert.
    """
    index = expert_index.compute().isel(sequence=text.order)
    choice = index.transpose("layer", "run", "sequence", "pos", "top_k").values
    top_k, partner, shares = choice.shape[-1], [], []
    for first, second in choice.reshape(*choice.shape[:2], -1, top_k).astype(np.intp):
        tables = matching.unit_tables(first, second, text.unit, n_experts=n_experts)
        of_first, of_second = matching.half_tables(tables, text.first_half)
        pi = matching.matching(of_first, top_k=top_k)
        tokens = of_second.sum(axis=1, keepdims=True) / top_k
        with np.errstate(invalid="ignore", divide="ignore"):
            shares.append(of_second[:, pi] / tokens)
        partner.append(pi)
    return xr.DataArray(
        np.stack(shares),
        {"layer": index["layer"].variable, "partner": (("layer", "matched_expert"), partner)},
        ("layer", "expert", "matched_expert"),
        attrs=labels("share of the expert's tokens"),
    )


class _Router(NamedTuple):
    """One run at one step and layer: its choices, what its ids do, and C of its own choices."""

    choice: NDArray[np.intp]
    ids: lookup_agreement.IdCounts
    own: unit_cka.Similarity


def _measured(
    index: xr.DataArray,
    text: Text,
    pairs: list[tuple[int, int]],
    n_experts: int,
    hidden: Mapping[str, xr.DataArray],
    place: tuple[int, int],
) -> dict[str, Found]:
    """All measures of all pairs at one layer and step: estimates (pair), and (pair, unit).

    Nothing if no two runs were observed there.
    """
    # read before it is turned: to turn what is read lazily, xarray lists the places of all choices
    at = index.isel(layer=place[0], step=place[1]).compute().isel(sequence=text.order)
    choice = at.transpose("run", "sequence", "pos", "top_k").values
    choice = choice.reshape(len(choice), len(text.unit), -1)
    seen = np.flatnonzero((choice >= 0).all(axis=(1, 2))).tolist()
    there = np.array([a in seen and b in seen for a, b in pairs], dtype=np.bool_)
    known = [pair for pair, is_there in zip(pairs, there, strict=True) if is_there]
    if not known:
        return {}
    measured = _of_choices(choice, text, known, n_experts)
    if choice.shape[-1] > 1:
        firsts = _of_choices(choice[..., :1], text, known, n_experts)
        measured |= {f"first_{name}": firsts[name] for name in ("agreement", "kappa")}
        measured["ami"] = firsts["ami"]
    everywhere = {name: (_spread(x, there), _spread(d, there)) for name, (x, d) in measured.items()}
    return everywhere | (hidden_similarity(hidden, at, pairs) if hidden else {})


def _spread(values: NDArray, there: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Values of the pairs that were observed, among all pairs; NaN for the others."""
    whole = np.full((len(there), *values.shape[1:]), np.nan)
    whole[there] = values
    return whole


def _of_choices(
    choice: NDArray, text: Text, pairs: list[tuple[int, int]], n_experts: int
) -> dict[str, Found]:
    """Measures of the pairs from choices (run, token, top_k)."""
    draws = matching.null_agreement(
        choice, pairs, text.slices, text.first_half, text.permutations, n_experts=n_experts
    )
    null = np.stack(list(draws), axis=-1)
    runs = sorted({run for pair in pairs for run in pair})
    routers = {run: _router(choice[run].astype(np.intp), text, n_experts) for run in runs}
    found = [
        _of_pair(routers[a], routers[b], chance, text, n_experts)
        for (a, b), chance in zip(pairs, null.mean(axis=-1), strict=True)
    ]
    stacked = {
        name: (np.array([x[name][0] for x in found]), np.array([x[name][1] for x in found]))
        for name in found[0]
    }
    return stacked | {"null": (null, null)}


def _router(choice: NDArray[np.intp], text: Text, n_experts: int) -> _Router:
    ids = lookup_agreement.id_counts(
        choice, text.label, text.first_half[text.unit], n_experts=n_experts
    )
    return _Router(choice, ids, _tables(choice, choice, text, n_experts)[1])


def _of_pair(
    first: _Router, second: _Router, chance: float, text: Text, n_experts: int
) -> dict[str, tuple[Any, NDArray[np.float64]]]:
    """Every measure of two runs, and without each unit."""
    top_k, in_first = first.choice.shape[1], text.first_half[text.unit]
    tables, cross = _tables(first.choice, second.choice, text, n_experts)
    pi = matching.crossed_matching(matching.half_tables(tables, text.first_half), top_k=top_k)
    known = (pi, text.label, text.unit, in_first)
    choices, ids = (first.choice, second.choice), (first.ids, second.ids)
    sums = {
        "agreement": matching.matched_counts(tables, pi[np.where(text.first_half, 0, 1)]),
        "floor": lookup_agreement.floor_sums(choices, ids, *known),
        "lookup": lookup_agreement.lookup_sums(first.ids, second.ids, *known),
    }
    counts = top_k * text.units["n_tokens"].values
    of_pair: dict[str, tuple[Any, NDArray]] = {
        name: (x.sum() / counts.sum(), leave_one_out(x) / leave_one_out(counts))
        for name, x in sums.items()
    }
    for name, of_name, against in (
        ("kappa", "agreement", (chance, chance)),
        ("floor_kappa", "floor", (chance, chance)),
        ("beyond_floor", "agreement", of_pair["floor"]),
    ):
        whole, without = of_pair[of_name]
        of_pair[name] = (
            beyond(whole, np.asarray(against[0])),
            beyond(without, np.asarray(against[1])),
        )
    of_pair["routing_cka"] = unit_cka.cka(cross, first.own, second.own)
    if top_k == 1:
        of_pair["ami"] = matching.adjusted_information(tables)
    return of_pair


def _tables(
    first: NDArray, second: NDArray, text: Text, n_experts: int
) -> tuple[NDArray[np.int64], unit_cka.Similarity]:
    """Tables of two routers by unit, and C of their centred choices."""
    tables = matching.unit_tables(first, second, text.unit, n_experts=n_experts)
    products = unit_cka.choice_products(tables, top_k=first.shape[1])
    return tables, unit_cka.similarity(products, text.units["n_tokens"].values)
