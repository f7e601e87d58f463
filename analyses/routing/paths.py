"""Ties between the choices of consecutive layers, of all runs: two layers are held at a time."""

from functools import partial
from typing import Any, NamedTuple

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from analyses.comparison.runs import run_coordinates
from analyses.comparison.summary import PLAIN, Scale
from analyses.comparison.walk import Progress, mapped
from analyses.reporting.text import labels
from analyses.routing.last_paths import last_paths, transitions, whole_paths
from analyses.routing.locality import layer_means, whole_choices
from analyses.routing.observed import text_units
from analyses.statistics import paths as ties
from analyses.statistics.documents import frequent_labels
from analyses.statistics.information import share_beyond_chance
from analyses.statistics.top_labels import halves

_AT_MOST_1 = Scale(np.asarray, lambda ci: np.minimum(ci, 1.0))
# name: label, unit, scale of the interval; all beyond chance
MEASURES: dict[str, tuple[str, str, Scale]] = {
    "tie": ("information about the next layer's choice", "nat", PLAIN),
    "tie_given_token": ("information about it beyond the token id", "nat", PLAIN),
    "token_part": ("information that goes with the token id", "nat", PLAIN),
    "tie_share": ("share of the next layer's choice that is settled", "1", _AT_MOST_1),
    "tie_share_given_token": ("share settled of what the token id leaves open", "1", _AT_MOST_1),
}
KINDS = {"": "", "_given_token": ", given the token id"}


class Text(NamedTuple):
    """The tokens that are counted, and what is drawn once for all runs, layers and steps.

    Attributes
    ----------
    everywhere, by_token : tokens of frequent ids, under one label and by id.
    unit : (token), of all tokens.
    first_half : (unit), on which orders of experts and paths are picked.
    seed : of the nulls.
    n_resamples, n_early : draws of each null at the last step, and before.
    """

    everywhere: ties.Grouped
    by_token: ties.Grouped
    unit: NDArray[np.intp]
    first_half: NDArray[np.bool_]
    seed: int
    n_resamples: int
    n_early: int


