"""One typical pair of runs of each kind at the last step: every two depths, and other measures."""

from collections.abc import Callable, Mapping
from functools import partial

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from analyses.reporting.text import labels
from analyses.representation.cka import HEADLINE, Cohort, grams_of, representations, similarity
from analyses.statistics.alignment import mutual_knn, procrustes
from analyses.statistics.correlation import fisher_z
from analyses.statistics.minibatch_cka import Grams, normalised, permuted
from analyses.statistics.resampling import jackknife
from analyses.statistics.similarity import linear_cka

Typical = Mapping[str, tuple[int, int]]
N_NEIGHBOURS, N_FEATURES, MOST_TOKENS = 10, 3, 2048


def typical_pairs(at: xr.Dataset, runs: xr.Dataset) -> dict[str, tuple[int, int]]:
    """For each kind of pair the pair whose CKA, averaged over depths, is nearest to the kind's.

    Parameters
    ----------
    at : the result at the last step.
    runs : coordinates on `run`.

    Returns
    -------
    dict
        From a kind to the two positions on `run`; without kinds that have no value.
    """
    first, second = np.triu_indices(runs.sizes["run"], k=1)
    found = {}
    for kind in at["kind"].values.astype(str):
        apart = np.abs(at["pair_cka_mean"].values - float(at["kind_cka_mean"].sel(kind=kind)))
        apart = np.where(at["pair_kind"].values == kind, apart, np.nan)
        if np.isfinite(apart).any():
            chosen = int(np.nanargmin(apart))
            found[kind] = int(first[chosen]), int(second[chosen])
    return found


def depth_by_depth(
    cohort: Cohort, last: list[list[Grams]], typical: Typical, *, level: float = 0.95
) -> xr.Dataset:
    """CKA of every depth of one run with every depth of the other.

    Parameters
    ----------
    last : Gram matrices of the last step, [depth][run].

    Returns
    -------
    Dataset
        `heat (kind, depth, other_depth)` with `heat_ci`, and `heat_a` and `heat_b (kind)`, the
        names of the two runs, whose depths are those of `depth` and of `other_depth`.
    """
    n, names = len(cohort.depths), np.array(list(cohort.activations))
    shape = len(typical), n, n
    value, ci = np.full(shape, np.nan), np.full((*shape, 2), np.nan)
    for i, (a, b) in enumerate(typical.values()):
        grams = [of_depth[run] for run in (a, b) for of_depth in last]
        compared = similarity(cohort, grams)
        z, without = (fisher_z(at[..., :n, n:]) for at in compared)
        value[i], ci[i] = np.tanh(z), np.tanh(jackknife(z, without, level=level).ci)
    dims = ("heat_kind", "depth", "other_depth")
    title = "CKA of every two depths"
    return xr.Dataset(
        {
            "heat": (dims, value, labels(title)),
            "heat_ci": ((*dims, "ci_bound"), ci, labels(f"{title}, interval over units of text")),
        },
        {
            "heat_kind": list(typical),
            "heat_a": ("heat_kind", [str(names[a]) for a, _ in typical.values()]),
            "heat_b": ("heat_kind", [str(names[b]) for _, b in typical.values()]),
            "ci_bound": ["lower", "upper"],
        },
    )


def robustness(cohort: Cohort, typical: Typical, permutation: NDArray[np.intp]) -> xr.Dataset:
    """Other measures of the typical pairs at the last step, averaged over depths.

    Two depths of two runs are held at a time.

    Returns
    -------
    Dataset
        `robust (measure, heat_kind)` and `robust_shuffled (measure)`, the mean over kinds when
        units of text are exchanged by `permutation` in the second run.
    """
    moved = exchanged(cohort, permutation)
    names, step = list(cohort.activations), -1
    measures = _measures(cohort)
    found = np.full((len(measures), len(typical), 2), np.nan)
    for i, (a, b) in enumerate(typical.values()):
        both = zip(*(representations(cohort, names[run], step) for run in (a, b)), strict=True)
        values = [
            [[measure(x, y), measure(x, y[moved])] for measure in measures.values()]
            for x, y in both
        ]
        found[:, i] = np.mean(values, axis=0)
    shuffled = found[..., 1].mean(axis=1) if len(typical) else found[..., 0].sum(axis=1)
    return xr.Dataset(
        {
            "robust": (("measure", "heat_kind"), found[..., 0], labels("similarity")),
            "robust_shuffled": ("measure", shuffled, labels("similarity, units exchanged")),
        },
        {"measure": list(measures), "heat_kind": list(typical)},
    )


