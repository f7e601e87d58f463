"""The text on which experts are matched and scored: its tokens, units, halves and exchanges."""

from typing import NamedTuple

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from analyses.routing.observed import text_units
from analyses.statistics.documents import document_slices
from analyses.statistics.permutation import document_permutations
from analyses.statistics.top_labels import halves


class Text(NamedTuple):
    """The probe set, its sequences sorted by unit of text.

    Attributes
    ----------
    order : (sequence), places of the sequences in the probe set.
    units : coordinates `unit` and `n_tokens (unit)`.
    unit, label : (token), unit of each and its token id, both numbered from 0.
    slices : where each unit stands.
    first_half : (unit), on which matchings for the other half are found.
    permutations : (resample, unit), in which units exchange choices.
    """

    order: NDArray[np.intp]
    units: xr.Dataset
    unit: NDArray[np.intp]
    label: NDArray[np.intp]
    slices: list[slice]
    first_half: NDArray[np.bool_]
    permutations: NDArray[np.intp]


def matched_text(
    token: xr.DataArray, unit: xr.DataArray, *, n_resamples: int, rng: np.random.Generator
) -> Text:
    """Sort the tokens, divide the units into halves, and draw exchanges of units.

    Parameters
    ----------
    token : DataArray (sequence, pos) of token ids.
    unit : DataArray (sequence), of `unit_labels`.

    Raises
    ------
    ValueError
        With fewer than four units: two to match on, and two to score.
    """
    order = np.argsort(unit.values, kind="stable")
    ids = token.transpose("sequence", "pos").values[order]
    units, of_token = text_units(unit.isel(sequence=order), n_pos=ids.shape[1])
    n = units.sizes["unit"]
    if n < 4:
        raise ValueError(
            f"experts are matched on half of the units of text and scored on the other half; the "
            f"probe set has {n}, and 4 are needed: add works or documents, or use --unit document"
        )
    _, label = np.unique(ids.ravel(), return_inverse=True)
    _, slices = document_slices(of_token, n_tokens=len(label))
    first_half = halves(np.zeros(n), rng)
    drawn = document_permutations(n, n_resamples=n_resamples, rng=rng)
    return Text(order, units, of_token, label, slices, first_half, drawn)
