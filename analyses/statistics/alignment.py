r"""Similarity of two representations by rotation, distances, neighbours, or linear prediction.

Each sees what the others do not. Procrustes asks how near a rotation brings one to the other; RSA
[2]_ whether the same pairs of tokens are far apart; mutual neighbours [3]_ whether the nearest ones
are the same, which no outlier can fool; r² how much of one can be read off the other linearly.

References
----------
.. [1] Schönemann (1966), doi:10.1007/BF02289451; Williams et al. (2021), arXiv:2110.14739.
.. [2] Kriegeskorte, Mur and Bandettini (2008), doi:10.3389/neuro.06.004.2008.
.. [3] Huh et al. (2024), arXiv:2405.07987.
.. [4] Kornblith et al. (2019), arXiv:1905.00414 (r² of a regression on a representation).
"""

from typing import Literal

import numpy as np
from numpy.typing import NDArray

from analyses.statistics.correlation import average_ranks
from analyses.statistics.representations import paired

_BLOCK_ROWS = 1024
Dissimilarity = Literal["correlation", "euclidean"]


def procrustes(x: NDArray, y: NDArray) -> float:
    """Nuclear norm ||X'Y||_*, both sides centred and of Frobenius norm 1 [1]_.

    The squared distance after the best rotation is 2 - 2 ||X'Y||_*. Independent Gaussians of p
    features each score about 0.85 sqrt(p/n).

    Parameters
    ----------
    x, y : (token, feature); the narrower is as if padded with zeros.

    Returns
    -------
    float in [0, 1], 1 if they are the same up to rotation, scale and offset.

    Raises
    ------
    ValueError
        For input that `representations.paired` refuses.
    """
    a, b = (z.astype(np.float64, copy=False) for z in paired(x, y))
    nuclear = np.linalg.svd(a.T @ b, compute_uv=False).sum()
    return float(nuclear / (np.linalg.norm(a) * np.linalg.norm(b)))


def rsa(x: NDArray, y: NDArray, *, dissimilarity: Dissimilarity = "correlation") -> float:
    """Spearman correlation of the dissimilarities of all pairs of tokens [2]_.

    Time and memory grow as tokens squared: give a sample of one or two thousand.

    Parameters
    ----------
    x, y : (token, feature), centred first.
    dissimilarity : "correlation", 1 - Pearson correlation of two tokens' features, which ignores
        their norms; or "euclidean" distance.

    Returns
    -------
    float in [-1, 1]; NaN if all pairs are equally dissimilar.

    Raises
    ------
    ValueError
        For input that `representations.paired` refuses, or another dissimilarity.
    """
    if dissimilarity not in ("correlation", "euclidean"):
        raise ValueError(
            f"dissimilarity {dissimilarity!r} is not known; choose 'correlation' or 'euclidean'"
        )
    pairs = [_pairwise(z, dissimilarity) for z in paired(x, y)]
    first, second = (ranks - ranks.mean() for ranks in average_ranks(np.stack(pairs)))
    scale = np.linalg.norm(first) * np.linalg.norm(second)
    return float(first @ second / scale) if scale > 0 else float("nan")


def mutual_knn(
    x: NDArray, y: NDArray, *, k: int = 10, unit: NDArray[np.intp] | None = None
) -> float:
    """Share of a token's k nearest neighbours by cosine that both representations have [3]_.

    Chance is k/(n - 1) if tokens are independent; those of one text are neighbours in anything, so
    give `unit`.

    Parameters
    ----------
    x, y : (token, feature), centred first.
    k : neighbours, of which a token itself is none.
    unit : (token), the unit of text of each, whose other tokens are then no neighbours either.

    Returns
    -------
    float in [0, 1]

    Raises
    ------
    ValueError
        For input that `representations.paired` refuses, or if k is below 1 or more than there are.
    """
    a, b = (neighbours(z, k=k, unit=unit) for z in paired(x, y))
    return shared_neighbours(a, b)


