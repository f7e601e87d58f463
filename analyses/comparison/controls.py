"""What makes a token hard for any model, as columns that a partial correlation holds fixed.

A ladder: n-gram surprisal of ever longer n-grams, then how often the target occurs in the training
text, then its position. Each column comes with its square, since difficulty need not be linear.
Controls are measured with error, so what is left after them is an upper bound of what models share
beyond them.
"""

from typing import NamedTuple

import numpy as np
import xarray as xr
from numpy.typing import NDArray


class Controls(NamedTuple):
    """Columns of controls and how many of them each rung of the ladder holds fixed.

    Attributes
    ----------
    columns : (column, token), standardised; tokens in reading order.
    rungs : name of each rung and its number of columns, which are the first so many.
    """

    columns: NDArray[np.float64]
    rungs: dict[str, int]


def difficulty(probe_set: xr.Dataset) -> Controls:
    """The ladder of a probe set; rungs whose variable it lacks are left out.

    Parameters
    ----------
    probe_set : Dataset with `target (sequence, pos)`, and if known `ngram_surprisal (order,
        sequence, pos)` and `token_frequency (d_vocab)`.
    """
    target = probe_set["target"].transpose("sequence", "pos").values
    steps: dict[str, NDArray] = {}
    if "ngram_surprisal" in probe_set:
        surprisal = probe_set["ngram_surprisal"].transpose("order", "sequence", "pos")
        for order, values in zip(surprisal["order"].values, surprisal.values, strict=True):
            steps[f"{order}-gram" if order == 1 else f"+ {order}-gram"] = values
    if "token_frequency" in probe_set:
        steps["+ frequency"] = np.log1p(probe_set["token_frequency"].values)[target]
    steps["+ position"] = np.log1p(np.broadcast_to(np.arange(target.shape[1]), target.shape))
    columns: list[NDArray] = []
    rungs = {}
    for name, values in steps.items():
        column = _standardised(values.ravel())
        columns += [column, _standardised(column**2)]
        rungs[name] = len(columns)
    return Controls(np.stack(columns), rungs)


def _standardised(column: NDArray) -> NDArray[np.float64]:
    column = column.astype(np.float64)
    spread = column.std()
    return (column - column.mean()) / (spread if spread > 0 else 1.0)
