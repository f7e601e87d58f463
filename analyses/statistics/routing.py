r"""Choices of experts against labels of tokens: one count, from which every measure follows.

Tokens t = 1..T choose a set of k experts out of N. A choice is an array (token, top_k) of expert
indices, its tokens sorted by the unit of text that they belong to. All k choices of a token move
together in every null, because they are not independent.

Of a table n_xe, label x against expert e, five sums over labels are enough. With n_x = sum_e n_xe,

    H(E | X) = (sum_x n_x ln n_x - sum_xe n_xe ln n_xe) / n,        I(X; E) = H(E) - H(E | X)

and vocabulary specialization [1]_ needs the largest n_xe of each label. So a unit of text can be
deleted by going over its own labels alone, and a permutation costs one count of the tokens.

References
----------
.. [1] Muennighoff et al. (2024), OLMoE, arXiv:2409.02060 (domain and vocabulary specialization).
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from analyses.statistics.documents import document_slices
from analyses.statistics.information import contingency, entropy

_BLOCK = 2**22  # cells held at a time when units are deleted


class Labelled(NamedTuple):
    """A label of tokens, ready to be counted against any choices of the same tokens.

    Attributes
    ----------
    counted : (m), places of the tokens that have the label.
    label : (m), the label of each, from 0.
    n_labels : how many labels there are.
    slices : where each unit stands among all tokens.
    pair : (m), which pair of unit and label; pairs are sorted by unit.
    pair_unit, pair_label : (pair)
    """

    counted: NDArray[np.intp]
    label: NDArray[np.intp]
    n_labels: int
    slices: list[slice]
    pair: NDArray[np.intp]
    pair_unit: NDArray[np.intp]
    pair_label: NDArray[np.intp]


class Sums(NamedTuple):
    """A table of labels and experts, summed over labels.

    Attributes
    ----------
    cells, labels : (...), sum_xe n_xe ln n_xe and sum_x n_x ln n_x.
    largest, largest_share : (...), sum_x max_e n_xe and sum_x max_e n_xe / n_x.
    used : (...), labels with any choice.
    experts : (..., expert), sum_x n_xe.
    """

    cells: NDArray[np.float64]
    labels: NDArray[np.float64]
    largest: NDArray[np.float64]
    largest_share: NDArray[np.float64]
    used: NDArray[np.float64]
    experts: NDArray[np.float64]


def document_choices(choice: NDArray, document: NDArray, *, n_experts: int) -> NDArray[np.int64]:
    """How often each document's tokens chose each expert, (document, expert).

    Parameters
    ----------
    choice : (token, top_k), expert indices.
    document : (token), integer labels from 0.
    n_experts : N.
    """
    return contingency(document[:, None], choice, shape=(int(document.max()) + 1, n_experts))


def load(counts: NDArray) -> NDArray[np.float64]:
    """Share of all choices that fell on each expert, f_i = n_i / (T k); sums to 1.

    Parameters
    ----------
    counts : (..., expert), choices an expert got.
    """
    return counts / counts.sum(axis=-1, keepdims=True)


def effective_experts(counts: NDArray) -> NDArray[np.float64]:
    """exp H(load): how many evenly used experts would be as spread out; from k to N."""
    return np.exp(entropy(counts))


def labelled(label: NDArray, unit: NDArray, *, n_labels: int | None = None) -> Labelled:
    """A label of tokens with what every count of it needs.

    Parameters
    ----------
    label : (token), integers from 0; tokens labelled -1 are not counted.
    unit : (token), unit of text of each, integers from 0, sorted.
    n_labels : how many labels there are; by default up to the largest.

    Raises
    ------
    ValueError
        If units are not sorted or not numbered without gaps, or if no token has a label.
    """
    order, slices = document_slices(unit, n_tokens=len(label))
    if order is not None:
        raise ValueError("tokens are not sorted by unit of text; sort sequences by it first")
    counted = np.flatnonzero(label >= 0)
    if not len(counted):
        raise ValueError("no token has a label; lower min_count, or use a larger probe set")
    own = label[counted].astype(np.intp)
    size = int(own.max()) + 1 if n_labels is None else n_labels
    codes, pair = np.unique(unit[counted].astype(np.int64) * size + own, return_inverse=True)
    return Labelled(counted, own, size, slices, pair, codes // size, codes % size)


def choice_table(choice: NDArray, at: Labelled, *, n_experts: int) -> NDArray[np.int64]:
    """Choices of each expert by the tokens of each label, (expert, label)."""
    shape = (n_experts, at.n_labels)
    return contingency(choice[at.counted], at.label[:, None], shape=shape)


def table_sums(table: NDArray) -> Sums:
    """The sums of tables (..., expert, label) of whole numbers."""
    cells, labels, largest, share, used = _of_labels(table).sum(axis=-1)
    experts = table.sum(axis=-1).astype(np.float64)
    return Sums(cells, labels, largest, share, used, experts)


def choice_entropy(sums: Sums) -> NDArray[np.float64]:
    """H(E), nats, of the choices of the tokens that have the label."""
    return entropy(sums.experts)


def open_entropy(sums: Sums) -> NDArray[np.float64]:
    """H(E | X), nats: what the label leaves open of the choice."""
    return np.maximum((sums.labels - sums.cells) / sums.experts.sum(axis=-1), 0.0)


def label_information(sums: Sums) -> NDArray[np.float64]:
    """I(X; E) = H(E) - H(E | X), nats: what the label tells of the choice."""
    return np.maximum(choice_entropy(sums) - open_entropy(sums), 0.0)


def token_specialization(sums: Sums, *, top_k: int) -> NDArray[np.float64]:
    """Vocabulary specialization max_e n_xe / n_x [1]_, averaged over tokens.

    n_x counts the occurrences of id x here. Lies in [k/N, 1], at 1 if each id has its own experts.
    """
    return top_k * sums.largest / sums.experts.sum(axis=-1)


def type_specialization(sums: Sums, *, top_k: int) -> NDArray[np.float64]:
    """Vocabulary specialization [1]_, averaged over ids: rare ones weigh as much as others."""
    return top_k * sums.largest_share / sums.used


def domain_profile(table: NDArray, *, top_k: int) -> NDArray[np.float64]:
    """Domain specialization [1]_: share of a domain's tokens that chose an expert.

    Parameters
    ----------
    table : (expert, domain) of choices.

    Returns
    -------
    array (expert, domain) whose columns sum to k; k/N throughout if experts are alike and ignore
    the domain.
    """
    return top_k * table / table.sum(axis=0)


def deleted_sums(choice: NDArray, at: Labelled, table: NDArray) -> Sums:
    """The sums of `table` without each unit of text, (unit).

    Parameters
    ----------
    choice : (token, top_k), expert indices.
    table : (expert, label) of `choice_table`.
    """
    n_units, n_experts = len(at.slices), len(table)
    everywhere = _of_labels(table)
    change = np.zeros((len(everywhere), n_units))
    experts = np.empty((n_units, n_experts))
    place = np.searchsorted(at.counted, [s.start for s in at.slices] + [at.slices[-1].stop])
    first = np.searchsorted(at.pair_unit, np.arange(n_units + 1))
    start = 0
    while start < n_units:
        # as many whole units as fit, at least one
        end = int(np.searchsorted(first, first[start] + _BLOCK // n_experts, side="right")) - 1
        end = min(max(end, start + 1), n_units)
        tokens, pairs = slice(*place[[start, end]]), slice(*first[[start, end]])
        of_pair = at.pair[tokens] - first[start]
        shape = (n_experts, int(first[end] - first[start]))
        own = contingency(choice[at.counted[tokens]], of_pair[:, None], shape=shape)
        ids, of_unit = at.pair_label[pairs], at.pair_unit[pairs]
        terms = _of_labels(table[:, ids] - own) - everywhere[:, ids]
        for i, term in enumerate(terms):
            change[i] += np.bincount(of_unit, weights=term, minlength=n_units)
        for i, counts in enumerate(own):
            experts[start:end, i] = np.bincount(of_unit - start, counts, minlength=end - start)
        start = end
    total = table.sum(axis=1)
    cells, labels, largest, share, used = everywhere.sum(axis=-1)[:, None] + change
    return Sums(cells, labels, largest, share, used, total - experts)


def _of_labels(table: NDArray) -> NDArray[np.float64]:
    """The five terms of each label, (term, ..., label), from counts (..., expert, label)."""
    n, largest = table.sum(axis=-2), table.max(axis=-2)
    log_table = n_log_n(np.arange(int(n.max(initial=0)) + 1))
    cells = log_table.take(table).sum(axis=-2)
    return np.stack([cells, log_table.take(n), largest, largest / np.maximum(n, 1), n > 0])


def n_log_n(counts: NDArray) -> NDArray[np.float64]:
    """n ln n, 0 at 0."""
    return counts * np.log(np.maximum(counts, 1))