def neighbours(
    x: NDArray, *, k: int = 10, unit: NDArray[np.intp] | None = None
) -> NDArray[np.intp]:
    """The k nearest neighbours of each token by cosine, (token, k), in no order.

    Parameters
    ----------
    x : (token, feature), centred.
    k, unit : as for `mutual_knn`.

    Raises
    ------
    ValueError
        If k is below 1 or more than there are.
    """
    n = len(x)
    own = np.arange(n) if unit is None else _numbered(unit, n)
    candidates = n - int(np.bincount(own).max())
    if not 1 <= k <= candidates:
        raise ValueError(
            f"{k} neighbours are asked for, a token has {candidates} that may be one; give k "
            "between 1 and that, or more text"
        )
    x = x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-30)
    found = np.empty((n, k), dtype=np.intp)
    for start in range(0, n, _BLOCK_ROWS):
        rows = slice(start, start + _BLOCK_ROWS)
        cosine = x[rows] @ x.T
        cosine[own[rows, None] == own] = -np.inf
        found[rows] = np.argpartition(cosine, -k, axis=1)[:, -k:]
    return found


def shared_neighbours(a: NDArray[np.intp], b: NDArray[np.intp]) -> float:
    """Share of neighbours (token, k) that are the same in both, in [0, 1]."""
    return float((a[:, :, None] == b[:, None, :]).sum() / a.size)


def linear_r2(
    x: NDArray, y: NDArray, *, unit: NDArray[np.intp] | None = None, n_folds: int = 5
) -> float:
    """Variance of y that least squares on x predicts in text it was not fitted to.

    Cross-validated: unit u is predicted from the folds that it is not in, of which there are
    `n_folds`, u modulo that. Total squares are about the mean of the same folds, so that it is
    below 0 where x is of no use. How much of x is in y is `linear_r2(y, x)`.

    Parameters
    ----------
    x, y : (token, feature)
    unit : (token), the unit of text of each, kept in one fold; each token by itself if not given.
    n_folds : at least 2, at most the number of units.

    Returns
    -------
    float, at most 1.

    Raises
    ------
    ValueError
        For input that `representations.paired` refuses, or with too few units.
    """
    a, b = (z.astype(np.float64, copy=False) for z in paired(x, y))
    own = np.arange(len(a)) if unit is None else _numbered(unit, len(a))
    n_units = int(own.max()) + 1
    if not 2 <= n_folds <= n_units:
        raise ValueError(
            f"{n_folds} folds of {n_units} units of text cannot be made; give at least 2 folds, "
            "and a unit each"
        )
    left = total = 0.0
    for fold in range(n_folds):
        held = own % n_folds == fold
        mean_x, mean_y = a[~held].mean(axis=0), b[~held].mean(axis=0)
        weights = np.linalg.lstsq(a[~held] - mean_x, b[~held] - mean_y, rcond=None)[0]
        target = b[held] - mean_y
        left += ((target - (a[held] - mean_x) @ weights) ** 2).sum()
        total += (target**2).sum()
    return float(1 - left / total)


def _pairwise(x: NDArray, dissimilarity: Dissimilarity) -> NDArray[np.float64]:
    """Of all pairs of tokens, on the scale of their order."""
    from scipy.spatial.distance import pdist

    rounding = 8 * np.finfo(x.dtype).eps
    x = x.astype(np.float64, copy=False)
    if dissimilarity == "euclidean":
        return pdist(x)
    x = x - x.mean(axis=1, keepdims=True)
    length = np.linalg.norm(x, axis=1, keepdims=True)
    if length.min() <= rounding * length.max():
        raise ValueError(
            f"token {int(np.argmin(length))} has the same value of all features, so that it has no "
            "correlation with others; choose dissimilarity 'euclidean'"
        )
    x = x / length
    return 1 - (x @ x.T)[np.triu_indices(len(x), 1)]


def _numbered(unit: NDArray, n_tokens: int) -> NDArray[np.intp]:
    unit = np.asarray(unit)
    if unit.shape != (n_tokens,):
        raise ValueError(
            f"labels of units have shape {unit.shape} for {n_tokens} tokens; give one a token"
        )
    return np.unique(unit, return_inverse=True)[1]
