r"""Pearson correlation of many models at once, from one small matrix per document.

With z_t = (1, x_1t, ..., x_mt) the losses of m models on token t, a document d is summed up by its
moment matrix M_d = sum_{t in d} z_t z_t'. It holds the count, the m sums and the m(m+1)/2
products, so any weighting of documents, w, is `tensordot(w, M, 1)` and costs nothing per token.
Every pair of models, every resampling scheme and every added column shares the same weights, which
makes comparisons paired by construction.

References
----------
.. [1] Fisher (1921), "On the 'probable error' of a coefficient of correlation", Metron 1, 3-32.
"""

import numpy as np
from numpy.typing import NDArray

from analyses.statistics.documents import document_slices

_ROUNDING = 1e-12
_LARGEST_R = 1.0 - 2.0**-52


def document_moments(values: NDArray, document: NDArray) -> NDArray[np.float64]:
    """Moment matrix of each document, after subtracting each row's mean over all tokens.

    Without that subtraction the products of float32 losses lose five digits to cancellation.

    Parameters
    ----------
    values : (m, token), any float dtype; sums are taken in float64.
    document : (token), integer labels from 0; tokens of a document need not be adjacent.

    Returns
    -------
    array (document, 1 + m, 1 + m), symmetric; entry (0, 0) is the number of tokens. A row with a
    value that is not finite is NaN throughout, and touches no other row.

    Raises
    ------
    ValueError
        If `document` does not have one label a token, or skips a label.
    """
    values = np.asarray(values)
    order, slices = document_slices(document, n_tokens=values.shape[-1])
    # one copy in float64, changed in place: values may take a good part of memory
    z = np.empty((1 + len(values), values.shape[-1]))
    z[0], centred = 1.0, z[1:]
    centred[:] = values if order is None else values[:, order]
    centred[~np.isfinite(values).all(axis=-1)] = np.nan
    centred -= centred.mean(axis=-1, keepdims=True)
    return np.stack([z[:, tokens] @ z[:, tokens].T for tokens in slices])


def pearson_r(moments: NDArray[np.float64]) -> NDArray[np.float64]:
    """Correlation matrix from moment matrices.

    Parameters
    ----------
    moments : (..., 1 + m, 1 + m), a weighted sum of what `document_moments` returns.

    Returns
    -------
    array (..., m, m) in [-1, 1]; NaN for a row that is constant or not finite.
    """
    count = moments[..., :1, :1]
    sums = moments[..., 1:, :1]
    products = moments[..., 1:, 1:]
    covariance = products - sums * np.swapaxes(sums, -1, -2) / count
    variance = np.diagonal(covariance, axis1=-2, axis2=-1)
    size = np.diagonal(products, axis1=-2, axis2=-1)
    varies = variance > _ROUNDING * size
    sd = np.sqrt(np.where(varies, variance, np.nan))
    return np.clip(covariance / (sd[..., :, None] * sd[..., None, :]), -1.0, 1.0)


def fisher_z(r: NDArray[np.float64]) -> NDArray[np.float64]:
    """Fisher's z = artanh(r), whose spread hardly depends on r [1]_.

    |r| is cut off one unit of float64 precision below 1, so that z stays within 18.4 and models
    with equal losses do not turn a mean of z into infinity.
    """
    return np.arctanh(np.clip(r, -_LARGEST_R, _LARGEST_R))


def r2_interval(z_ci: NDArray[np.float64]) -> NDArray[np.float64]:
    """Interval of r² from one of z, (..., ci_bound), from 0 up where r may have either sign."""
    r2 = np.sort(np.tanh(z_ci) ** 2, axis=-1)
    r2[..., 0] = np.where((z_ci[..., 0] < 0) & (z_ci[..., 1] > 0), 0.0, r2[..., 0])
    return r2


def average_ranks(values: NDArray) -> NDArray[np.float64]:
    """Ranks of each row, ties sharing their mean: Pearson's r of ranks is Spearman's.

    Ranked once and then treated as data, also when units are deleted: the error of Spearman's
    correlation so found was within 1.5% of that found by ranking again.

    Parameters
    ----------
    values : (m, token); a row with a value that is not finite is NaN throughout.
    """
    ranks = np.full(values.shape, np.nan)
    for row in np.flatnonzero(np.isfinite(values).all(axis=-1)):
        # scipy.stats.rankdata takes three times as long, most of a comparison of losses
        order = np.argsort(values[row])
        ordered = values[row, order]
        starts = np.flatnonzero(np.concatenate([[True], ordered[1:] != ordered[:-1]]))
        ties = np.diff(starts, append=len(order))
        ranks[row, order] = np.repeat(starts + (ties + 1) / 2, ties)
    return ranks


def mean_squared_difference(
    moments: NDArray[np.float64], mean: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Mean over tokens of (x_i - x_j)² for every two rows.

    Parameters
    ----------
    moments : (..., 1 + m, 1 + m), a weighted sum of what `document_moments` returns.
    mean : (m), the row means that `document_moments` subtracted.

    Returns
    -------
    array (..., m, m), at least 0.
    """
    count = moments[..., :1, :1]
    sums = moments[..., 1:, :1]
    products = moments[..., 1:, 1:]
    size = np.diagonal(products, axis1=-2, axis2=-1)
    apart = mean[:, None] - mean
    centred = size[..., :, None] + size[..., None, :] - 2 * products
    shifted = 2 * apart * (sums - np.swapaxes(sums, -1, -2)) + count * apart**2
    return np.maximum((centred + shifted) / count, 0.0)


def partial_r(moments: NDArray[np.float64], *, n_controls: int) -> NDArray[np.float64]:
    """Correlation matrix of what is left of each row after least squares on the controls.

    A control without anything of its own (constant, or given by those before it) drops out.

    Parameters
    ----------
    moments : (..., 1 + m + c, 1 + m + c), a weighted sum of what `document_moments` returns.
    n_controls : c, the last rows.

    Returns
    -------
    array (..., m, m) in [-1, 1]; NaN for a row that is not finite or that the controls explain.
    """
    # sweeping the count out first centres every row; each sweep leaves residuals' products
    residual = _swept(moments, 0, np.diagonal(moments, axis1=-2, axis2=-1))
    size = np.diagonal(residual, axis1=-2, axis2=-1)
    m = moments.shape[-1] - 1 - n_controls
    for control in range(m + 1, moments.shape[-1]):
        residual = _swept(residual, control, size)
    covariance = residual[..., 1 : m + 1, 1 : m + 1]
    variance = np.diagonal(covariance, axis1=-2, axis2=-1)
    varies = variance > _ROUNDING * size[..., 1 : m + 1]
    sd = np.sqrt(np.where(varies, variance, np.nan))
    return np.clip(covariance / (sd[..., :, None] * sd[..., None, :]), -1.0, 1.0)


def _swept(
    products: NDArray[np.float64], column: int, size: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Products of residuals after one column is fitted to all; a column of rounding error is not.

    Parameters
    ----------
    products : (..., n, n)
    size : (..., n), the diagonal before any other sweep.
    """
    own = products[..., column, column]
    fits = own > _ROUNDING * size[..., column]
    weight = np.where(fits, 1 / np.where(fits, own, 1.0), 0.0)
    along = products[..., column]
    return products - (weight[..., None] * along)[..., :, None] * along[..., None, :]
