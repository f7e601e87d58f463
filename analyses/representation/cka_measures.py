"""Other measures of all pairs of runs at the last step, averaged over depths.

Are values of CKA those of a few directions, of the estimator, or of CKA? The first measures are the
headline and what becomes of it when something is changed before; the others compare all tokens at
once, of which they take a sample where there are many.
"""

from collections.abc import Callable, Sequence
from functools import partial
from itertools import combinations
from typing import NamedTuple

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from analyses.comparison.summary import R, summarize
from analyses.comparison.walk import Compared, mapped
from analyses.reporting.text import labels
from analyses.representation.cka import (
    HEADLINE,
    PREPARED,
    Cohort,
    exchanged,
    grams_of,
    representation,
    similarity,
)
from analyses.statistics import cross_products
from analyses.statistics.alignment import neighbours, shared_neighbours
from analyses.statistics.correlation import fisher_z
from analyses.statistics.minibatch_cka import Grams, permuted
from analyses.statistics.pairs import pair_indices
from analyses.statistics.unit_cka import Similarity, cka

N_NEIGHBOURS, N_FEATURES, MOST_TOKENS = 10, 3, 2048
NEIGHBOURS = f"mutual {N_NEIGHBOURS} nearest neighbours"
OVER_ALL = ("CKA over all tokens, debiased", "CKA over all tokens, biased", "Procrustes")


class Sampled(NamedTuple):
    """All tokens of a run, or a sample of them.

    Attributes
    ----------
    tokens : row-normalised.
    norm : ||X'X||_F².
    near : (token, neighbour); None with too few tokens.
    """

    tokens: cross_products.Representation
    norm: Similarity
    near: NDArray[np.intp] | None


def measures(
    cohort: Cohort,
    runs: xr.Dataset,
    permutation: NDArray[np.intp],
    *,
    level: float = 0.95,
    dask: str | None = None,
) -> xr.Dataset:
    """Each measure of all pairs of runs.

    Held at a time are the Gram matrices of all runs at one depth, and at most 2,048 tokens of each.

    Parameters
    ----------
    runs : coordinates on `run`, sorted by `sorted_by_arm`, in the order of the cohort.
    permutation : (unit), of units of text, for the value that chance gives.
    level, dask : as for `cka_over_time`.

    Returns
    -------
    Dataset
        For g in `pair`, `kind` and `arms`: `g_measured (g, measure)` with `_ci` over units of text,
        NaN for mutual neighbours, where a unit cannot be deleted at an acceptable price, and
        `_run_ci` over runs; and `measured_exchanged (measure)`, the mean over pairs of a run with
        the next one, whose units are exchanged by `permutation`. All are averaged on Fisher's z.
    """
    of_depth = partial(_at_depth, cohort, permutation)
    found = list(mapped(of_depth, range(len(cohort.depths)), dask=dask))
    names = list(found[0][0])
    first, second = pair_indices(len(cohort.activations))
    pairs = [
        {name: Compared(at.estimate[first, second], at.deleted[:, first, second])
         for name, at in of_depth.items()}
        for of_depth, _ in found
    ]  # fmt: skip
    estimate, deleted = (
        np.mean([[fisher_z(at[name][i]) for name in names] for at in pairs], axis=0)
        for i in range(2)
    )
    result = summarize(
        "measured",
        xr.DataArray(estimate, dims=("measure", "pair"), coords={"measure": names}),
        xr.DataArray(deleted, dims=("measure", "unit", "pair"), coords={"measure": names}),
        runs, scale=R, long_name="similarity, mean over depths", level=level,
    )  # fmt: skip
    chance = np.tanh(np.mean([[fisher_z(at[name]) for name in names] for _, at in found], axis=0))
    result["measured_exchanged"] = "measure", chance, labels("similarity, units exchanged")
    return result.drop_vars([n for n in map(str, result) if n.endswith(("_deleted", "_inner"))])


def without_first_direction(x: NDArray) -> NDArray:
    """Tokens (token, feature) without their component along the first principal direction."""
    x = PREPARED[HEADLINE](x)
    direction = np.linalg.eigh((x.T @ x).astype(np.float64))[1][:, -1].astype(x.dtype)
    return x - np.outer(x @ direction, direction)


def without_largest_features(x: NDArray) -> NDArray:
    """Tokens (token, feature) without the three features of largest variance."""
    x = PREPARED[HEADLINE](x)
    return np.delete(x, np.argsort(x.var(axis=0))[-N_FEATURES:], axis=1)


