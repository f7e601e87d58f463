"""Hidden states of runs that recorded them on a part of the probe set, and their CKA."""

from collections.abc import Mapping

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from analyses.statistics import unit_cka
from analyses.statistics.documents import document_slices
from store.study import Study

HIDDEN_MEASURES = ("hidden_cka", "hidden_cka_raw")
# what comes closest to the output of the layer first
_SITES = ("resid_post", "mlp_out", "resid_mid", "attn_out", "resid_pre")


def hidden_states(study: Study, runs: NDArray, unit: xr.DataArray) -> dict[str, xr.DataArray]:
    """Activations of the runs at one site and on the sequences that all of them recorded, lazily.

    Runs of other widths are compared, so they are not joined on `run`.

    Parameters
    ----------
    runs : names.
    unit : DataArray (sequence) of `unit_labels`, with the coordinate `sequence`.

    Returns
    -------
    dict
        For each run that recorded them a DataArray (step, layer, sequence, pos, d_model), with the
        coordinate `unit` on `sequence`; empty if fewer than two did, or if no site is common to
        them or the sequences are of fewer than three units.
    """
    wanted = set(map(str, runs))
    recorded = {
        run.name: run.dataset("activations")
        for run in study.runs
        if run.name in wanted and "activations" in run.groups
    }
    sites = [name for name in _SITES if all(name in data for data in recorded.values())]
    if len(recorded) < 2 or not sites:
        return {}
    parts = {name: data[sites[0]] for name, data in recorded.items()}
    parts = {
        name: part.drop_vars(set(part.coords) - set(part.dims)) for name, part in parts.items()
    }
    common = set.intersection(*(set(part["sequence"].values.tolist()) for part in parts.values()))
    shown = np.array(sorted(common))
    names = unit.sel(sequence=shown).values
    if len(np.unique(names)) < 3:
        return {}
    return {
        name: part.sel(sequence=shown).assign_coords(unit=("sequence", names))
        for name, part in parts.items()
    }


def hidden_similarity(
    hidden: Mapping[str, xr.DataArray], at: xr.DataArray, pairs: list[tuple[int, int]]
) -> dict[str, tuple[NDArray[np.float64], NDArray[np.float64]]]:
    """CKA of the hidden states of pairs of runs, as they are and with rows of unit length.

    Parameters
    ----------
    hidden : of `hidden_states`.
    at : DataArray (run, ...) with scalar coordinates `layer` and `step`: where.
    pairs : indices of the two runs of each.

    Returns
    -------
    dict
        For each of `HIDDEN_MEASURES` the estimate (pair), and without each unit (pair, unit); NaN
        where a run has no hidden states.
    """
    some = next(iter(hidden.values()))
    order = np.argsort(some["unit"].values, kind="stable")
    _, of_sequence = np.unique(some["unit"].values[order], return_inverse=True)
    of_token = np.repeat(of_sequence, some.sizes["pos"])
    tokens = np.bincount(of_token)
    _, slices = document_slices(of_token, n_tokens=len(of_token))
    shape = some.sizes["sequence"], some.sizes["pos"]
    states = [_states(hidden.get(str(run)), at, shape) for run in at["run"].values]
    measured = {}
    for name in HIDDEN_MEASURES:
        rows = [_centred(x[order], unit_length=name == "hidden_cka") for x in states]

        def similar(a: int, b: int, rows: list[NDArray] = rows) -> unit_cka.Similarity:
            products = unit_cka.feature_products(rows[a], rows[b], slices)
            return unit_cka.similarity(products, tokens)

        own = [similar(run, run) for run in range(len(rows))]
        found = [unit_cka.cka(similar(a, b), own[a], own[b]) for a, b in pairs]
        measured[name] = np.array([x for x, _ in found]), np.stack([d for _, d in found])
    return measured


def _states(
    states: xr.DataArray | None, at: xr.DataArray, shape: tuple[int, int]
) -> NDArray[np.float64]:
    """Hidden states (sequence, pos, d_model) at a layer and step; NaN if they are not recorded."""
    layer, step = int(at["layer"]), int(at["step"])
    if states is None or layer not in states["layer"].values or step not in states["step"].values:
        return np.full((*shape, 1), np.nan)
    of_place = states.sel(layer=layer, step=step).transpose("sequence", "pos", "d_model")
    return of_place.values.astype(np.float64)


def _centred(states: NDArray[np.float64], *, unit_length: bool) -> NDArray[np.float64]:
    """Rows (token, d_model) less their mean, scaled to unit length before if wanted."""
    x = states.reshape(-1, states.shape[-1])
    if unit_length:
        length = np.linalg.norm(x, axis=1, keepdims=True)
        x = x / np.where(length > 0, length, 1.0)
    return x - x.mean(axis=0)
