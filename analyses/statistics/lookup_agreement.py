r"""How far two routers would agree if the token id alone told each of them where to go.

Two levels, both from one half of the text for the other, and with experts matched by pi
(`statistics.matching`). If each router looked up the experts that an id usually goes to, there
would be no noise of contexts. If the id alone tied the routers, a token of id x would have in
common what two different tokens s != s' of x have, one routed by each router,

    E |pi(A_s) ∩ A'_s'| = sum over i of (n_xi m_x,pi(i)) - sum over s of |pi(A_s) ∩ A'_s|,
                          divided by n_x (n_x - 1)

with n_xi and m_xj the choices of the n_x tokens of x by the first and the second router. It is the
mean over all exchanges of the second router's choices among the tokens of an id that leave none in
its place, so that nothing is drawn.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from analyses.statistics.information import contingency


class IdCounts(NamedTuple):
    """What one router does with each token id in each half of the text.

    Attributes
    ----------
    choices : (half, id, expert), choices of each expert.
    usual : (half, id, expert), whether an expert is one of the k commonest of the id; of an id that
        the half does not have, of the half as a whole. Ties go by load, then by number.
    """

    choices: NDArray[np.float64]
    usual: NDArray[np.float64]


def id_counts(
    choice: NDArray, label: NDArray[np.intp], in_first: NDArray[np.bool_], *, n_experts: int
) -> IdCounts:
    """Choices by token id in each half, and the experts that an id usually goes to.

    Parameters
    ----------
    choice : (token, top_k), expert indices.
    label : (token), token ids numbered from 0.
    in_first : (token), whether it lies in the first half.
    """
    shape, top_k = (int(label.max()) + 1, n_experts), choice.shape[1]
    counts = np.stack(
        [contingency(label[h, None], choice[h], shape=shape) for h in (in_first, ~in_first)]
    ).astype(np.float64)
    load = counts.sum(axis=1, keepdims=True) / counts.sum(axis=(1, 2), keepdims=True)
    # a load is below one choice: it settles ties, and stands in where an id has no choices
    best = np.argsort(-(counts + load), axis=-1, kind="stable")[..., :top_k]
    usual = np.zeros_like(counts)
    np.put_along_axis(usual, best, 1.0, axis=-1)
    return IdCounts(counts, usual)


def lookup_sums(
    first: IdCounts,
    second: IdCounts,
    pi: NDArray[np.intp],
    label: NDArray[np.intp],
    unit: NDArray[np.intp],
    in_first: NDArray[np.bool_],
) -> NDArray[np.float64]:
    """|pi(A_t) ∩ A'_t| summed over each unit if both routers looked up the usual experts, (unit).

    What is usual is found on the other half, as the matching is.

    Parameters
    ----------
    pi : (half, i) of `crossed_matching`.
    label, unit, in_first : (token)
    """
    of_halves = [
        np.einsum("xi,xi->x", first.usual[1 - h], second.usual[1 - h][:, pi[h]]) for h in (0, 1)
    ]
    shared = np.where(in_first, of_halves[0][label], of_halves[1][label])
    return np.bincount(unit, shared).astype(np.float64)


def floor_sums(
    choices: tuple[NDArray, NDArray],
    counts: tuple[IdCounts, IdCounts],
    pi: NDArray[np.intp],
    label: NDArray[np.intp],
    unit: NDArray[np.intp],
    in_first: NDArray[np.bool_],
) -> NDArray[np.float64]:
    r"""|pi(A_t) ∩ A'_t| summed over each unit if token ids alone tied the routers, (unit).

    A token of id x is expected to have what two different tokens s != s' of x in the other half
    have in common, on average |pi(A_s) ∩ A'_s'|; loads alone tell it if the other half has x no
    more than once.

    Parameters
    ----------
    choices : (token, top_k) of either router.
    counts : of either router.
    pi : (half, i) of `crossed_matching`.
    label, unit, in_first : (token)
    """
    (first, second), (n, m) = choices, counts
    top_k, expected = first.shape[1], []
    for half, of_half in ((0, ~in_first), (1, in_first)):
        own: NDArray = sum(
            (pi[half][first[of_half]] == column[:, None]).sum(axis=1)
            for column in second[of_half].T
        )
        n_x, m_x = n.choices[1 - half], m.choices[1 - half][:, pi[half]]
        tokens = n_x.sum(axis=1) / top_k
        same = np.bincount(label[of_half], own, minlength=len(tokens))
        by_load = (n_x.sum(axis=0) / tokens.sum()) @ (m_x.sum(axis=0) / tokens.sum())
        together = (n_x * m_x).sum(axis=1) - same
        repeated = tokens > 1
        orders = np.where(repeated, tokens * (tokens - 1), 1.0)
        expected.append(np.where(repeated, together / orders, by_load))
    shared = np.where(in_first, expected[0][label], expected[1][label])
    return np.bincount(unit, shared).astype(np.float64)
