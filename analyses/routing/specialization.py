"""What choices of experts tell of the text: information, nulls, and what the last step shows."""

from collections.abc import Iterator
from functools import partial
from typing import NamedTuple

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from analyses.comparison.walk import Progress, mapped
from analyses.routing.text_labels import DOMAIN, GIVEN, POSITION, TOKEN, TextLabels
from analyses.statistics import information as measures
from analyses.statistics import routing
from analyses.statistics.explained_loss import explained_loss, explained_null
from analyses.statistics.moved_choices import exchanged, moved_sums, relabelled_sums, rotated
from analyses.statistics.permutation import document_permutations
from analyses.statistics.routing import Labelled, Sums
from analyses.statistics.top_labels import halves, top_labels

N_TOP = 5


class Draws(NamedTuple):
    """Everything random, drawn once, so that all runs, steps and layers share it.

    Attributes
    ----------
    permutations : (resample, unit)
    turns : (resample, unit), in [0, 1).
    first_half : (unit), on which top tokens are picked.
    seed : of what is drawn at one run and layer.
    n_early : draws that are used before the last step.
    """

    permutations: NDArray[np.intp]
    turns: NDArray[np.float64]
    first_half: NDArray[np.bool_]
    seed: int
    n_early: int


def drawn(text: TextLabels, *, n_resamples: int, rng: np.random.Generator) -> Draws:
    """All draws for a text; before the last step a tenth of them is used, but at least 20."""
    permutations = document_permutations(len(text.domain), n_resamples=n_resamples, rng=rng)
    return Draws(
        permutations,
        rng.random(permutations.shape),
        halves(text.domain, rng),
        int(rng.integers(2**32)),
        min(n_resamples, max(20, n_resamples // 10)),
    )


def measured(
    expert_index: xr.DataArray,
    loss: xr.DataArray | None,
    text: TextLabels,
    draws: Draws,
    *,
    n_experts: int,
    progress: Progress = iter,
    dask: str | None = None,
) -> tuple[dict[str, NDArray], NDArray[np.intp]]:
    """Everything that is measured on single runs; see `expert_specialization`.

    Returns
    -------
    arrays : by name, (run, step, layer, ...), or (run, layer, ...) of what is measured at a run's
        last observed step only; NaN where nothing was observed.
    last : (run), index of that step.
    """
    index = expert_index.transpose("run", "step", "layer", "sequence", "pos", "top_k")
    last = np.array([_last_observed(index.isel(run=run)) for run in range(index.sizes["run"])])
    items = [(run, step) for run in range(index.sizes["run"]) for step in range(last[run] + 1)]
    at = partial(_measured, index, loss, text, draws, last, n_experts)
    arrays: dict[str, NDArray] = {}
    for (run, step), layers in zip(items, mapped(at, items, progress, dask), strict=True):
        for layer, (always, at_last) in enumerate(layers):
            whole = (index.sizes["run"], index.sizes["step"], index.sizes["layer"])
            for found, sizes, place in (
                (always, whole, (run, step, layer)),
                (at_last, (whole[0], whole[2]), (run, layer)),
            ):
                for name, value in found.items():
                    shape = (*sizes, *np.shape(value))
                    if name.endswith("_null"):
                        shape = (*shape[:-1], len(draws.permutations))
                    if name not in arrays:
                        arrays[name] = np.full(shape, np.nan)
                    arrays[name][(*place, *map(slice, np.shape(value)))] = value
    return arrays, last


def _last_observed(index: xr.DataArray) -> int:
    """Index of the last step at which a run's choices are known, -1 if there is none."""
    for step in reversed(range(index.sizes["step"])):
        if (index.isel(step=step, sequence=0, pos=0, top_k=0).values >= 0).any():
            return step
    return -1


def _measured(
    index: xr.DataArray,
    loss: xr.DataArray | None,
    text: TextLabels,
    draws: Draws,
    last: NDArray[np.intp],
    n_experts: int,
    item: tuple[int, int],
) -> list[tuple[dict[str, NDArray], dict[str, NDArray]]]:
    """Each layer of one run and step: what is always measured, and what only at the last step."""
    run, step = item
    is_last = step == last[run]
    n = len(draws.permutations) if is_last else draws.n_early
    of_loss = None
    found: list[tuple[dict[str, NDArray], dict[str, NDArray]]] = []
    if loss is not None and is_last:
        at = loss.sel(run=index["run"][run], step=index["step"][step])
        of_loss = at.transpose("sequence", "pos").values[text.order].ravel()
    for layer in range(index.sizes["layer"]):
        choice = index.isel(run=run, step=step, layer=layer).values[text.order]
        shape, choice = choice.shape, choice.reshape(len(text.unit), -1)
        if (choice < 0).any():
            found.append(({}, {}))
            continue
        always = _always(choice, text, draws, n_experts, n)
        rng = np.random.default_rng([draws.seed, run, layer])
        at_last = _at_last(choice, of_loss, text, draws, n_experts, rng) if is_last else {}
        if is_last:
            in_order = np.empty(shape[:2])
            in_order[text.order] = choice[:, 0].reshape(shape[:2])
            at_last["first_choice"] = in_order
        found.append((always, at_last))
    return found


def _always(
    choice: NDArray, text: TextLabels, draws: Draws, n_experts: int, n_draws: int
) -> dict[str, NDArray]:
    """Information (label), its limit, corrections and nulls, and vocabulary specialization."""
    found: dict[str, list[NDArray]] = {}
    left_by_token: dict[str, NDArray] = {}
    scores: dict[str, NDArray] = {}
    permutations = draws.permutations[:n_draws]
    for name, at, null in _nulls(choice, text, draws.turns[:n_draws], permutations, n_experts):
        table = routing.choice_table(choice, at, n_experts=n_experts)
        observed, deleted = routing.table_sums(table), routing.deleted_sums(choice, at, table)
        for kind, sums in (("", observed), ("_deleted", deleted), ("_null", null)):
            left = routing.open_entropy(sums)
            # the domain moves no token from one id to another: H(E | V) is the same in its null
            limit = left_by_token[kind] if name == GIVEN else routing.choice_entropy(sums)
            found.setdefault(f"information{kind}", []).append(np.maximum(limit - left, 0.0))
            # which of a token's k choices E is, no label can tell
            possible = np.maximum(limit - np.log(choice.shape[1]), 0.0)
            found.setdefault(f"information_limit{kind}", []).append(possible)
            if name == TOKEN:
                left_by_token[kind] = left_by_token[""] if kind == "_null" else left
                scores |= _specialization(sums, kind, choice.shape[1])
        corrected = found.setdefault("information_miller_madow", [])
        corrected.append(_corrected(table, name, n_domains=len(text.domains)))
    del found["information_limit_null"]
    return scores | {name: np.stack(values) for name, values in found.items()}


def _corrected(table: NDArray, name: str, *, n_domains: int) -> NDArray[np.float64]:
    """The Miller-Madow correction, within each token id for the domain given it."""
    if name != GIVEN:
        return measures.miller_madow(table)
    by_token = table.reshape(len(table), -1, n_domains).transpose(1, 2, 0)
    return measures.conditional_miller_madow(by_token)


def _nulls(
    choice: NDArray,
    text: TextLabels,
    turns: NDArray[np.float64],
    permutations: NDArray[np.intp],
    n_experts: int,
) -> Iterator[tuple[str, Labelled, Sums]]:
    """Each label in the order of `text.names`, and its sums under the null."""
    moved = partial(moved_sums, choice, n_experts=n_experts)
    relabelled = partial(relabelled_sums, choice, n_experts=n_experts)
    tokens = text.of_tokens
    for name in text.names:
        if name == DOMAIN:
            null = relabelled(text.everywhere, text.domain, permutations)
            yield name, text.of_domain, null
        elif name == GIVEN:
            null = relabelled(tokens[TOKEN], text.domain, permutations)
            yield name, text.of_token_and_domain, null
        elif name == POSITION:
            yield name, tokens[name], moved(tokens[name], rotated(tokens[name].slices, turns))
        else:
            arrangements = exchanged(tokens[name].slices, permutations)
            yield name, tokens[name], moved(tokens[name], arrangements)


def _specialization(sums: Sums, kind: str, top_k: int) -> dict[str, NDArray]:
    """OLMoE's two means of vocabulary specialization."""
    return {
        f"token_specialization{kind}": routing.token_specialization(sums, top_k=top_k),
        f"type_specialization{kind}": routing.type_specialization(sums, top_k=top_k),
    }


def _at_last(
    choice: NDArray,
    loss: NDArray | None,
    text: TextLabels,
    draws: Draws,
    n_experts: int,
    rng: np.random.Generator,
) -> dict[str, NDArray]:
    """What is shown of the last step: profile, AMI, top tokens, and the tie to the loss."""
    top_k, at = choice.shape[1], text.of_tokens[TOKEN]
    count = partial(routing.choice_table, n_experts=n_experts)
    of_domain = count(choice, text.of_domain)
    result = {
        "load": routing.load(of_domain.sum(axis=1)),
        "domain_specialization": routing.domain_profile(of_domain, top_k=top_k),
    }
    if top_k == 1:
        ami = {name: count(choice, own) for name, own in text.of_tokens.items()}
        ami[DOMAIN] = of_domain
        result["ami"] = np.array(
            [
                measures.adjusted_mutual_information(ami[name]) if name in ami else np.nan
                for name in text.names
            ]
        )
    unit = text.unit[at.counted]
    tables = []
    for half in (draws.first_half, ~draws.first_half):
        kept = half[unit]
        part = at._replace(counted=at.counted[kept], label=at.label[kept])
        tables.append(count(choice, part))
    top = top_labels(*tables, top_k=top_k, n_top=N_TOP)
    result["top_token"] = np.where(top.label < 0, np.nan, text.ids[top.label])
    result |= {"top_share_chosen": top.chosen, "top_share_held_out": top.held_out}
    if loss is not None and np.isfinite(loss).all():
        found, deleted = explained_loss(loss, choice[:, 0], at, n_experts=n_experts)
        null = explained_null(
            loss, choice[:, 0], at, n_experts=n_experts, n_resamples=len(draws.permutations),
            rng=rng,
        )  # fmt: skip
        for kind, values in (("", found), ("_deleted", deleted), ("_null", null)):
            result |= {f"loss_eta2{kind}": values.eta2, f"loss_omega2{kind}": values.omega2}
    return result
