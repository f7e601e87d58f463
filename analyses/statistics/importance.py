r"""How much an expert matters, what an observer would have guessed of it, and whether they agree.

The importance of an expert is the mean change of loss when it is knocked out. Everything here
follows from sums over units of text, so that a unit is deleted by subtracting its sums.

What can be observed of an expert e without touching the model, with n_e the tokens it serves:

* its load n_e / (T k), and its gate mass, the mean over all T tokens of the router's probability of
  e where e is chosen: hard and soft counts, by which experts are pruned [1]_;
* over the tokens it serves, the mean of the router's probability of e, of the router's entropy, and
  of the loss;
* domain specialization, KL(p(D | e) || p(D)): the part of I(D; E) that e has, as
  I(D; E) = sum_e f_e KL(p(D | e) || p(D)) [2]_;
* vocabulary specialization, P(another occurrence of the token's id goes to e too) - n_e / T =
  sum_x n_xe (n_xe - 1) / (n_x - 1) / sum_x n_xe - n_e / T, over ids x that occur twice or more: 0
  for a choice that ignores the id however rare ids are, as a token is not compared with itself.

Spearman's rank correlation over the experts of one layer [3]_ relates the two. With few experts a
rank jumps or stays, and the delete-one-unit jackknife of a mean of such correlations is too wide
rather than too narrow: nominal 95% covered .97 to 1 with 8 experts and 40 units, .91 with 64 in 4
layers, where errors of the importances bias the correlation towards 0. The bootstrap of units
covered .26 to .95, as it adds those errors twice.

References
----------
.. [1] Muzio et al. (2024), SEER-MoE, arXiv:2404.05089.
.. [2] DeWeese and Meister (1999), doi:10.1088/0954-898X/10/4/303.
.. [3] Spearman (1904), doi:10.2307/1412159.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from analyses.statistics.information import contingency
from analyses.statistics.resampling import leave_one_out


class Served(NamedTuple):
    """Sums over the tokens that each expert serves, by unit of text.

    Attributes
    ----------
    tokens : (unit), tokens of the unit, served by whomever.
    served : (unit, expert), tokens that chose the expert.
    prob, entropy, loss : (unit, expert), sums over those of the router's probability of the
        expert, of its entropy, and of the loss.
    """

    tokens: NDArray[np.float64]
    served: NDArray[np.float64]
    prob: NDArray[np.float64]
    entropy: NDArray[np.float64]
    loss: NDArray[np.float64]


def served_sums(
    choice: NDArray, prob: NDArray, loss: NDArray, unit: NDArray[np.intp], *, n_units: int
) -> Served:
    """Sums by unit over the tokens that each expert serves.

    Parameters
    ----------
    choice : (token, top_k), expert indices.
    prob : (token, expert), the router's distribution.
    loss : (token), nats.
    unit : (token), integer labels from 0.
    """
    n_experts = prob.shape[1]
    code, shape = unit[:, None] * n_experts + choice, (n_units, n_experts)

    def summed(values: NDArray | None) -> NDArray[np.float64]:
        weights = None if values is None else np.broadcast_to(values, choice.shape).ravel()
        return np.bincount(code.ravel(), weights, n_units * n_experts).reshape(shape).astype(float)

    own = np.take_along_axis(prob, choice.astype(np.intp), axis=1)
    logs = np.log(prob, where=prob > 0, out=np.zeros(prob.shape))
    entropy = np.maximum(-np.einsum("te,te->t", prob, logs), 0.0)
    tokens = np.bincount(unit, minlength=n_units).astype(np.float64)
    return Served(
        tokens, summed(None), summed(own), summed(entropy[:, None]), summed(loss[:, None])
    )


def all_and_without_each(
    sums: Served, domain: NDArray[np.intp]
) -> tuple[tuple[Served, NDArray[np.float64]], tuple[Served, NDArray[np.float64]]]:
    """Sums over all units, and without each: with choices by domain, (..., domain, expert).

    Parameters
    ----------
    sums : (unit, ...), of `served_sums`.
    domain : (unit), integer labels from 0.
    """
    members = (np.arange(domain.max() + 1)[:, None] == domain).astype(np.float64)
    table = members @ sums.served
    own = members.T[:, :, None] * sums.served[:, None, :]
    whole = Served(*(part.sum(axis=0) for part in sums))
    return (whole, table), (Served(*map(leave_one_out, sums)), table - own)


def observed_of_experts(
    total: Served, table: NDArray[np.float64], *, top_k: int
) -> dict[str, NDArray[np.float64]]:
    """Everything but vocabulary specialization, by name, (..., expert).

    NaN for an expert that serves no token.

    Parameters
    ----------
    total : summed over units, (...) and (..., expert).
    table : (..., domain, expert), choices of each expert by the tokens of each domain.
    """
    tokens, n = total.tokens[..., None], total.served
    with np.errstate(invalid="ignore", divide="ignore"):
        of_expert = table / n[..., None, :]
        of_text = table.sum(axis=-1, keepdims=True) / n.sum(axis=-1)[..., None, None]
        logs = np.log(of_expert / of_text, where=of_expert > 0, out=np.zeros(table.shape))
        return {
            "load": n / (tokens * top_k),
            "gate_mass": total.prob / tokens,
            "gate": total.prob / n,
            "token_entropy": total.entropy / n,
            "token_loss": total.loss / n,
            "domain_specialization": np.where(n > 0, (of_expert * logs).sum(axis=-2), np.nan),
        }


def id_specialization(
    choice: NDArray, label: NDArray, unit: NDArray[np.intp], *, n_experts: int, n_units: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Vocabulary specialization of each expert (expert), and without each unit (unit, expert).

    Parameters
    ----------
    choice : (token, top_k), expert indices.
    label : (token), token ids numbered from 0.
    unit : (token), integer labels from 0.
    """
    top_k, shape = choice.shape[1], (n_experts, int(label.max()) + 1)
    table = contingency(choice, label[:, None], shape=shape)
    pairs, counted = _repeats(table, top_k=top_k)
    inclusion = table.sum(axis=1)
    order = np.argsort(unit, kind="stable")
    ends = np.searchsorted(unit[order], np.arange(n_units), side="right")
    deleted = np.empty((n_units, n_experts))
    for i, tokens in enumerate(np.split(order, ends[:-1])):
        ids, place = np.unique(label[tokens], return_inverse=True)
        own = contingency(choice[tokens], place[:, None], shape=(n_experts, len(ids)))
        before = _repeats(table[:, ids], top_k=top_k)
        after = _repeats(table[:, ids] - own, top_k=top_k)
        deleted[i] = _above_inclusion(
            pairs - before[0] + after[0],
            counted - before[1] + after[1],
            inclusion - own.sum(axis=1),
            len(label) - len(tokens),
        )
    return _above_inclusion(pairs, counted, inclusion, len(label)), deleted


