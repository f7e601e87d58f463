r"""Linear CKA of two representations of tokens, without what tokens of one unit of text share.

With x_s and y_s the centred rows of token s, linear CKA [1]_ compares similarities of two tokens,

    CKA = C(X, Y) / sqrt(C(X, X) C(Y, Y)),        C(X, Y) = sum_st (x_s · x_t) (y_s · y_t)

Pairs s = t make it too large, which debiasing [2]_ removes; but tokens of one document are alike in
any representation, and independent ones still score .13 to .44. So pairs within a unit of text are
left out. With M_u = sum_{s in u} x_s y_s',

    C(X, Y) = ||sum_u M_u||² - c sum_u ||M_u||²,        c = 1 + 1/(U - 1) for U equal units

and c, slightly above 1, for what centring by the estimated mean adds between units: if x and y are
the same throughout a unit and independent of each other, C is 0 on average for units of any size.

References
----------
.. [1] Kornblith et al. (2019), arXiv:1905.00414.
.. [2] Song et al. (2012), Journal of Machine Learning Research 13, 1393-1434 (unbiased HSIC);
   Nguyen et al. (2021), arXiv:2010.15327.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray


class Similarity(NamedTuple):
    """C(X, Y), or CKA.

    Attributes
    ----------
    estimate : over all units.
    deleted : (unit), without each, rows still centred by the mean over all units.
    """

    estimate: NDArray[np.float64]
    deleted: NDArray[np.float64]


def feature_products(x: NDArray, y: NDArray, slices: list[slice]) -> NDArray[np.float64]:
    """M_u of each unit, (unit, p, q).

    Parameters
    ----------
    x, y : (token, p), (token, q), centred, tokens sorted by unit.
    slices : where each unit stands.
    """
    return np.stack([x[tokens].T @ y[tokens] for tokens in slices])


def choice_products(tables: NDArray, *, top_k: int) -> NDArray[np.float64]:
    """M_u of the centred indicators 1[i in A_t] and 1[j in A'_t], (unit, i, j).

    Parameters
    ----------
    tables : (unit, i, j) of `matching.unit_tables`.
    """
    first, second = tables.sum(axis=2) / top_k, tables.sum(axis=1) / top_k
    tokens = first.sum(axis=1) / top_k
    mean, other_mean = (x.sum(axis=0) / tokens.sum() for x in (first, second))
    products = tables - first[:, :, None] * other_mean
    products -= mean[:, None] * (second - tokens[:, None] * other_mean)[:, None, :]
    return products


def similarity(products: NDArray, tokens: NDArray) -> Similarity:
    """C(X, Y) from the M_u (unit, p, q) of units with so many tokens (unit)."""
    own = np.einsum("uij,uij->u", products, products)
    total = products.sum(axis=0)
    without = np.array([((total - of_unit) ** 2).sum() for of_unit in products])
    n = len(tokens)
    excess = [centring_excess(np.delete(tokens, unit)) for unit in range(n)]
    deleted = without - np.array(excess) * (own.sum() - own)
    return Similarity((total**2).sum() - centring_excess(tokens) * own.sum(), deleted)


def cka(cross: Similarity, first: Similarity, second: Similarity) -> Similarity:
    """CKA from C(X, Y), C(X, X) and C(Y, Y); NaN where one of the last two is not above 0."""
    found = []
    for c, a, b in zip(cross, first, second, strict=True):
        there = (np.asarray(a) > 0) & (np.asarray(b) > 0)
        scale = np.sqrt(np.where(there, a, np.nan) * np.where(there, b, np.nan))
        found.append(c / scale)
    return Similarity(*found)


def centring_excess(tokens: NDArray) -> float:
    r"""c, from E(x_u · x_v) = v (1[u = v] - w_u - w_v + sum w²) for units of variance v, shares w.

    Parameters
    ----------
    tokens : (unit), at least one; infinite for a single unit, which nothing is left of.
    """
    if len(tokens) < 2:
        return float("inf")
    w = tokens / tokens.sum()
    square, cube = (w**2).sum(), (w**3).sum()
    # sum_uv w_u w_v (w_u + w_v - sum w²)², of which pairs u = v are taken away
    between = 2 * cube - square**2 - (w**2 * (2 * w - square) ** 2).sum()
    return float(1 + between / (w**2 * (1 - 2 * w + square) ** 2).sum())
