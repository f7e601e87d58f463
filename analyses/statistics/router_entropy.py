r"""How sure a router is of each token, and what it tells tokens apart by, in nats.

With r_t the router's distribution over N experts at token t, before the choice of k,

    H(mean_t r_t) = mean_t H(r_t) + I(token; expert)

where I is the mean Kullback-Leibler divergence of r_t from the mean distribution: the
Jensen-Shannon divergence of all the r_t [1]_. Even use of the experts is either indecision, if
H(r_t) is high, or division of labour, if I is.

References
----------
.. [1] Lin (1991), doi:10.1109/18.61115 (Jensen-Shannon divergence of any number of distributions).
.. [2] Shannon (1948), doi:10.1002/j.1538-7305.1948.tb01338.x (entropy, mutual information).
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from analyses.statistics.correlation import (
    average_ranks,
    document_moments,
    fisher_z,
    partial_r,
    pearson_r,
)
from analyses.statistics.documents import document_tokens
from analyses.statistics.information import entropy
from analyses.statistics.resampling import leave_one_out


class Uncertainty(NamedTuple):
    """What is kept of the router's distributions.

    Attributes
    ----------
    entropy : (token), H(r_t), nats.
    sums : (unit, 3 + expert), over the tokens of each unit: their number, their entropies, their
        margins, and their distributions.
    """

    entropy: NDArray[np.float64]
    sums: NDArray[np.float64]


def uncertainty(prob: NDArray, unit: NDArray[np.intp]) -> Uncertainty:
    """Entropy of every token, and sums over units, one unit in float64 at a time.

    The margin of a token is the difference of its two largest probabilities.

    Parameters
    ----------
    prob : (token, expert), at least 0; scaled to sum to 1, which float16 does not quite.
    unit : (token), integer labels from 0.
    """
    of_units = document_tokens(unit, n_tokens=len(prob))
    of_token = np.empty(len(prob))
    sums = np.empty((len(of_units), 3 + prob.shape[1]))
    for i, where in enumerate(of_units):
        p = prob[where].astype(np.float64)
        p /= p.sum(axis=-1, keepdims=True)
        of_token[where] = entropy(p)
        two = np.partition(p, (-2, -1), axis=-1)[:, -2:]
        margin = (two[:, 1] - two[:, 0]).sum()
        sums[i] = [len(p), of_token[where].sum(), margin, *p.sum(axis=0)]
    return Uncertainty(of_token, sums)


def decomposition(sums: NDArray[np.float64]) -> dict[str, NDArray[np.float64]]:
    """The three entropies of the module's formula, and the mean margin.

    Parameters
    ----------
    sums : (..., 3 + expert), added-up rows of `Uncertainty.sums`.

    Returns
    -------
    dict
        `router_entropy`, H(mean r), at most ln N; `token_entropy`, mean H(r); `token_information`,
        their difference, at least 0; `margin`, in [0, 1]; all (...).
    """
    n, total, margin = sums[..., 0], sums[..., 1], sums[..., 2]
    of_mean, of_token = entropy(sums[..., 3:]), total / n
    return {
        "router_entropy": of_mean,
        "token_entropy": of_token,
        "token_information": np.maximum(of_mean - of_token, 0.0),
        "margin": margin / n,
    }


def loss_relation(
    of_token: NDArray[np.float64],
    loss: NDArray,
    unit: NDArray[np.intp],
    *,
    controls: NDArray[np.float64],
) -> dict[str, tuple[NDArray[np.float64], NDArray[np.float64]]]:
    """Correlation of the router's entropy with the loss, on Fisher's z.

    Parameters
    ----------
    of_token : (layer, token), entropies.
    loss : (token), nats.
    unit : (token), integer labels from 0.
    controls : (column, token), what the partial correlation holds fixed.

    Returns
    -------
    dict
        For `entropy_loss_r` (Pearson), `entropy_loss_rho` (Spearman) and `entropy_loss_partial_r`
        the estimate (layer) and the estimate without each unit (unit, layer); NaN for a layer whose
        entropy is the same at all tokens.
    """
    rows = np.concatenate([of_token, loss[None].astype(np.float64)])
    ranked = document_moments(average_ranks(rows), unit)
    moments = document_moments(np.concatenate([rows, controls]), unit)
    n = len(rows)
    found = {
        "entropy_loss_r": (pearson_r, moments[:, : n + 1, : n + 1]),
        "entropy_loss_rho": (pearson_r, ranked),
        "entropy_loss_partial_r": (lambda m: partial_r(m, n_controls=len(controls)), moments),
    }
    return {
        name: (fisher_z(r(m.sum(axis=0))[:-1, -1]), fisher_z(r(leave_one_out(m))[..., :-1, -1]))
        for name, (r, m) in found.items()
    }