def _repeats(table: NDArray, *, top_k: int) -> tuple[NDArray, NDArray]:
    """Of ids that occur twice or more, by expert: expected repeats, and choices, (expert)."""
    n = table.sum(axis=0) / top_k
    often = n > 1.5
    own = table[:, often].astype(np.float64)
    return (own * (own - 1) / (n[often] - 1)).sum(axis=1), own.sum(axis=1)


def _above_inclusion(
    pairs: NDArray, counted: NDArray, served: NDArray, n_tokens: int
) -> NDArray[np.float64]:
    with np.errstate(invalid="ignore", divide="ignore"):
        return pairs / counted - served / n_tokens


def spearman(x: NDArray, y: NDArray) -> NDArray[np.float64]:
    """Spearman's rank correlation along the last axis, over elements finite in both.

    Returns
    -------
    array (...) in [-1, 1]; NaN with fewer than three such elements, or where either is constant.
    """
    x, y = np.broadcast_arrays(np.asarray(x, np.float64), np.asarray(y, np.float64))
    ranks_x, ranks_y = (
        _ranks(np.where(np.isfinite(y), x, np.nan)),
        _ranks(np.where(np.isfinite(x), y, np.nan)),
    )
    return _correlation(ranks_x, ranks_y)


def permuted_spearman(
    x: NDArray, y: NDArray, *, n_resamples: int, rng: np.random.Generator
) -> NDArray[np.float64]:
    """`spearman` when experts exchange their y at random, (resample, ...).

    Rows, as runs and layers, are permuted independently, as their experts have nothing in common.
    """
    ok = np.isfinite(x) & np.isfinite(y)
    ranks_x = _ranks(np.where(ok, x, np.nan))
    order = np.argsort(~ok, axis=-1, kind="stable")  # those that count come first
    ranks_x = np.take_along_axis(ranks_x, order, axis=-1)
    ranks_y = np.take_along_axis(_ranks(np.where(ok, y, np.nan)), order, axis=-1)
    counted = np.take_along_axis(ok, order, axis=-1)
    draws = np.empty((n_resamples, *ok.shape[:-1]))
    for draw in draws:
        key = np.where(counted, rng.random(ok.shape), 2.0)
        moved = np.take_along_axis(ranks_y, np.argsort(key, axis=-1), axis=-1)
        draw[...] = _correlation(ranks_x, moved)
    return draws


