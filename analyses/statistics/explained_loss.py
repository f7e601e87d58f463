r"""How much of the loss the chosen expert explains beyond the token id.

Tokens of one id that went to different experts are compared. With y_t the loss, v its id and e its
first choice, means over tokens of the same id, and of the same id and expert,

    SS_id = sum_t (y_t - mean_v)²        SS_expert = sum_ve n_ve (mean_ve - mean_v)²

the share explained is partial eta² = SS_expert / SS_id. By chance alone it is about df_expert /
df_id, with df_expert = #(v, e) - #v and df_id = n - #v, which partial omega² takes away [1]_:

    omega² = (SS_expert - df_expert s²) / (SS_expert + (n - df_expert) s²)

with s² = (SS_id - SS_expert) / (n - #(v, e)).

References
----------
.. [1] Olejnik and Algina (2003), doi:10.1037/1082-989X.8.4.434 (partial eta² and omega²).
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from analyses.statistics.routing import Labelled


class Explained(NamedTuple):
    """Shares of the variance of the loss within token ids.

    Attributes
    ----------
    eta2 : (...), in [0, 1].
    omega2 : (...), at most 1; may be below 0.
    """

    eta2: NDArray[np.float64]
    omega2: NDArray[np.float64]


def explained_loss(
    loss: NDArray[np.float64], choice: NDArray, at: Labelled, *, n_experts: int
) -> tuple[Explained, Explained]:
    """Share of the loss that the first choice explains beyond the token id.

    Parameters
    ----------
    loss : (token), nats.
    choice : (token), first choice of each.
    at : token ids.

    Returns
    -------
    Explained (), and Explained (unit) without each unit of text.
    """
    y, e = _centred(loss[at.counted], at), choice[at.counted].astype(np.int64)
    n_pairs, n_ids = len(at.pair_unit), at.n_labels
    own = _moments(y, e * n_pairs + at.pair, (n_experts, n_pairs))
    total = _moments(y, e * n_ids + at.label, (n_experts, n_ids))
    terms = _terms(total)
    change = _terms(total[..., at.pair_label] - own) - terms[:, at.pair_label]
    n_units = len(at.slices)
    by_unit = np.stack([np.bincount(at.pair_unit, c, minlength=n_units) for c in change])
    whole = terms.sum(axis=1)
    return _explained(whole), _explained(whole[:, None] + by_unit)


def explained_null(
    loss: NDArray[np.float64],
    choice: NDArray,
    at: Labelled,
    *,
    n_experts: int,
    n_resamples: int,
    rng: np.random.Generator,
) -> Explained:
    """The same when tokens of one id exchange their choices, (resample).

    Tokens of one id are taken to be exchangeable, also those of one unit of text.
    """
    y, e = _centred(loss[at.counted], at), choice[at.counted].astype(np.int64)
    shape = (n_experts, at.n_labels)
    order = np.argsort(at.label, kind="stable")
    label, sorted_choice = at.label[order], e[order] * at.n_labels
    small = at.label.astype(np.min_scalar_type(at.n_labels))
    terms = _terms(_moments(y, e * at.n_labels + at.label, shape)).sum(axis=1)
    counts = np.bincount(sorted_choice + label, minlength=n_experts * at.n_labels)

    def draws() -> Iterator[float]:
        for _ in range(n_resamples):
            drawn = rng.permutation(len(y))
            # tokens by id, in random order within each, beside the choices by id
            within = drawn[np.argsort(small[drawn], kind="stable")]
            sums = np.bincount(sorted_choice + label, y[within], minlength=len(counts))
            yield (sums**2 / np.maximum(counts, 1)).sum()

    null = np.tile(terms[:, None], n_resamples)
    null[0] = list(draws())
    return _explained(null)


def _centred(y: NDArray, at: Labelled) -> NDArray[np.float64]:
    """The loss less its mean over the tokens of an id, so that no sum cancels another."""
    n = np.maximum(np.bincount(at.label), 1)
    y = y.astype(np.float64)
    return y - (np.bincount(at.label, y) / n)[at.label]


def _moments(y: NDArray[np.float64], code: NDArray, shape: tuple[int, int]) -> NDArray[np.float64]:
    """Number, sum and sum of squares of y in each cell, (3, expert, label)."""
    weights = (np.ones_like(y), y, y**2)
    sums = [np.bincount(code, weight, minlength=shape[0] * shape[1]) for weight in weights]
    return np.stack(sums).astype(np.float64).reshape(3, *shape)


def _terms(moments: NDArray[np.float64]) -> NDArray[np.float64]:
    """What each id adds to sum_e S²/n, S²/n, sum of squares, n, cells and ids, (6, label)."""
    (n, total, _), (n_id, total_id, squares_id) = moments, moments.sum(axis=1)
    of_cells = (total**2 / np.maximum(n, 1)).sum(axis=0)
    of_id = total_id**2 / np.maximum(n_id, 1)
    return np.stack([of_cells, of_id, squares_id, n_id, (n > 0).sum(axis=0), n_id > 0])


def _explained(terms: NDArray[np.float64]) -> Explained:
    of_cells, of_ids, squares, n, cells, ids = terms
    between, within = np.maximum(of_cells - of_ids, 0.0), squares - of_ids
    freedom = cells - ids
    with np.errstate(invalid="ignore", divide="ignore"):
        error = (within - between) / (n - cells)
        omega2 = (between - freedom * error) / (between + (n - freedom) * error)
        return Explained(between / within, omega2)
