"""What is resampled: documents, or the works that documents are passages of."""

from typing import Literal

import numpy as np
import xarray as xr

Unit = Literal["work", "document"]


def unit_labels(probe_set: xr.Dataset, unit: Unit) -> xr.DataArray:
    """Name of the unit that each sequence of the probe set belongs to.

    Passages of one work resemble each other, so works are the larger and safer unit; where every
    document is a work of its own, both are the same.

    Parameters
    ----------
    probe_set : Dataset with `document` and `work` (sequence).

    Returns
    -------
    DataArray (sequence) of text, called `unit`, with the attribute `unit`: "work" or "document".
    """
    # zarr's text, as plain xarray reads it, turns into numpy's by way of objects only
    names = probe_set[unit].values.astype(object).astype(str)
    return xr.DataArray(names, dims="sequence", name="unit", attrs={"unit": unit})


def token_units(unit: xr.DataArray, *, n_pos: int) -> tuple[np.ndarray, np.ndarray]:
    """Names of the units, sorted, and the index of each token's unit, tokens in reading order.

    Returns
    -------
    names : (unit)
    index : (token)
    """
    names, of_sequence = np.unique(unit.values.astype(object).astype(str), return_inverse=True)
    return names, np.repeat(of_sequence, n_pos)
