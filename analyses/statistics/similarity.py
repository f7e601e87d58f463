r"""Centred kernel alignment of two representations, over all tokens at once.

With columns of X and Y centred, K = XX' and L = YY' [1]_,

    CKA = ||X'Y||_F² / (||X'X||_F ||Y'Y||_F) = <K, L> / sqrt(<K, K> <L, L>)

which is sqrt(pq / ((n+p)(n+q))) on average for independent Gaussians of p and q features. Debiased
[2]_ by leaving out each token's product with itself, |x_i|² = r_i and |y_i|² = s_i,

    N(X, Y) = ||X'Y||_F² - n/(n-2) sum_i r_i s_i + sum_i r_i sum_i s_i / ((n-1)(n-2))

takes the place of ||X'Y||_F², and is 0 on average for independent tokens. Tokens of one text are
not independent; `minibatch_cka` is for those.

References
----------
.. [1] Kornblith et al. (2019), arXiv:1905.00414.
.. [2] Song et al. (2012), Journal of Machine Learning Research 13, 1393-1434 (unbiased HSIC).
"""

from collections.abc import Sequence
from itertools import combinations
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from analyses.statistics.minibatch_cka import cka_from, u_centred
from analyses.statistics.representations import centred, paired, require_same_tokens


def linear_cka(x: NDArray, y: NDArray, *, debiased: bool = False) -> float:
    """Linear CKA, the same under rotation, isotropic scale and offset of either side.

    Parameters
    ----------
    x, y : (token, feature), at least 4 tokens.
    debiased : whether a token's similarity to itself is left out.

    Returns
    -------
    float in [0, 1]; debiased at most 1, below 0 by chance, NaN where a self term is not above 0.

    Raises
    ------
    ValueError
        For input that `representations.paired` refuses.
    """
    return float(linear_cka_table([x], [y], debiased=debiased)[0, 0])


def linear_cka_table(
    first: Sequence[NDArray], second: Sequence[NDArray] | None = None, *, debiased: bool = False
) -> NDArray[np.float64]:
    """`linear_cka` of each of `first` with each of `second`, (first, second).

    Takes one matrix product a pair, and one a representation. If `second` is not given it is
    `first`, and a pair is looked at once.
    """
    require_same_tokens([*first, *(second or [])])
    x = [_Centred.of(one, debiased=debiased) for one in first]
    own_x = np.array([_norm(a, a) for a in x])
    if second is None:
        cross = np.diag(own_x)
        for i, j in combinations(range(len(x)), 2):
            cross[i, j] = cross[j, i] = _norm(x[i], x[j])
        return cka_from(cross, own_x[:, None], own_x)
    y = [_Centred.of(one, debiased=debiased) for one in second]
    own_y = np.array([_norm(b, b) for b in y])
    cross = np.array([[_norm(a, b) for b in y] for a in x])
    return cka_from(cross, own_x[:, None], own_y)


def rbf_cka(x: NDArray, y: NDArray, *, bandwidth: float = 0.5, debiased: bool = False) -> float:
    """CKA of kernels exp(-|x_i - x_j|² / (2 t² m)), m the median squared distance [1]_.

    The smaller t, the more do near neighbours alone count. Time and memory grow as tokens squared:
    give a sample of some thousands.

    Parameters
    ----------
    x, y : (token, feature), at least 4 tokens.
    bandwidth : t; the median is over all pairs, a token with itself included.
    debiased : whether a token's similarity to itself is left out.

    Returns
    -------
    float, as of `linear_cka`.

    Raises
    ------
    ValueError
        For input that `representations.paired` refuses, a bandwidth not above 0, or if most pairs
        of tokens are the same.
    """
    if not bandwidth > 0:
        raise ValueError(f"bandwidth is {bandwidth}; give a number above 0, such as 0.5")
    kernels = [_rbf_kernel(z, bandwidth) for z in paired(x, y)]
    if debiased:
        k, m = (u_centred(kernel) for kernel in kernels)
    else:
        k, m = (kernel - kernel.mean(axis=0) for kernel in kernels)
        k, m = (kernel - kernel.mean(axis=1, keepdims=True) for kernel in (k, m))
    return float(cka_from(np.vdot(k, m), np.vdot(k, k), np.vdot(m, m)))


class _Centred(NamedTuple):
    """Centred tokens, and the |x_i|² that debiasing takes away: none if it is not asked for."""

    values: NDArray
    squares: NDArray[np.float64] | None

    @classmethod
    def of(cls, x: NDArray, *, debiased: bool) -> "_Centred":
        values = centred(x)
        if not debiased:
            return cls(values, None)
        return cls(values, np.einsum("tf,tf->t", values, values, dtype=np.float64))


def _norm(x: _Centred, y: _Centred) -> float:
    """||X'Y||_F², or N(X, Y)."""
    product = (x.values.T @ y.values).astype(np.float64, copy=False)
    square = float(np.vdot(product, product))
    if x.squares is None or y.squares is None:
        return square
    n, r, s = len(x.values), x.squares, y.squares
    return float(square - n / (n - 2) * (r @ s) + r.sum() * s.sum() / ((n - 1) * (n - 2)))


def _rbf_kernel(x: NDArray, bandwidth: float) -> NDArray[np.float64]:
    x = x.astype(np.float64, copy=False)
    square = np.einsum("tf,tf->t", x, x)
    distance = square[:, None] + square - 2 * x @ x.T
    np.fill_diagonal(distance, 0)
    np.maximum(distance, 0, out=distance)
    median = np.median(distance)
    if median <= 1e-12 * square.max():
        raise ValueError(
            f"the median squared distance of {len(x)} tokens is {median:.3g}: most are the same; "
            "leave out copies"
        )
    return np.exp(distance / (-2 * bandwidth**2 * median))