BATCHED: dict[str, Callable[[NDArray], NDArray]] = {
    "minibatch CKA, row-normalised": PREPARED["rows"],
    "minibatch CKA, raw": PREPARED["raw"],
    "minibatch CKA, z-scored": PREPARED["z"],
    "the first, without the first principal direction": without_first_direction,
    f"the first, without the {N_FEATURES} features of largest variance": without_largest_features,
}


def moved_tokens(cohort: Cohort, permutation: NDArray[np.intp]) -> NDArray[np.intp]:
    """Which token takes the place of each when whole units exchange their tokens, (token used).

    It is the exchange of `statistics.minibatch_cka.permuted`, within batches.
    """
    rows = [np.repeat(batch[:, None], len(batch), axis=1) for batch in cohort.batches]
    moved = permuted(rows, permutation, batches=cohort.batches, unit=cohort.unit)
    index = np.empty(len(cohort.tokens), dtype=np.intp)
    for batch, of_batch in zip(cohort.batches, moved, strict=True):
        index[batch] = of_batch[:, 0]
    return index


def _at_depth(
    cohort: Cohort, permutation: NDArray[np.intp], depth: int
) -> tuple[dict[str, Compared], dict[str, float]]:
    """All measures of all runs at one depth, and what chance makes of them."""
    runs, n_units = list(cohort.activations), len(cohort.units)
    every = slice(None, None, -(-len(cohort.tokens) // MOST_TOKENS))
    moved = moved_tokens(cohort, permutation)
    grams: dict[str, list[Grams]] = {name: [] for name in BATCHED}
    sampled: list[Sampled | None] = []
    moved_too: list[Sampled | None] = []
    for run in runs:
        x = representation(cohort, run, -1, depth)
        for name, prepare in BATCHED.items():
            grams[name].append(grams_of(cohort, x, prepare))
        sampled.append(_sampled(x[every], cohort.unit[every], n_units))
        moved_too.append(_sampled(x[moved][every], cohort.unit[every], n_units))
    n = np.arange(len(runs))
    before = n - 1
    found = {name: similarity(cohort, of_name) for name, of_name in grams.items()}
    chance = {
        name: float(np.mean(exchanged(cohort, of_name, permutation)[n, before]))
        for name, of_name in grams.items()
    }
    found |= _over_all(sampled, n_units)
    by_chance = [_compared(sampled[i], moved_too[i - 1], n_units) for i in n]
    return found, chance | {
        name: float(np.mean([at[name].estimate for at in by_chance])) for name in by_chance[0]
    }


def _sampled(x: NDArray, unit: NDArray[np.intp], n_units: int) -> Sampled | None:
    """None for a representation that is not finite, or the same for all tokens."""
    try:
        tokens = cross_products.representation(PREPARED[HEADLINE](x), unit, n_units=n_units)
    except ValueError:
        return None
    try:
        near = neighbours(tokens.values, k=N_NEIGHBOURS, unit=unit)
    except ValueError:
        near = None
    return Sampled(tokens, cross_products.squared_norm(tokens, tokens), near)


def _over_all(sampled: Sequence[Sampled | None], n_units: int) -> dict[str, Compared]:
    n = len(sampled)
    tables = {
        name: Compared(np.ones((n, n)), np.ones((n_units, n, n)))
        for name in (*OVER_ALL, NEIGHBOURS)
    }
    for i, j in combinations(range(n), 2):
        for name, of_pair in _compared(sampled[i], sampled[j], n_units).items():
            tables[name].estimate[i, j] = of_pair.estimate
            tables[name].deleted[:, i, j] = of_pair.deleted
    return tables


def _compared(x: Sampled | None, y: Sampled | None, n_units: int) -> dict[str, Similarity]:
    missing = Similarity(np.array(np.nan), np.full(n_units, np.nan))
    if x is None or y is None:
        return dict.fromkeys((*OVER_ALL, NEIGHBOURS), missing)
    a, b = x.tokens, y.tokens
    cross = cross_products.squared_norm(a, b)
    own = [cross_products.debiased(z.tokens, z.tokens, z.norm) for z in (x, y)]
    found = (
        cka(cross_products.debiased(a, b, cross), *own),
        cka(cross, x.norm, y.norm),
        cross_products.procrustes(a, b),
    )
    near = missing
    if x.near is not None and y.near is not None:
        near = missing._replace(estimate=np.array(shared_neighbours(x.near, y.near)))
    return {**dict(zip(OVER_ALL, found, strict=True)), NEIGHBOURS: near}
