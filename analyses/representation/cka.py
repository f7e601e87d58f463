"""CKA of all runs at one step: Gram matrices of every run and depth, once, and their products.

A depth is a place along the residual stream, in the order of computation: after the attention of
layer 0, after its MLP or experts, after the attention of layer 1, and so on.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from analyses.comparison.unanswerable import Unanswerable
from analyses.comparison.units import token_units
from analyses.comparison.walk import Compared
from analyses.representation.recorded import by_layer
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

Activations = Mapping[str, xr.Dataset]
Depth = tuple[int, str]

PREPARATIONS: tuple[Preprocessing, ...] = ("rows", "raw", "z")
HEADLINE: Preprocessing = PREPARATIONS[0]
PREPARED = {how: partial(normalised, how=how) for how in PREPARATIONS}
SITES = ("resid_pre", "resid_mid", "resid_post")
_LARGEST_BATCH = 250


class Cohort(NamedTuple):
    """What is the same at every step: runs, depths, and how tokens are dealt into batches.

    Attributes
    ----------
    activations : for each run its sites (step, layer, sequence, pos, d_model).
    depths : (layer, site), in the order of computation.
    units : (unit), names.
    tokens : tokens used, in reading order of all tokens.
    unit : (token used)
    batches : positions among the tokens used.
    """

    activations: Activations
    depths: tuple[Depth, ...]
    units: NDArray[np.str_]
    tokens: NDArray[np.intp]
    unit: NDArray[np.intp]
    batches: list[NDArray[np.intp]]


class AtStep(NamedTuple):
    """Similarities at one step; NaN for a representation that is not finite, or constant.

    Attributes
    ----------
    between : of runs at the same depth, (preparation, depth, run, run).
    with_last : of a run with its own last step, (depth, run).
    with_before : of a run with the depth before, (depth, run), NaN at the first.
    shuffled : of runs when units of text are exchanged, (shuffle, depth, run, run).
    """

    between: Compared
    with_last: Compared
    with_before: Compared
    shuffled: NDArray[np.float64]


def cohort(
    activations: Activations, unit: xr.DataArray, *, most_bytes: int, rng: np.random.Generator
) -> Cohort:
    """Depths that all runs have, and batches with at most one token of each unit of text.

    Batches of less than half of the tokens of the largest are left out: they hold tokens of the
    longest units alone, and few pairs of them.

    Parameters
    ----------
    activations : as for `Cohort`, of the same steps, sequences and positions.
    unit : DataArray (sequence), name of each sequence's unit of text.
    most_bytes : that Gram matrices of one step may take; batches are as large as this allows, and
        of at most 250 tokens.

    Raises
    ------
    Unanswerable
        If no depth is common to all runs.
    ValueError
        If runs were observed at different places, or there are fewer than 4 units.
    """
    _require_same_places(activations)
    depths = common_depths(activations)
    names, of_token = token_units(unit, n_pos=next(iter(activations.values())).sizes["pos"])
    bytes_a_row = 4 * len(of_token) * len(activations) * len(depths) * len(PREPARATIONS)
    largest = int(np.clip(most_bytes // bytes_a_row, 8, _LARGEST_BATCH))
    dealt = batches(of_token, largest=largest, rng=rng)
    fewest = max(map(len, dealt)) / 2
    dealt = [batch for batch in dealt if len(batch) >= fewest]
    tokens = np.sort(np.concatenate(dealt))
    return Cohort(
        activations, depths, names, tokens, of_token[tokens],
        [np.searchsorted(tokens, batch) for batch in dealt],
    )  # fmt: skip


def common_depths(activations: Activations) -> tuple[Depth, ...]:
    """Places along the residual stream that all runs have, each once.

    Raises
    ------
    Unanswerable
        If there is none.
    """
    runs = list(activations.values())
    layers = sorted(set.intersection(*(set(d["layer"].values.tolist()) for d in runs)))
    sites = [site for site in SITES if all(site in d for d in runs)]
    if not layers or not sites:
        raise Unanswerable(
            f"the runs {', '.join(activations)} have no {'site' if layers else 'layer'} of the "
            "residual stream in common; train with --set train.activation_sites=resid_mid,"
            "resid_post, as by default"
        )
    return tuple(
        (int(layer), site)
        for layer in layers
        for site in sites
        # what a block reads is what the block before it wrote
        if not (site == "resid_pre" and "resid_post" in sites and layer - 1 in layers)
    )


def representations(cohort: Cohort, run: str, step: int) -> Iterator[NDArray]:
    """Of one run, at each depth: (token used, feature). Nothing is read twice."""
    at = cohort.activations[run].isel(step=step)
    layers = {
        site: by_layer(at[site].sel(layer=[layer for layer, s in cohort.depths if s == site]))
        for site in dict.fromkeys(site for _, site in cohort.depths)
    }
    for _, site in cohort.depths:
        yield _of_tokens_used(cohort, next(layers[site]).values)


def representation(cohort: Cohort, run: str, step: int, depth: int) -> NDArray:
    """Of one run at one depth: (token used, feature)."""
    layer, site = cohort.depths[depth]
    at = cohort.activations[run][site].isel(step=step).sel(layer=layer)
    return _of_tokens_used(cohort, at.transpose("sequence", "pos", "d_model").values)


def _of_tokens_used(cohort: Cohort, values: NDArray) -> NDArray:
    return values.reshape(-1, values.shape[-1])[cohort.tokens]


def grams_of(cohort: Cohort, x: NDArray, prepare: Callable[[NDArray], NDArray]) -> Grams:
    """Gram matrices of one representation; zeros, which have no CKA, if it is unusable."""
    try:
        return gram_features(prepare(x), cohort.batches)
    except ValueError:
        # not finite, or the same for all tokens: no other way is left for an array of numbers
        return [np.zeros((len(b), len(b)), dtype=np.float32) for b in cohort.batches]


def grams_at(
    cohort: Cohort, step: int, preparations: Sequence[Preprocessing]
) -> list[list[list[Grams]]]:
    """Gram matrices of all runs at one step, [preparation][depth][run]."""
    n_depths = len(cohort.depths)
    grams: list[list[list[Grams]]] = [[[] for _ in range(n_depths)] for _ in preparations]
    for run in cohort.activations:
        for depth, x in enumerate(representations(cohort, run, step)):
            for how, of_preparation in zip(preparations, grams, strict=True):
                of_preparation[depth].append(grams_of(cohort, x, PREPARED[how]))
    return grams


def similarity(cohort: Cohort, grams: Sequence[Grams]) -> Compared:
    """CKA of all pairs of representations, and without each unit of text."""
    totals = hsic_table(grams).sum(axis=-1)
    without = hsic_without_each_unit(grams, batches=cohort.batches, unit=cohort.unit)
    return Compared(cka_of_all(totals), np.moveaxis(cka_of_all(without), -1, 0))


def at_step(
    cohort: Cohort, last: list[list[Grams]], permutations: NDArray[np.intp], step: int
) -> AtStep:
    """All that is asked of one step.

    Parameters
    ----------
    last : Gram matrices of the last step, row-normalised, [depth][run].
    permutations : (shuffle, unit)
    """
    grams = grams_at(cohort, step, PREPARATIONS)
    between = [[similarity(cohort, of_depth) for of_depth in part] for part in grams]
    first = grams[0]
    along = [
        # with the depth before and the last step; the first depth has none before
        similarity(cohort, [first[d][run], first[max(d - 1, 0)][run], last[d][run]])
        for d in range(len(cohort.depths))
        for run in range(len(cohort.activations))
    ]
    shape = len(cohort.depths), len(cohort.activations)
    estimate = np.stack([c.estimate for c in along]).reshape(*shape, 3, 3)
    deleted = np.stack([c.deleted for c in along], axis=1).reshape(-1, *shape, 3, 3)
    before, before_deleted = estimate[..., 0, 1].copy(), deleted[..., 0, 1].copy()
    before[0], before_deleted[:, 0] = np.nan, np.nan
    return AtStep(
        Compared(
            np.stack([[c.estimate for c in part] for part in between]),
            np.stack([np.stack([c.deleted for c in part], axis=1) for part in between], axis=1),
        ),
        Compared(estimate[..., 0, 2], deleted[..., 0, 2]),
        Compared(before, before_deleted),
        np.stack(
            [
                [exchanged(cohort, of_depth, permutation) for of_depth in first]
                for permutation in permutations
            ]
        ),
    )


def exchanged(
    cohort: Cohort, grams: Sequence[Grams], permutation: NDArray[np.intp]
) -> NDArray[np.float64]:
    """CKA (representation, representation) with units of text exchanged in the second."""
    moved = [permuted(g, permutation, batches=cohort.batches, unit=cohort.unit) for g in grams]
    own = np.array([hsic_table([g]).sum() for g in grams])
    return cka_from(hsic_table(grams, moved).sum(axis=-1), own[:, None], own)


def _require_same_places(activations: Activations) -> None:
    first, *others = activations.items()
    for name, of_run in others:
        for dim in ("step", "sequence", "pos"):
            if not np.array_equal(of_run[dim].values, first[1][dim].values):
                raise ValueError(
                    f"runs {first[0]} and {name} recorded activations at different places ({dim}); "
                    "read them with `recorded_activations`, which keeps what they have in common"
                )
