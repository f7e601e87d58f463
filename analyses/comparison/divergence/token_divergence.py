"""Divergence of what models predict, for `walk`: of all tokens, and in bands of frequency."""

from typing import NamedTuple

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from analyses.comparison.walk import Compared
from analyses.statistics.class_means import class_means
from analyses.statistics.divergence import divergence_sums
from analyses.statistics.token_classes import frequency_band

MEASURES: dict[str, str] = {
    "kl": "KL divergence of predictions",
    "js": "JS divergence of predictions",
    "kl_by_frequency": "KL divergence of predictions",
    "js_by_frequency": "JS divergence of predictions",
    "from_uniform": "KL divergence from the uniform distribution",
    "from_unigram": "KL divergence from the unigram distribution",
}
FEWEST_TOKENS = 50


class Bands(NamedTuple):
    """Which band of frequency each token's target is in.

    Attributes
    ----------
    names : of the bands that have enough tokens.
    label : (token), index into `names`, -1 for none; tokens in reading order.
    """

    names: tuple[str, ...]
    label: NDArray[np.intp]


def frequency_bands(probe_set: xr.Dataset, *, fewest: int = FEWEST_TOKENS) -> Bands:
    """Bands by the share of the training text that the target's id makes up.

    Parameters
    ----------
    probe_set : Dataset with `target (sequence, pos)` and, without which there is no band,
        `token_frequency (d_vocab)`.
    fewest : tokens that a band needs.
    """
    target = probe_set["target"].transpose("sequence", "pos").values
    if "token_frequency" not in probe_set:
        return Bands((), np.full(target.size, -1))
    division = frequency_band(target, probe_set["token_frequency"].values)
    label = division.label.ravel()
    kept = np.flatnonzero(np.bincount(label, minlength=len(division.classes)) >= fewest)
    number = np.full(len(division.classes), -1)
    number[kept] = np.arange(len(kept))
    return Bands(tuple(division.classes[i] for i in kept), number[label])


def references(probe_set: xr.Dataset, *, n_ids: int) -> dict[str, NDArray[np.float64]]:
    """Log probabilities of distributions that know nothing of the context, by measure, (d_vocab).

    The unigram distribution is that of the training text with one occurrence added to each id; it
    is left out if the probe set has no `token_frequency`.
    """
    found = {"from_uniform": np.zeros(n_ids)}
    if "token_frequency" in probe_set:
        found["from_unigram"] = np.log1p(probe_set["token_frequency"].values.astype(np.float64))
    return found


def token_divergence(
    values: NDArray,
    unit: NDArray[np.intp],
    *,
    bands: Bands,
    reference: dict[str, NDArray[np.float64]],
) -> dict[str, Compared]:
    """Mean divergences of all pairs of models, nats; from a reference, the mean of both models.

    Parameters
    ----------
    values : (model, token, d_vocab), log probabilities.
    unit : (token)
    """
    n_units, n_cells = int(unit.max()) + 1, len(bands.names) + 1
    cell = unit * n_cells + bands.label + 1
    sums = divergence_sums(
        values, cell, n_cells=n_units * n_cells, reference=np.stack(list(reference.values()))
    )
    counts = np.bincount(cell, minlength=n_units * n_cells).reshape(n_units, n_cells)

    def compared(of_cells: NDArray[np.float64]) -> tuple[Compared, Compared]:
        """Of all tokens, and of those of each band, from sums (cell, ...)."""
        of_cells = of_cells.reshape(n_units, n_cells, *of_cells.shape[1:])
        every = class_means(of_cells.sum(axis=1, keepdims=True), counts.sum(axis=1, keepdims=True))
        each = class_means(of_cells[:, 1:], counts[:, 1:])
        return Compared(every[0][0], every[1][:, 0]), Compared(*each)

    found = {}
    for name, of_cells in (("kl", sums.kl), ("js", sums.js)):
        found[name], by_frequency = compared(of_cells)
        if bands.names:
            found[f"{name}_by_frequency"] = by_frequency
    for i, name in enumerate(reference):
        of_models, _ = compared(sums.reference[:, i])
        found[name] = Compared(*((x[..., None] + x[..., None, :]) / 2 for x in of_models))
    return found