def best_elsewhere(rho: NDArray[np.float64]) -> tuple[NDArray[np.intp], NDArray[np.float64]]:
    """The metric that predicts best in all other runs, and how well it predicts in each run.

    What predicts best in a sample does so partly by accident; a run that had no part in the choice
    is free of that.

    Parameters
    ----------
    rho : (run, metric)

    Returns
    -------
    metric : (run), index of the largest |mean rho| of the other runs; -1 if there is none.
    score : (run), the run's own rho with that metric, with the sign that it has elsewhere.
    """
    n = len(rho)
    metric, score = np.full(n, -1), np.full(n, np.nan)
    for run in range(n if n > 1 else 0):
        mean = np.delete(rho, run, axis=0).mean(axis=0)
        if np.isfinite(mean).any():
            metric[run] = np.nanargmax(np.abs(mean))
            score[run] = np.sign(mean[metric[run]]) * rho[run, metric[run]]
    return metric, score


def left_out_means(
    sums: NDArray[np.float64], counts: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mean over all units, (...), and without each, (unit, ...), from sums and counts by unit."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return sums.sum(axis=0) / counts.sum(axis=0), leave_one_out(sums) / leave_one_out(counts)


def _ranks(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Ranks along the last axis, ties sharing their mean; NaN keeps out of the ranking."""
    from scipy.stats import rankdata  # half a second, which --help need not wait for

    finite = np.isfinite(values)
    ranked = rankdata(np.where(finite, values, np.inf), axis=-1)
    return np.where(finite, ranked, np.nan)


def _correlation(x: NDArray[np.float64], y: NDArray[np.float64]) -> NDArray[np.float64]:
    """Pearson's r along the last axis of ranks that are NaN in the same places."""
    there = np.isfinite(x)
    n = there.sum(axis=-1, keepdims=True)
    centred = []
    for ranks in (x, y):
        total = np.where(there, ranks, 0.0).sum(axis=-1, keepdims=True)
        centred.append(np.where(there, ranks - total / np.maximum(n, 1), 0.0))
    a, b = centred
    size = np.sqrt((a**2).sum(axis=-1) * (b**2).sum(axis=-1))
    with np.errstate(invalid="ignore", divide="ignore"):
        r = (a * b).sum(axis=-1) / size
    return np.where((n[..., 0] >= 3) & (size > 0), np.clip(r, -1.0, 1.0), np.nan)
