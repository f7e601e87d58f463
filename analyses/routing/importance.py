"""Importance of every expert of all runs, and what was observed of it: read once a run and step."""

from functools import partial
from typing import Any, NamedTuple

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from analyses.comparison.arm_means import arm_means
from analyses.comparison.runs import run_coordinates
from analyses.comparison.summary import PLAIN, Scale
from analyses.comparison.walk import Progress, mapped
from analyses.reporting.text import labels
from analyses.routing.observed import text_units
from analyses.routing.prediction import METRICS, by_permutation, held_out
from analyses.statistics import importance
from analyses.statistics.class_means import class_sums
from analyses.statistics.resampling import jackknife
from analyses.statistics.token_classes import token_classes
from analyses.statistics.top_domain import top_domain_contrast
from analyses.statistics.top_labels import halves
from store.schema import REPLACEMENTS

TOKENS = ("all", "served")
DIVISIONS = ("domain", "frequency", "token", "copying")
RHO = Scale(np.asarray, lambda ci: np.clip(ci, -1.0, 1.0))
# variables of one run, step and layer: dimensions, label, unit
_MEASURED: dict[str, tuple[tuple[str, ...], str, str]] = {
    "importance": (("replacement", "tokens", "expert"), "mean change of loss", "nat"),
    "importance_ci": (
        ("replacement", "tokens", "expert", "ci_bound"), "interval over units of text", "nat",
    ),
    "metric_value": (("metric", "expert"), "what is observed of an expert", "1"),
    "rho": (("metric", "replacement", "tokens"), "Spearman's rho over experts", "1"),
    "rho_deleted": (("unit", "metric", "replacement", "tokens"), "rho without a unit", "1"),
    "change_by_domain": (("replacement", "domain", "expert"), "mean change of loss", "nat"),
    "share_of_domain": (("domain", "expert"), "share of the domain's tokens", "1"),
    "contrast": (("replacement", "tokens"), "top domain against the others", "nat"),
    "contrast_deleted": (("unit", "replacement", "tokens"), "the same without a unit", "nat"),
    "own_change": (("replacement", "token_class"), "change without the token's expert", "nat"),
    "own_change_deleted": (
        ("unit", "replacement", "token_class"), "the same without a unit", "nat",
    ),
}  # fmt: skip


class Text(NamedTuple):
    """The tokens that were ablated, as arrays.

    Attributes
    ----------
    unit : (token)
    domain, first : (unit), domain, and whether a unit is in the half that chooses first.
    label : (token), token ids numbered from 0.
    classes : (division, token), class of the target, -1 for none.
    coords : coordinates `unit`, `n_tokens`, `domain`, `token_class`.
    """

    unit: NDArray[np.intp]
    domain: NDArray[np.intp]
    first: NDArray[np.bool_]
    label: NDArray[np.intp]
    classes: NDArray[np.intp]
    coords: dict[str, Any]


