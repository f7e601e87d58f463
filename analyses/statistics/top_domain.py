r"""Whether an expert matters more in the domain that it takes most of.

The domain is chosen on one half of the units of text and the change of loss is measured on the
other, so that a domain which an expert takes most of by accident gains nothing from that [1]_.

References
----------
.. [1] Kriegeskorte et al. (2009), doi:10.1038/nn.2303 (selecting and measuring on the same data).
"""

import numpy as np
from numpy.typing import NDArray


def top_domain_contrast(
    change: NDArray[np.float64],
    tokens: NDArray[np.float64],
    served: NDArray[np.float64],
    size: NDArray[np.float64],
    domain: NDArray[np.intp],
    first: NDArray[np.bool_],
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    r"""How much more an expert matters in the domain it takes most of than elsewhere.

    With M_de the mean change in domain d without expert e, and M_d. its mean over experts, which
    takes out that some domains suffer more from any knock-out,

        mean_e [ (M_{d*e} - M_{d*.}) - mean_{d != d*} (M_de - M_d.) ]

    d* being the domain with the largest share of tokens served by e, relative to its load, in the
    other half of the units. Both halves choose once and measure once; the mean of the two is given.

    Parameters
    ----------
    change : (unit, expert, ...), sums of changes.
    tokens : (unit, expert), tokens that each sum is over.
    served : (unit, expert), tokens that chose the expert.
    size : (unit), tokens.
    domain : (unit), integer labels from 0.
    first : bool (unit), which half a unit is in.

    Returns
    -------
    estimate : (...); NaN with fewer than two domains that have units in both halves.
    deleted : (unit, ...), without each unit where it is measured; the choice of d* is held fixed.
    """
    shape = change.shape[2:]
    labels = np.intersect1d(domain[first], domain[~first])
    if len(labels) < 2:
        return np.full(shape, np.nan), np.full((len(size), *shape), np.nan)
    members = (labels[:, None] == domain).astype(np.float64)
    estimates, deleted = [], np.empty((2, len(size), *shape))
    for half, chosen_on in enumerate((first, ~first)):
        inside = members * chosen_on
        # the domain's share relative to the load has the same order in d as the share
        share = (inside @ served) / (inside @ size)[:, None]
        top = share.argmax(axis=0)
        measured = members * ~chosen_on
        sums = np.tensordot(measured, change, 1)
        counts = measured @ tokens
        estimate = _contrast(sums, counts, top)
        estimates.append(estimate)
        for u in range(len(size)):
            own = measured[:, u]
            if not own.any():
                deleted[half, u] = estimate
                continue
            rest = sums - own.reshape(-1, *[1] * (change.ndim - 1)) * change[u]
            deleted[half, u] = _contrast(rest, counts - own[:, None] * tokens[u], top)
    return np.mean(estimates, axis=0), deleted.mean(axis=0)


def _contrast(
    sums: NDArray[np.float64], counts: NDArray[np.float64], top: NDArray[np.intp]
) -> NDArray[np.float64]:
    """Mean over experts of the top domain against the others, from (domain, expert, ...)."""
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = sums / counts.reshape(*counts.shape, *[1] * (sums.ndim - 2))
    there = np.isfinite(mean)
    mean = np.where(there, mean, 0.0)
    own = mean - mean.sum(axis=1, keepdims=True) / np.maximum(there.sum(axis=1, keepdims=True), 1)
    own = np.where(there, own, 0.0)
    is_top = (np.arange(len(mean))[:, None] == top).reshape(*counts.shape, *[1] * (sums.ndim - 2))
    others, n_others = (own * ~is_top).sum(axis=0), (there & ~is_top).sum(axis=0)
    with np.errstate(invalid="ignore", divide="ignore"):
        contrast = (own * is_top).sum(axis=0) - others / n_others
    usable = (there & is_top).any(axis=0) & (n_others > 0)
    n = usable.sum(axis=0)
    total = np.where(usable, contrast, 0.0).sum(axis=0)
    return np.where(n > 0, total / np.maximum(n, 1), np.nan)
