"""Kinds of curves by their shape: k-means, and whether other text would give the same kinds.

k-means divides any cloud of curves, clustered or not. So it comes with a check that can fail: the
kinds found on one half of the text have to be those found on the other half.

References
----------
.. [1] Lloyd (1982), doi:10.1109/TIT.1982.1056489 (k-means).
.. [2] Hubert and Arabie (1985), doi:10.1007/BF01908075 (the adjusted Rand index).
.. [3] Ben-Hur, Elisseeff and Guyon (2002), doi:10.1142/9789812799623_0002 (stability of clusters).
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

_N_STARTS = 4


class Clusters(NamedTuple):
    """Curves divided by shape.

    Attributes
    ----------
    label : (curve), from 0; early falls first.
    centre : (cluster, point), mean of the standardised curves of each cluster.
    """

    label: NDArray[np.intp]
    centre: NDArray[np.float64]


def standardized(curves: NDArray) -> NDArray:
    """Each curve less its mean and over its standard deviation, so that only shape is left.

    Parameters
    ----------
    curves : (curve, point); a constant curve becomes 0.
    """
    centred = curves - curves.mean(axis=-1, keepdims=True)
    spread = centred.std(axis=-1, keepdims=True)
    return centred / np.where(spread > 0, spread, 1)


def curve_clusters(
    curves: NDArray, *, n_clusters: int, most_fitted: int = 50_000, rng: np.random.Generator
) -> Clusters:
    """k-means [1]_ of the shapes of curves, the best of four starts.

    Parameters
    ----------
    curves : (curve, point), at points that count alike.
    n_clusters : k.
    most_fitted : curves that the centres are fitted to, drawn at random if there are more; all are
        then given to the nearest centre.

    Raises
    ------
    ValueError
        With fewer than 10 curves a cluster.
    """
    from sklearn.cluster import KMeans

    if len(curves) < 10 * n_clusters:
        raise ValueError(
            f"{n_clusters} clusters need at least {10 * n_clusters} curves, there are "
            f"{len(curves)}; use more text, or fewer clusters"
        )
    shapes = standardized(curves)
    seed = int(rng.integers(2**31))
    fitted = shapes
    if len(shapes) > most_fitted:
        fitted = shapes[rng.choice(len(shapes), size=most_fitted, replace=False)]
    means = KMeans(n_clusters, n_init=_N_STARTS, random_state=seed).fit(fitted)
    order = np.argsort(_centre_of_mass(means.cluster_centers_))
    rank = np.argsort(order)
    return Clusters(rank[means.predict(shapes)], means.cluster_centers_[order].astype(np.float64))


def cluster_stability(
    curves: NDArray,
    unit: NDArray[np.intp],
    *,
    n_clusters: int,
    n_splits: int = 10,
    most_used: int = 50_000,
    rng: np.random.Generator,
) -> NDArray[np.float64]:
    """Whether two halves of the text give the same clusters [3]_, (split).

    Centres are fitted to either half of the units, all curves are given to the nearest centre of
    both, and the two divisions compared by the adjusted Rand index [2]_: 1 if they agree, 0 on
    average if one says nothing about the other.

    Parameters
    ----------
    curves : (curve, point)
    unit : (curve), integer labels from 0.
    n_clusters : k.
    n_splits : random divisions of the units into halves.
    most_used : curves that are looked at, drawn at random if there are more.

    Returns
    -------
    array (split), at most 1; NaN where a half has too few curves.
    """
    from sklearn.metrics import adjusted_rand_score

    n_units = int(unit.max()) + 1
    if len(curves) > most_used:
        used = rng.choice(len(curves), size=most_used, replace=False)
        curves, unit = curves[used], unit[used]
    agreement = np.full(n_splits, np.nan)
    for split in range(n_splits):
        of_first = np.isin(unit, rng.permutation(n_units)[: n_units // 2])
        halves = [curves[of_first], curves[~of_first]]
        if min(map(len, halves)) < 10 * n_clusters:
            continue
        labels = []
        for half in halves:
            found = curve_clusters(half, n_clusters=n_clusters, rng=rng)
            labels.append(nearest(curves, found.centre))
        agreement[split] = adjusted_rand_score(*labels)
    return agreement


def nearest(curves: NDArray, centre: NDArray) -> NDArray[np.intp]:
    """The cluster whose centre is nearest to each curve's shape, (curve)."""
    # |s - c|² = |s|² - 2 s'c + |c|², and |s|² is the same for all centres
    return ((centre**2).sum(axis=-1) - 2 * standardized(curves) @ centre.T).argmin(axis=-1)


def _centre_of_mass(centre: NDArray) -> NDArray[np.float64]:
    """Where along the axis a curve still stands above its lowest value."""
    height = centre - centre.min(axis=-1, keepdims=True)
    return (height * np.arange(centre.shape[-1])).sum(axis=-1) / height.sum(axis=-1)