def text_of(
    token: NDArray,
    unit: NDArray[np.intp],
    *,
    min_count: int,
    n_resamples: int,
    rng: np.random.Generator,
) -> Text:
    """Tokens of ids that occur `min_count` times; before the last step, fewer draws are made.

    Parameters
    ----------
    token, unit : (token), ids, and integer labels from 0.

    Raises
    ------
    ValueError
        If no id occurs often enough, without a resample, or with fewer than two units.
    """
    if n_resamples < 1:
        raise ValueError(f"n_resamples is {n_resamples}; use 1 or more")
    label = frequent_labels(token, min_count=max(min_count, 2))
    first_half = halves(np.zeros(int(unit.max()) + 1, dtype=np.intp), rng)
    everywhere = ties.grouped(np.where(label < 0, -1, 0), unit)
    seed = int(rng.integers(2**32))
    n_early = min(n_resamples, max(20, n_resamples // 25))
    by_token = ties.grouped(label, unit)
    return Text(everywhere, by_token, unit, first_half, seed, n_resamples, n_early)


def layer_ties(
    expert_index: xr.DataArray,
    token: xr.DataArray,
    unit: xr.DataArray,
    *,
    n_experts: int,
    min_count: int,
    n_resamples: int,
    level: float = 0.95,
    progress: Progress = iter,
    dask: str | None = None,
    rng: np.random.Generator,
) -> xr.Dataset:
    """Every measure of `MEASURES` by run and arm, and transitions and paths at the last step."""
    index = expert_index.transpose("run", "step", "layer", "sequence", "pos", "top_k")
    units, token_unit = text_units(unit, n_pos=index.sizes["pos"])
    ids = token.transpose("sequence", "pos").values.ravel()
    text = text_of(ids, token_unit, min_count=min_count, n_resamples=n_resamples, rng=rng)
    n_runs, n_steps = index.sizes["run"], index.sizes["step"]
    items = [(run, step) for run in range(n_runs) for step in range(n_steps)]
    found = list(mapped(partial(_measured, index, text, n_experts), items, progress, dask))
    runs, layer = run_coordinates(index), index["layer"].values
    coords: dict[str, Any] = {"run": index["run"].variable, "step": index["step"].variable}
    coords["layer"] = "layer", layer[:-1], index["layer"].attrs
    result = xr.Dataset(
        coords=dict(runs.coords) | coords | dict(units.coords)
        | {"next_layer": ("layer", layer[1:]), "moe_layer": layer, "ci_bound": ["lower", "upper"]}
    )  # fmt: skip
    outer = ("run", "step", "layer")

    def gathered(name: str) -> NDArray:
        values = np.stack([of_item[name] for of_item in found])
        return values.reshape(n_runs, n_steps, *values.shape[1:])

    described = []
    for name, (long_name, units_of, scale) in MEASURES.items():
        estimate = xr.DataArray(gathered(name), dims=outer, coords=coords)
        deleted = xr.DataArray(gathered(f"{name}_deleted"), dims=(*outer, "unit"))
        means = layer_means(
            name, estimate, deleted, runs,
            scale=scale, long_name=f"{long_name}, beyond chance", units=units_of, level=level,
        )  # fmt: skip
        described.append(means)
    result = xr.merge([result, *described], compat="equals", join="exact")
    result = result.assign(_single_runs(gathered, outer))
    at_last = found[n_steps - 1 :: n_steps]
    result = result.merge(last_paths(at_last, layer, level=level))
    result["n_counted"] = (), len(text.by_token.place), labels("tokens of frequent ids")
    result["n_tokens_picked"] = (), text.first_half[token_unit].sum(), labels("tokens picked on")
    return result.assign_attrs(level=level, n_early=text.n_early, n_resamples=n_resamples)


def _single_runs(gathered: Any, outer: tuple[str, ...]) -> dict[str, Any]:
    """What the measures are made of, by run, layer and step."""
    made = {
        "information": "information about the next layer's choice, plug-in",
        "miller_madow": "information about the next layer's choice, Miller-Madow",
        "open_entropy": "entropy of the next layer's choice",
        "null_mean": "information by chance",
    }
    variables: dict[str, Any] = {}
    for kind, given in KINDS.items():
        for name, title in made.items():
            variables[f"{name}{kind}"] = (
                outer,
                gathered(f"{name}{kind}"),
                labels(title + given, "nat"),
            )
        band = labels(f"{made['null_mean']}{given}", "nat")
        variables[f"null_band{kind}"] = (*outer, "ci_bound"), gathered(f"null_band{kind}"), band
    return variables


def _measured(
    index: xr.DataArray, text: Text, n_experts: int, item: tuple[int, int]
) -> dict[str, NDArray]:
    """Ties of every two consecutive layers of one run and step, (layer, ...)."""
    run, step = item
    at, is_last = index.isel(run=run, step=step), step == index.sizes["step"] - 1
    n_draws = text.n_resamples if is_last else text.n_early
    found: list[dict[str, NDArray]] = []
    earlier = _choice(at, 0)
    for layer in range(1, at.sizes["layer"]):
        later = _choice(at, layer)
        found.append(_of_pair(earlier, later, text, n_draws, n_experts))
        if is_last:
            found[-1] |= transitions(
                earlier, later, text.first_half[text.unit], n_experts=n_experts
            )
        earlier = later
    measured = {name: np.stack([pair[name] for pair in found]) for name in found[0]}
    return measured | (_at_last(at, text, n_experts) if is_last else {})


def _choice(at: xr.DataArray, layer: int) -> NDArray[np.int64]:
    choice = whole_choices(at.isel(layer=layer))
    return choice.reshape(-1, choice.shape[-1])


def _of_pair(
    earlier: NDArray, later: NDArray, text: Text, n_draws: int, n_experts: int
) -> dict[str, NDArray]:
    """All that is measured of two layers, (...), and without each unit (unit, ...)."""
    possible = np.log(earlier.shape[1])
    found: dict[str, Any] = {}
    for kind, at, orders in (
        ("", text.everywhere, ties.exchanged_units),
        ("_given_token", text.by_token, ties.turned_within),
    ):
        tied = ties.tie(earlier, later, at, n_experts=n_experts)
        # the same draws at all runs, layers and steps
        rng = np.random.default_rng([text.seed, len(kind)])
        null = ties.null_information(
            earlier, later, at, orders(at, n_resamples=n_draws, rng=rng), n_experts=n_experts
        )
        chance = null.mean()
        found |= {f"information{kind}": tied.information, f"miller_madow{kind}": tied.miller_madow,
                  f"open_entropy{kind}": tied.open_entropy, f"null_mean{kind}": chance,
                  f"null_band{kind}": np.quantile(null, [0.025, 0.975])}  # fmt: skip
        for suffix, information, left in (
            ("", np.asarray(tied.information), np.asarray(tied.open_entropy)),
            ("_deleted", tied.information_deleted, tied.open_entropy_deleted),
        ):
            # which of a token's k choices it is, no other layer can tell
            limit = np.maximum(left - possible, 0.0)
            found[f"tie{kind}{suffix}"] = information - chance
            found[f"tie_share{kind}{suffix}"] = share_beyond_chance(information, chance, limit)
    for suffix in ("", "_deleted"):
        beyond = found[f"tie_given_token{suffix}"]
        found[f"token_part{suffix}"] = found[f"tie{suffix}"] - beyond
    return {name: np.asarray(value) for name, value in found.items()}


def _at_last(at: xr.DataArray, text: Text, n_experts: int) -> dict[str, NDArray]:
    choices = [_choice(at, layer) for layer in range(at.sizes["layer"])]
    return whole_paths(choices, text.unit, text.first_half, n_experts=n_experts)