def ablated_text(probe_set: xr.Dataset, unit: xr.DataArray, rng: np.random.Generator) -> Text:
    """Units, domains and classes of the tokens of a probe set.

    Raises
    ------
    ValueError
        With fewer than two units.
    """
    token = probe_set["token"].transpose("sequence", "pos").values
    units, of_token = text_units(unit, n_pos=token.shape[1])
    if units.sizes["unit"] < 2:
        raise ValueError(
            "intervals need at least 2 units of text, the ablation has 1; ablate more documents "
            "(--documents), or use --unit document"
        )
    domains, domain = np.unique(
        probe_set["domain"].values.astype(object).astype(str), return_inverse=True
    )
    # a work of several domains counts as one of its first
    of_unit = domain[np.unique(of_token, return_index=True)[1] // token.shape[1]]
    found = {k: v for k, v in token_classes(probe_set).items() if k in DIVISIONS}
    starts = np.cumsum([0, *(len(d.classes) for d in found.values())])
    classes = [
        np.where(d.label >= 0, d.label + start, -1).ravel()
        for d, start in zip(found.values(), starts, strict=False)
    ]
    names = [f"{k}: {name}" for k, division in found.items() for name in division.classes]
    names.append("all tokens")
    classes.append(np.full(token.size, starts[-1]))
    coords: dict[str, Any] = {"domain": domains, "token_class": names}
    coords |= {str(name): units[name].variable for name in units.coords}
    label = np.unique(token.ravel(), return_inverse=True)[1]
    return Text(of_token, of_unit, halves(of_unit, rng), label, np.stack(classes), coords)


def experts_of_runs(
    ablation: xr.Dataset,
    routing: xr.Dataset,
    loss: xr.DataArray,
    text: Text,
    *,
    n_resamples: int,
    level: float,
    progress: Progress = iter,
    dask: str | None = None,
    rng: np.random.Generator,
) -> xr.Dataset:
    """Importance, metrics and their correlation by run, and the correlation by arm.

    Parameters
    ----------
    ablation, routing, loss : of the same runs, steps, layers and sequences, read lazily.
    text : of those sequences.
    """
    sizes = {dim: ablation.sizes[dim] for dim in ("run", "step")}
    items = list(np.ndindex(*sizes.values()))
    measured = partial(_measured, ablation, routing, loss, text, level)
    found = list(mapped(measured, items, progress, dask))
    coords: dict[str, Any] = {n: ablation[n].variable for n in ("run", "step", "layer", "expert")}
    runs = run_coordinates(ablation)
    coords |= {str(name): runs[name].variable for name in runs.coords} | text.coords
    coords |= {"metric": list(METRICS), "replacement": list(REPLACEMENTS), "tokens": list(TOKENS)}
    result = xr.Dataset(coords=coords | {"ci_bound": ["lower", "upper"]})
    for name, (dims, long_name, units) in _MEASURED.items():
        values = np.stack([at[name] for at in found])
        values = values.reshape(*sizes.values(), *values.shape[1:])
        result[name] = (("run", "step", "layer", *dims), values, labels(long_name, units))
    for name, scale in (("rho", RHO), ("contrast", PLAIN), ("own_change", PLAIN)):
        estimate, deleted = result[name], result[f"{name}_deleted"]
        options: dict[str, Any] = {"scale": scale, "level": level, **_titles(estimate)}
        mean, without = (x.mean("layer", skipna=False) for x in (estimate, deleted))
        parts = [
            arm_means(name, estimate, deleted, runs, **options),
            arm_means(f"{name}_mean", mean, without, runs, **options),
        ]
        for part in parts:
            kept = [n for n in part if str(n) != f"run_{name}"]
            result = result.merge(part[kept], compat="override", join="outer")
    result = result.merge(held_out(result, level=level))
    result["arm_p"] = by_permutation(result, n_resamples=n_resamples, rng=rng)
    return result.drop_vars(["contrast_deleted", "own_change_deleted"])


def _titles(variable: xr.DataArray) -> dict[str, str]:
    return {"long_name": variable.attrs["long_name"], "units": variable.attrs["units"]}


def _measured(
    ablation: xr.Dataset,
    routing: xr.Dataset,
    loss: xr.DataArray,
    text: Text,
    level: float,
    item: tuple[int, int],
) -> dict[str, NDArray]:
    """Everything of one run and step, with `layer` first."""
    run, step = item
    at = ablation.isel(run=run, step=step)
    seen = routing.sel(run=at["run"], step=at["step"])
    of_loss = loss.sel(run=at["run"], step=at["step"]).transpose("sequence", "pos").values.ravel()
    of_layers = [
        _of_layer(at.isel(layer=i), seen.isel(layer=i), of_loss, text, level)
        for i in range(at.sizes["layer"])
    ]
    return {name: np.stack([one[name] for one in of_layers]) for name in of_layers[0]}


def _of_layer(
    at: xr.Dataset, seen: xr.Dataset, loss: NDArray, text: Text, level: float
) -> dict[str, NDArray]:
    """Everything of one layer."""
    n_units, n_experts, top_k = len(text.domain), at.sizes["expert"], seen.sizes["top_k"]
    choice = seen["expert_index"].transpose("sequence", "pos", "top_k").values.reshape(-1, top_k)
    if (choice < 0).any():  # a step that this run was not ablated at
        return _nothing(text, n_experts)
    prob = seen["router_prob"].transpose("sequence", "pos", "expert").values
    prob = prob.reshape(-1, n_experts).astype(np.float64)
    sums = importance.served_sums(choice, prob, loss, text.unit, n_units=n_units)
    change, own = _change_sums(at, choice, text, n_units=n_units)
    values, left_out = _metrics(sums, choice, text)
    counts = np.stack([np.tile(sums.tokens[:, None], n_experts), sums.served], axis=1)
    # (unit, replacement, tokens, expert), over tokens that each sum is of
    mean, without = importance.left_out_means(change, counts[:, None])
    members = np.arange(len(text.coords["domain"]))[:, None] == text.domain
    with np.errstate(invalid="ignore", divide="ignore"):
        of_domain = (
            np.tensordot(members, change[:, :, 0], 1) / (members @ sums.tokens)[:, None, None]
        )
        share = members @ sums.served / (members @ sums.tokens)[:, None]
    contrasts = [
        top_domain_contrast(
            np.moveaxis(change[:, :, i], 1, 2), counts[:, i], sums.served, sums.tokens,
            text.domain, text.first,
        )
        for i in range(len(TOKENS))
    ]  # fmt: skip
    class_tokens = class_sums(
        np.ones((1, len(loss))), text.unit, text.classes, shape=(n_units, own.shape[1])
    )
    own_mean, own_without = importance.left_out_means(own, class_tokens)
    return {
        "importance": mean,
        "importance_ci": jackknife(mean, without, level=level).ci,
        "metric_value": values,
        "rho": importance.spearman(values[:, None, None], mean),
        "rho_deleted": importance.spearman(left_out[:, :, None, None], without[:, None]),
        "change_by_domain": of_domain.swapaxes(0, 1),
        "share_of_domain": share,
        "contrast": np.stack([c for c, _ in contrasts], axis=-1),
        "contrast_deleted": np.stack([d for _, d in contrasts], axis=-1),
        "own_change": own_mean.T,
        "own_change_deleted": own_without.swapaxes(1, 2),
    }


def _metrics(
    sums: importance.Served, choice: NDArray, text: Text
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """What is observed of each expert (metric, expert), and without each unit first."""
    top_k, (n_units, n_experts) = choice.shape[1], sums.served.shape
    values, left_out = (
        importance.observed_of_experts(total, table, top_k=top_k)
        for total, table in importance.all_and_without_each(sums, text.domain)
    )
    name = "vocabulary_specialization"
    values[name], left_out[name] = importance.id_specialization(
        choice, text.label, text.unit, n_experts=n_experts, n_units=n_units
    )
    return tuple(np.stack([of[m] for m in METRICS], axis=-2) for of in (values, left_out))  # type: ignore[return-value]


def _change_sums(
    at: xr.Dataset, choice: NDArray, text: Text, *, n_units: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Sums of changes by unit: (unit, replacement, tokens, expert), over all tokens and over those
    that the expert serves; and of the change without each token's first choice, by class (unit,
    class, replacement). One expert is read at a time.
    """
    n_experts = at.sizes["expert"]
    sums = np.empty((n_units, len(REPLACEMENTS), len(TOKENS), n_experts))
    own = np.empty((len(REPLACEMENTS), len(text.unit)))
    for r, name in enumerate(REPLACEMENTS):
        variable = at[f"loss_change_{name}"].transpose("expert", "sequence", "pos")
        for expert in range(n_experts):
            change = variable.isel(expert=expert).values.ravel().astype(np.float64)
            serves = (choice == expert).any(axis=1)
            sums[:, r, 0, expert] = np.bincount(text.unit, change, n_units)
            sums[:, r, 1, expert] = np.bincount(text.unit[serves], change[serves], n_units)
            first = choice[:, 0] == expert
            own[r, first] = change[first]
    shape = (n_units, len(text.coords["token_class"]))
    return sums, class_sums(own, text.unit, text.classes, shape=shape)


def _nothing(text: Text, n_experts: int) -> dict[str, NDArray]:
    sizes = {
        "unit": len(text.domain), "replacement": len(REPLACEMENTS), "tokens": len(TOKENS),
        "expert": n_experts, "metric": len(METRICS), "domain": len(text.coords["domain"]),
        "token_class": len(text.coords["token_class"]), "ci_bound": 2,
    }  # fmt: skip
    return {
        name: np.full([sizes[dim] for dim in dims], np.nan)
        for name, (dims, *_) in _MEASURED.items()
    }
