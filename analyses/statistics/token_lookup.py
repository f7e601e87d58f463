"""What token ids alone give of a router's saturation: the token-lookup floor.

Early in training, routers were found to go by token id [1]_. What a lookup of the id would share of
the choices at two checkpoints tells how much of their saturation is more than that.

References
----------
.. [1] Xue et al. (2024), OpenMoE, arXiv:2402.01739 (routing by token id, fixed early).
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from analyses.statistics.documents import document_tokens
from analyses.statistics.information import contingency
from analyses.statistics.saturation import overlap


class Lookup(NamedTuple):
    """Saturation beside what token ids alone give, over tokens whose id occurs again; all (pair).

    Attributes
    ----------
    repeated, floor : saturation, and its token-lookup floor.
    repeated_deleted, floor_deleted : (unit, pair), the same without each unit.
    """

    repeated: NDArray[np.float64]
    floor: NDArray[np.float64]
    repeated_deleted: NDArray[np.float64]
    floor_deleted: NDArray[np.float64]


def lookup(
    choice: NDArray,
    label: NDArray[np.intp],
    unit: NDArray[np.intp],
    pairs: NDArray[np.intp],
    *,
    n_experts: int,
) -> Lookup:
    r"""Token-lookup floor: a token's route at c against that of another token of its id at c'.

    It is the mean saturation when routes change places at random among the occurrences of an id,
    with none left in its place. For id x with n_x tokens, n_xi of which chose expert i, their
    n_x (n_x - 1) ordered pairs share sum_i n_xi(c) n_xi(c') - sum_{t in x} |A_t(c) ∩ A_t(c')|
    choices, so that nothing is drawn.

    Parameters
    ----------
    choice : (step, token, top_k), expert indices.
    label : (token), token ids numbered from 0.
    unit : (token), integer labels from 0.
    pairs : (pair, 2), indices of the two checkpoints to compare.
    n_experts : N.
    """
    of_units = document_tokens(unit, n_tokens=len(label))
    n_ids = int(label.max()) + 1
    n = np.zeros(n_ids)
    counts = np.zeros((n_ids, len(choice), n_experts), dtype=np.float32)
    same = np.zeros((n_ids, len(pairs)))
    for where in of_units:
        ids, m, c, s = _by_id(choice[:, where], label[where], pairs, n_experts=n_experts)
        n[ids] += m
        counts[ids] += c
        same[ids] += s
    per_id = _repeated_sums(n, counts, same, pairs)
    total = per_id.sum(axis=0)
    deleted = np.empty((len(of_units), len(total)))
    # counted a second time, as the counts of all units together may not fit in memory
    for i, where in enumerate(of_units):
        ids, m, c, s = _by_id(choice[:, where], label[where], pairs, n_experts=n_experts)
        left = _repeated_sums(n[ids] - m, counts[ids] - c, same[ids] - s, pairs)
        deleted[i] = total - per_id[ids].sum(axis=0) + left.sum(axis=0)
    with np.errstate(invalid="ignore", divide="ignore"):
        found, without = (s[..., 1:] / (choice.shape[-1] * s[..., :1]) for s in (total, deleted))
    half = len(pairs)
    return Lookup(found[:half], found[half:], without[:, :half], without[:, half:])


def _by_id(
    choice: NDArray, label: NDArray[np.intp], pairs: NDArray[np.intp], *, n_experts: int
) -> tuple[NDArray, NDArray, NDArray, NDArray]:
    """Of some tokens: their distinct ids, and for each its tokens, choices and own overlaps."""
    ids, inverse, n = np.unique(label, return_inverse=True, return_counts=True)
    shape = (len(ids), n_experts)
    counts = np.stack(
        [contingency(inverse[:, None], of_step, shape=shape) for of_step in choice], axis=1
    )
    same = np.stack(
        [np.bincount(inverse, overlap(choice[a], choice[b]), minlength=len(ids)) for a, b in pairs],
        axis=1,
    )
    return ids, n.astype(np.float64), counts.astype(np.float32), same


def _repeated_sums(
    n: NDArray, counts: NDArray, same: NDArray, pairs: NDArray[np.intp]
) -> NDArray[np.float64]:
    """Of each id, 0 if it occurs once: tokens, own overlaps, overlaps expected from the others.

    Returns
    -------
    array (id, 1 + 2 pair)
    """
    repeated = n > 1
    n, counts, same = n[repeated], counts[repeated], same[repeated]
    sums = np.zeros((len(repeated), 1 + 2 * len(pairs)))
    together = np.stack(
        [np.einsum("xi,xi->x", counts[:, a], counts[:, b], dtype=np.float64) for a, b in pairs],
        axis=1,
    )
    sums[repeated, 0] = n
    sums[repeated, 1 : 1 + len(pairs)] = same
    sums[repeated, 1 + len(pairs) :] = (together - same) / (n[:, None] - 1)
    return sums
