"""Experts beside the MLPs of dense runs at the same depth, and these beside each other.

What an expert shares with a dense MLP lies between two baselines: what is left if units of text are
exchanged, and what the MLPs of two dense seeds share.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from analyses.comparison.summary import R
from analyses.reporting.text import labels
from analyses.statistics.correlation import fisher_z
from analyses.statistics.minibatch_cka import (
    Grams,
    cka_from,
    hsic_table,
    hsic_without_each_unit,
    permuted,
)
from analyses.statistics.resampling import jackknife
from analyses.statistics.runs import jackknife_runs

_NAME = "CKA with the MLP of a dense run"


class WithDense(NamedTuple):
    """CKA of one run's experts, or MLP, with the MLPs of other dense runs.

    Attributes
    ----------
    z : (dense), Fisher's z, averaged over experts; NaN for the run itself.
    deleted : (unit, dense), the same without each unit of text.
    chance : (dense), CKA with units of text exchanged.
    """

    z: NDArray[np.float64]
    deleted: NDArray[np.float64]
    chance: NDArray[np.float64]


def with_dense(
    grams: Sequence[Grams],
    dense: Mapping[int, Grams],
    *,
    n_dense: int,
    permutation: NDArray[np.intp],
    **dealt: Any,
) -> WithDense:
    """Compare the experts of a layer, or one MLP, with each dense MLP.

    Parameters
    ----------
    grams : of each expert, or of the one MLP.
    dense : of the dense runs to compare with, by their number.
    n_dense : all dense runs.
    permutation : (unit), which exchanges units.
    dealt : `batches` and `unit`, how tokens were dealt.
    """
    found = WithDense(*(np.full(shape, np.nan)
                        for shape in (n_dense, (len(permutation), n_dense), n_dense)))  # fmt: skip
    if not dense:
        return found
    own = np.stack([hsic_table([g]).sum() for g in grams])
    own_without = np.stack([hsic_without_each_unit([g], **dealt)[0, 0] for g in grams])
    for j, other in dense.items():
        norm = hsic_table([other]).sum()
        norm_without = hsic_without_each_unit([other], **dealt)[0, 0]
        cross = hsic_table(grams, [other]).sum(axis=-1)[:, 0]
        cross_without = hsic_without_each_unit(grams, [other], **dealt)[:, 0]
        moved = hsic_table(grams, [permuted(other, permutation, **dealt)]).sum(axis=-1)[:, 0]
        found.z[j] = fisher_z(cka_from(cross, own, norm)).mean()
        without = cka_from(cross_without, own_without, norm_without)
        found.deleted[:, j] = fisher_z(without).mean(axis=0)
        found.chance[j] = cka_from(moved, own, norm).mean()
    return found


def dense_summary(found: WithDense, runs: xr.Dataset, *, level: float) -> xr.Dataset:
    """By run and by arm, at each layer and averaged over layers, with both intervals.

    A mean is over the dense runs of an arm first, then over the dense arms. Over runs, one run is
    deleted at a time, of the arm or of the dense runs it is compared with.

    Parameters
    ----------
    found : with dimensions step and layer before those of `WithDense`, and run before dense.
    runs : coordinate `arm` on `run`: of the dense runs in their order, then of the others.

    Returns
    -------
    Dataset
        `run_cka_dense (run, step, layer)` with `_ci`, `arm_cka_dense (each_arm, step, layer)` with
        `_ci` and `_run_ci`, and both as `..._mean`; `cka_dense_chance (run, step, layer)`.
    """
    arm, n_dense = runs["arm"].values.astype(str), found.z.shape[-1]
    arms = list(dict.fromkeys(arm))
    result = xr.Dataset()
    forms = {
        "": (("step", "layer"), found.z, found.deleted),
        "_mean": (("step",), found.z.mean(axis=1), found.deleted.mean(axis=1)),
    }
    for end, (dims, z, deleted) in forms.items():
        deleted = np.moveaxis(deleted, -3, 0)
        groups = {
            "run": [_blocks(np.array([i]), arm, n_dense) for i in range(len(arm))],
            "arm": [_blocks(np.flatnonzero(arm == a), arm, n_dense) for a in arms],
        }
        for group, blocks in groups.items():
            value = np.stack([_mean(z, of) for of in blocks])
            without = np.stack([_mean(deleted, of) for of in blocks], axis=1)
            name, all_dims = f"{group}_cka_dense{end}", (_DIMS[group], *dims)
            ci = R.interval(jackknife(value, without, level=level).ci)
            over = f"{_NAME}, interval over"
            result[name] = all_dims, R.value(value), labels(_NAME)
            result[f"{name}_ci"] = (*all_dims, "ci_bound"), ci, labels(f"{over} units of text")
            if group == "arm":
                ends = R.interval(np.stack([_over_runs(z, of, arm, level) for of in blocks]))
                result[f"{name}_run_ci"] = (*all_dims, "ci_bound"), ends, labels(f"{over} runs")
    chance = np.stack(
        [_mean(found.chance, _blocks(np.array([i]), arm, n_dense)) for i in range(len(arm))]
    )
    exchanged = labels(f"{_NAME}, units of text exchanged")
    result["cka_dense_chance"] = ("run", "step", "layer"), chance, exchanged
    return result


_DIMS = {"run": "run", "arm": "each_arm"}
Block = tuple[NDArray[np.intp], NDArray[np.intp]]


def _blocks(rows: NDArray[np.intp], arm: NDArray[np.str_], n_dense: int) -> list[Block]:
    """For each dense arm the pairs of one of these runs with another of that arm, if any."""
    found = []
    for name in dict.fromkeys(arm[:n_dense]):
        pairs = [(i, j) for i in rows for j in np.flatnonzero(arm[:n_dense] == name) if i != j]
        if pairs:
            first, second = np.array(pairs).T
            found.append((first, second))
    return found


def _mean(z: NDArray, blocks: list[Block]) -> NDArray[np.float64]:
    """Mean over pairs (..., run, dense) of each block, then over blocks; NaN where one is empty."""
    if not blocks or not all(len(first) for first, _ in blocks):
        return np.full(z.shape[:-2], np.nan)
    return np.mean([z[..., first, second].mean(axis=-1) for first, second in blocks], axis=0)


def _over_runs(
    z: NDArray, blocks: list[Block], arm: NDArray[np.str_], level: float
) -> NDArray[np.float64]:
    """Interval of `_mean` when a run is deleted, (..., ci_bound)."""
    estimate = _mean(z, blocks)
    if not blocks:
        return np.full((*estimate.shape, 2), np.nan)
    runs = np.unique(np.concatenate([np.concatenate(pairs) for pairs in blocks]))
    without = [
        _mean(z, [(i[(i != run) & (j != run)], j[(i != run) & (j != run)]) for i, j in blocks])
        for run in runs
    ]
    return jackknife_runs(estimate, np.stack(without), arm[runs], level=level).ci