def exchanged(cohort: Cohort, permutation: NDArray[np.intp]) -> NDArray[np.intp]:
    """Which token takes the place of each when whole units exchange their tokens, (token used).

    It is the exchange of `statistics.minibatch_cka.permuted`, within batches.
    """
    rows = [np.repeat(batch[:, None], len(batch), axis=1) for batch in cohort.batches]
    moved = permuted(rows, permutation, batches=cohort.batches, unit=cohort.unit)
    index = np.empty(len(cohort.tokens), dtype=np.intp)
    for batch, of_batch in zip(cohort.batches, moved, strict=True):
        index[batch] = of_batch[:, 0]
    return index


def without_first_direction(x: NDArray) -> NDArray:
    """Tokens (token, feature) without their component along the first principal direction."""
    x = normalised(x, how=HEADLINE)
    direction = np.linalg.eigh((x.T @ x).astype(np.float64))[1][:, -1].astype(x.dtype)
    return x - np.outer(x @ direction, direction)


def without_largest_features(x: NDArray) -> NDArray:
    """Tokens (token, feature) without the three features of largest variance."""
    x = normalised(x, how=HEADLINE)
    return np.delete(x, np.argsort(x.var(axis=0))[-N_FEATURES:], axis=1)


def _measures(cohort: Cohort) -> dict[str, Callable[[NDArray, NDArray], float]]:
    def finite(measure: Callable[[NDArray, NDArray], float], x: NDArray, y: NDArray) -> float:
        try:
            return measure(x, y)
        except ValueError:
            # an unusable representation, or too few tokens for the neighbours asked for
            return float("nan")

    def batched(prepare: Callable[[NDArray], NDArray], x: NDArray, y: NDArray) -> float:
        grams = [grams_of(cohort, prepare(z)) for z in (x, y)]
        return float(similarity(cohort, grams).estimate[0, 1])

    def of_tokens(measure: Callable[[NDArray, NDArray], float], x: NDArray, y: NDArray) -> float:
        return measure(normalised(x, how=HEADLINE), normalised(y, how=HEADLINE))

    few = slice(None, None, -(-len(cohort.tokens) // MOST_TOKENS))

    def knn(x: NDArray, y: NDArray) -> float:
        return mutual_knn(x[few], y[few], k=N_NEIGHBOURS, unit=cohort.unit[few])

    chosen: dict[str, Callable[[NDArray, NDArray], float]] = {
        "minibatch CKA, row-normalised": partial(batched, partial(normalised, how="rows")),
        "minibatch CKA, raw": partial(batched, partial(normalised, how="raw")),
        "minibatch CKA, z-scored": partial(batched, partial(normalised, how="z")),
        "the first, without the first principal direction": partial(
            batched, without_first_direction
        ),
        f"the first, without the {N_FEATURES} features of largest variance": partial(
            batched, without_largest_features
        ),
        "CKA over all tokens, debiased": partial(of_tokens, partial(linear_cka, debiased=True)),
        "CKA over all tokens, biased": partial(of_tokens, linear_cka),
        "Procrustes": partial(of_tokens, procrustes),
        f"mutual {N_NEIGHBOURS} nearest neighbours": partial(of_tokens, knn),
    }
    return {name: partial(finite, measure) for name, measure in chosen.items()}
