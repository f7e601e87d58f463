r"""Similarities over all tokens at once, and what they are without each unit of text.

With centred tokens x_s and y_s, all of these stand on M = X'Y = sum_s x_s y_s'. Without a unit u, M
is M - M_u, M_u = sum_{s in u} x_s y_s', which need not be made for each u:

    ||M - M_u||_F² = ||M||_F² - 2 sum_{s in u} x_s' M y_s + sum_{s, t in u} (x_s · x_t) (y_s · y_t)

gives CKA [1]_, biased or debiased (`statistics.similarity`). Of the nuclear norm of Procrustes [2]_
with M = U S V', the first-order change is that along the best rotation,

    ||M - M_u||_* ~ ||M||_* - sum_{s in u} x_s' U V' y_s

Centring is that of all tokens throughout, whose change without one unit is of second order.

References
----------
.. [1] Kornblith et al. (2019), arXiv:1905.00414.
.. [2] Schönemann (1966), doi:10.1007/BF02289451; Williams et al. (2021), arXiv:2110.14739.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from analyses.statistics.representations import centred
from analyses.statistics.unit_cka import Similarity


class Representation(NamedTuple):
    """Centred tokens with what is needed of them again and again.

    Attributes
    ----------
    values : (token, feature)
    unit : (token), labels from 0.
    n_units : labels there may be; a unit of which there is no token changes nothing.
    squares : (token), |x_s|².
    within : (entry), x_s · x_t of all s and t of one unit.
    within_unit : (entry), that unit.
    """

    values: NDArray
    unit: NDArray[np.intp]
    n_units: int
    squares: NDArray[np.float64]
    within: NDArray
    within_unit: NDArray[np.intp]


def representation(x: NDArray, unit: NDArray[np.intp], *, n_units: int) -> Representation:
    """What the similarities of this file take.

    Parameters
    ----------
    x : (token, feature)
    unit : (token), label of its unit of text, from 0.
    n_units : labels there may be.

    Raises
    ------
    ValueError
        With fewer than 4 tokens, or values that are not finite or the same for all.
    """
    values = centred(x)
    members = [np.flatnonzero(unit == u) for u in range(n_units)]
    within = [(values[of] @ values[of].T).ravel() for of in members]
    return Representation(
        values, unit, n_units,
        np.einsum("tf,tf->t", values, values, dtype=np.float64),
        np.concatenate(within),
        np.repeat(np.arange(n_units), [len(of) for of in within]),
    )  # fmt: skip


def squared_norm(x: Representation, y: Representation) -> Similarity:
    """||M||_F² and ||M - M_u||_F²; CKA is that of two, by those of each with itself."""
    product = _product(x, y)
    square = np.asarray(np.vdot(product, product))
    own = np.bincount(x.within_unit, x.within * y.within, minlength=x.n_units)
    return Similarity(square, square - 2 * _along(x, y, product) + own)


def debiased(x: Representation, y: Representation, square: Similarity) -> Similarity:
    """`squared_norm` without each token's product with itself (`statistics.similarity`)."""
    parts = [_total(x, values) for values in (x.squares * y.squares, x.squares, y.squares)]
    n = _total(x, np.ones(len(x.unit)))
    found = [
        norm - m / (m - 2) * both + a * b / ((m - 1) * (m - 2))
        for norm, both, a, b, m in zip(square, *parts, n, strict=True)
    ]
    return Similarity(*found)


def procrustes(x: Representation, y: Representation) -> Similarity:
    """||M||_* by the Frobenius norms of X and Y, in [0, 1]; without a unit to first order."""
    left, singular, right = np.linalg.svd(_product(x, y), full_matrices=False)
    nuclear = singular.sum()
    without = nuclear - _along(x, y, left @ right)
    a, b = _total(x, x.squares), _total(y, y.squares)
    return Similarity(
        nuclear / np.sqrt(a.estimate * b.estimate), without / np.sqrt(a.deleted * b.deleted)
    )


def _product(x: Representation, y: Representation) -> NDArray[np.float64]:
    return (x.values.T @ y.values).astype(np.float64, copy=False)


def _along(
    x: Representation, y: Representation, direction: NDArray[np.float64]
) -> NDArray[np.float64]:
    """<D, M_u> of a direction D (feature, feature), (unit)."""
    turned = x.values @ direction.astype(x.values.dtype)
    of_token = np.einsum("tf,tf->t", turned, y.values)
    return _by_unit(x, of_token)


def _total(x: Representation, of_token: NDArray[np.float64]) -> Similarity:
    total = of_token.sum()
    return Similarity(total, total - _by_unit(x, of_token))


def _by_unit(x: Representation, of_token: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.bincount(x.unit, of_token, minlength=x.n_units).astype(np.float64, copy=False)
