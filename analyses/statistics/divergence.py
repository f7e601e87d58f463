r"""How far distributions are apart: Kullback-Leibler and Jensen-Shannon divergence, in nats.

    KL(p, q) = sum_v p_v (ln p_v - ln q_v)                                             [1]_
    JS(p, q) = (KL(p, m) + KL(q, m))/2 = H(m) - (H(p) + H(q))/2,    m = (p + q)/2      [2]_

KL has no largest value; JS is at most ln 2, and finite where one distribution is 0. An id with
p_v = 0 adds nothing; one with q_v = 0 < p_v makes KL(p, q) infinite. Distributions come as
logarithms and are renormalised, as rounded ones do not sum to 1; sums are taken in float64.

References
----------
.. [1] Kullback and Leibler (1951), doi:10.1214/aoms/1177729694.
.. [2] Lin (1991), doi:10.1109/18.61115.
"""

import os
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

_ELEMENTS = 2**20


class DivergenceSums(NamedTuple):
    """Sums of divergences over the tokens of each cell.

    Attributes
    ----------
    kl : (cell, model, model), the mean of both directions of KL.
    js : (cell, model, model)
    reference : (cell, reference, model), KL of each model from each reference.
    """

    kl: NDArray[np.float64]
    js: NDArray[np.float64]
    reference: NDArray[np.float64]


def distributions(log_prob: NDArray) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Probabilities that sum to 1 over the last axis, and their logarithms, in float64.

    Parameters
    ----------
    log_prob : (..., d_vocab), up to a constant; -inf for an impossible id. A distribution with a
        NaN, or with no possible id, is NaN.
    """
    log_p = np.asarray(log_prob, dtype=np.float64)
    with np.errstate(invalid="ignore"):
        log_p = log_p - log_p.max(axis=-1, keepdims=True)
        p = np.exp(log_p)
        total = p.sum(axis=-1, keepdims=True)
        return p / total, log_p - np.log(total)


def kl_divergence(log_p: NDArray, log_q: NDArray) -> NDArray[np.float64]:
    """KL(p, q), at least 0.

    Parameters
    ----------
    log_p, log_q : (..., d_vocab), log probabilities; they broadcast.

    Returns
    -------
    array (...), nats; infinite where q lacks an id that p has.
    """
    p, log_p = distributions(log_p)
    _, log_q = distributions(log_q)
    with np.errstate(invalid="ignore"):
        terms = np.where(p == 0, 0.0, p * (log_p - log_q))
    return np.maximum(terms.sum(axis=-1), 0.0)


def js_divergence(log_p: NDArray, log_q: NDArray) -> NDArray[np.float64]:
    """JS(p, q), in [0, ln 2].

    Parameters
    ----------
    log_p, log_q : (..., d_vocab), log probabilities; they broadcast.

    Returns
    -------
    array (...), nats.
    """
    (p, _), (q, _) = distributions(log_p), distributions(log_q)
    apart = _entropy((p + q) / 2) - (_entropy(p) + _entropy(q)) / 2
    return np.clip(apart, 0.0, np.log(2))


def divergence_sums(
    log_prob: NDArray, cell: NDArray[np.intp], *, n_cells: int, reference: NDArray
) -> DivergenceSums:
    """Divergences of every pair of models, and of each from references, summed over tokens.

    Tokens pass in blocks, one on each processor, so that memory does not grow with their number.
    The logarithm that JS takes of every pair and id is what costs time.

    Parameters
    ----------
    log_prob : (model, token, d_vocab), any float dtype; a model with a NaN anywhere is NaN in all.
    cell : (token), integer label from 0 to n_cells - 1.
    reference : (reference, d_vocab), log probabilities of distributions that no token changes.
    """
    m, n_tokens, n_ids = log_prob.shape
    missing = np.isnan(log_prob).any(axis=(1, 2))
    size = max(1, _ELEMENTS // (m * n_ids))
    blocks = [slice(start, start + size) for start in range(0, n_tokens, size)]
    sums = DivergenceSums(*(np.zeros((n_cells, n, m)) for n in (m, m, len(reference))))
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        of_blocks = pool.map(lambda block: _of_tokens(log_prob[:, block], reference), blocks)
        for block, of_tokens in zip(blocks, of_blocks, strict=True):
            for total, values in zip(sums, of_tokens, strict=True):
                np.add.at(total, cell[block], values)
    for total in sums:
        total[..., missing] = np.nan
    sums.kl[:, missing] = sums.js[:, missing] = np.nan
    return sums


def _of_tokens(log_prob: NDArray, reference: NDArray) -> DivergenceSums:
    """What `divergence_sums` sums, token by token, from (model, token, d_vocab)."""
    p, log_p = distributions(log_prob)
    from_reference = [kl_divergence(log_p, log_q).T for log_q in reference]
    return DivergenceSums(_kl_of_pairs(p, log_p), _js_of_pairs(p), np.stack(from_reference, axis=1))


def _kl_of_pairs(p: NDArray[np.float64], log_p: NDArray[np.float64]) -> NDArray[np.float64]:
    """sum_v (p_i - p_j)(ln p_i - ln p_j)/2 of every two models, (token, model, model).

    Both factors of a term have the same sign, so that nothing cancels.

    Parameters
    ----------
    p, log_p : (model, token, d_vocab)
    """
    m, n_tokens, _ = p.shape
    kl = np.zeros((n_tokens, m, m))
    some_impossible = np.isneginf(log_p).any()
    for i in range(m):
        for j in range(i + 1, m):
            if some_impossible:
                both = kl_divergence(log_p[i], log_p[j]) + kl_divergence(log_p[j], log_p[i])
            else:
                both = np.einsum("tv,tv->t", p[i] - p[j], log_p[i] - log_p[j])
            kl[:, i, j] = kl[:, j, i] = both / 2
    return kl


def _js_of_pairs(p: NDArray[np.float64]) -> NDArray[np.float64]:
    """JS of every two models, (token, model, model), from (model, token, d_vocab)."""
    m, n_tokens, _ = p.shape
    js = np.zeros((n_tokens, m, m))
    entropy = _entropy(p)
    log_sum = np.empty_like(p[0])
    for i in range(m):
        for j in range(i + 1, m):
            both = p[i] + p[j]
            # where both are 0 any finite logarithm will do: 0 ln 0 = 0
            np.log(np.maximum(both, np.finfo(np.float64).tiny, out=log_sum), out=log_sum)
            # H((p + q)/2) = ln 2 - sum (p + q) ln(p + q)/2, as p and q sum to 1
            mixed = np.log(2) - np.einsum("tv,tv->t", both, log_sum) / 2
            js[:, i, j] = js[:, j, i] = mixed - (entropy[i] + entropy[j]) / 2
    return np.clip(js, 0.0, np.log(2), out=js)


def _entropy(p: NDArray[np.float64]) -> NDArray[np.float64]:
    return -(p * np.log(np.where(p > 0, p, 1.0))).sum(axis=-1)
