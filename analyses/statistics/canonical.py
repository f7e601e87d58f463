r"""Canonical correlations of two representations: do they hold the same, up to any linear map?

With orthonormal bases Q_x and Q_y of the centred columns, the canonical correlations rho_i are the
singular values of Q_x'Q_y [1]_. As any invertible linear map is ignored, directions of almost no
variance count as much as the largest, and independent representations of n tokens with p and q
features still have mean rho² max(p, q)/(n - 1). SVCCA [2]_ and PWCCA [3]_ weigh against the first,
not the second. They are here for comparison with older work.

References
----------
.. [1] Hotelling (1936), doi:10.1093/biomet/28.3-4.321; Björck and Golub (1973),
   doi:10.1090/S0025-5718-1973-0348991-3 (by orthonormal bases).
.. [2] Raghu et al. (2017), arXiv:1706.05806.
.. [3] Morcos, Raghu and Bengio (2018), arXiv:1806.05759.
"""

import numpy as np
from numpy.typing import NDArray

from analyses.statistics.representations import paired


def mean_squared_cca(x: NDArray, y: NDArray) -> float:
    """Mean of the squared canonical correlations, of the smaller number of directions.

    Parameters
    ----------
    x, y : (token, feature), with more tokens than both have directions together.

    Returns
    -------
    float in [0, 1]

    Raises
    ------
    ValueError
        For input that `representations.paired` refuses, or with too few tokens.
    """
    q_x, q_y = _bases(*paired(x, y))
    return float((_correlations(q_x, q_y) ** 2).mean())


def svcca(x: NDArray, y: NDArray, *, variance: float = 0.99) -> float:
    """Mean canonical correlation of the principal components that hold most variance [2]_.

    Parameters
    ----------
    x, y : as for `mean_squared_cca`.
    variance : share that the components kept of either side hold at least, in (0, 1].

    Returns
    -------
    float in [0, 1]

    Raises
    ------
    ValueError
        As of `mean_squared_cca`, or for a share outside (0, 1].
    """
    if not 0 < variance <= 1:
        raise ValueError(f"the share of variance is {variance}; give one in (0, 1]")
    q_x, q_y = _bases(*paired(x, y), variance=variance)
    return float(_correlations(q_x, q_y).mean())


def pwcca(x: NDArray, y: NDArray) -> float:
    """Mean canonical correlation, weighted by how much of x each direction accounts for [3]_.

    The weight of the canonical variate h_i of x is sum_j |h_i'x_j| over the columns x_j. With x and
    y exchanged it is another number.

    Parameters
    ----------
    x, y : as for `mean_squared_cca`.

    Returns
    -------
    float in [0, 1]

    Raises
    ------
    ValueError
        As of `mean_squared_cca`.
    """
    centred_x, centred_y = paired(x, y)
    q_x, q_y = _bases(centred_x, centred_y)
    u, rho, _ = np.linalg.svd(q_x.T @ q_y, full_matrices=False)
    weight = np.abs((q_x @ u).T @ centred_x).sum(axis=1)
    return float(weight @ np.minimum(rho, 1) / weight.sum())


def _bases(
    x: NDArray, y: NDArray, *, variance: float = 1.0
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Q_x and Q_y, where some correlation can be below 1."""
    q_x, q_y = (_directions(z, variance=variance) for z in (x, y))
    n, p, q = len(x), q_x.shape[1], q_y.shape[1]
    # p + q directions of the n - 1 that centred tokens have must meet in p + q - n + 1
    if p + q > n - 1:
        raise ValueError(
            f"{p} and {q} directions of {n} tokens have canonical correlations that are 1 whatever "
            "they hold; give more tokens than both together, or a smaller share of variance to "
            "svcca"
        )
    return q_x, q_y


def _correlations(q_x: NDArray, q_y: NDArray) -> NDArray[np.float64]:
    return np.minimum(np.linalg.svd(q_x.T @ q_y, compute_uv=False), 1)


def _directions(x: NDArray, *, variance: float = 1.0) -> NDArray[np.float64]:
    """Orthonormal basis (token, direction) of the principal components that hold this share."""
    q, size, _ = np.linalg.svd(x.astype(np.float64, copy=False), full_matrices=False)
    # what is smaller is rounding of the input
    size = size[size > max(x.shape) * np.finfo(x.dtype).eps * size[0]]
    share = np.cumsum(size**2) / (size**2).sum()
    kept = int((share < variance - 1e-12).sum()) + 1
    return q[:, :kept]
