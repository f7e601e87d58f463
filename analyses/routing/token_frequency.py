"""Tokens of the probe set: their ids, how frequent they are, and equal parts by frequency."""

from typing import NamedTuple

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from analyses.statistics.correlation import average_ranks

N_BINS = 8


class Text(NamedTuple):
    """What is known of the tokens, in reading order; all (token).

    Attributes
    ----------
    label : token ids numbered from 0.
    unit : integer labels from 0.
    frequency : occurrences of the token in the training text, or if unknown in the probe set.
    target_frequency : the same of the token to be predicted.
    bin : which of `N_BINS` equal parts of the tokens it falls into, by frequency.
    """

    label: NDArray[np.intp]
    unit: NDArray[np.intp]
    frequency: NDArray[np.float64]
    target_frequency: NDArray[np.float64]
    bin: NDArray[np.intp]


def text_of(probe_set: xr.Dataset, unit: NDArray[np.intp]) -> Text:
    """The tokens of a probe set; ids of one frequency share a bin.

    Parameters
    ----------
    probe_set : Dataset with `token` and `target (sequence, pos)`, and if known `token_frequency
        (d_vocab)`.
    """
    token, target = (
        probe_set[name].transpose("sequence", "pos").values.ravel() for name in ("token", "target")
    )
    if "token_frequency" in probe_set:
        occurrences = probe_set["token_frequency"].values
    else:
        occurrences = np.bincount(token, minlength=max(token.max(), target.max()) + 1)
    _, label = np.unique(token, return_inverse=True)
    frequency = occurrences[token].astype(np.float64)
    share = (average_ranks(frequency[None])[0] - 0.5) / len(token)
    which = np.minimum((share * N_BINS).astype(np.intp), N_BINS - 1)
    return Text(label, unit, frequency, occurrences[target].astype(np.float64), which)


def bin_frequency(text: Text) -> list[float]:
    """Median frequency in each bin; NaN for one that ties have left empty."""
    return [
        float(np.median(text.frequency[text.bin == i])) if (text.bin == i).any() else np.nan
        for i in range(N_BINS)
    ]
