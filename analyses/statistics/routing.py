r"""What experts do: load, the domains and the token ids they take, and the nulls of both.

Tokens t = 1..T choose a set of k experts out of N. A choice is an array (token, top_k) of expert
indices; all k choices of a token move together in every null, because they are not independent.

References
----------
.. [1] Muennighoff et al. (2024), OLMoE, arXiv:2409.02060 (domain and vocabulary specialization).
"""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from analyses.statistics.documents import document_slices
from analyses.statistics.information import contingency, entropy, mutual_information
from analyses.statistics.resampling import leave_one_out


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


def domain_table(counts: NDArray, domain: NDArray, *, n_domains: int) -> NDArray[np.float64]:
    """Choices of each expert by the tokens of each domain, (domain, expert).

    Parameters
    ----------
    counts : (document, expert).
    domain : (document), integer labels from 0.
    """
    return _members(domain, n_domains) @ counts


def domain_profile(table: NDArray, *, top_k: int) -> NDArray[np.float64]:
    """Domain specialization of each expert [1]_: share of a domain's tokens that chose it.

    Parameters
    ----------
    table : (domain, expert) of choices.

    Returns
    -------
    array (domain, expert), each row summing to k; k/N throughout if experts ignore the domain.
    """
    return top_k * table / table.sum(axis=-1, keepdims=True)


def domain_deleted(counts: NDArray, domain: NDArray, *, n_domains: int) -> NDArray[np.float64]:
    """I(domain; expert) without each document, (document); arguments as for `domain_table`."""
    own = _members(domain, n_domains).T[:, :, None] * counts[:, None, :]
    return mutual_information(leave_one_out(own))


def domain_null(
    counts: NDArray, domain: NDArray, permutations: NDArray[np.intp], *, n_domains: int
) -> NDArray[np.float64]:
    """I(domain; expert) when documents exchange their domain labels, (resample).

    Parameters
    ----------
    counts : (document, expert).
    domain : (document), integer labels from 0.
    permutations : (resample, document).
    """
    members = _members(domain, n_domains)
    tables = np.stack([members[:, permutation] @ counts for permutation in permutations])
    return mutual_information(tables)


def vocabulary_table(choice: NDArray, label: NDArray, *, n_experts: int) -> NDArray[np.int64]:
    """Choices of each expert by the tokens of each id, (expert, token id).

    Parameters
    ----------
    choice : (token, top_k), expert indices.
    label : (token), token ids numbered from 0; tokens labelled -1 are not counted.
    """
    counted = label >= 0
    shape = (n_experts, int(label.max()) + 1)
    return contingency(choice[counted], label[counted, None], shape=shape)


def vocabulary_specialization(table: NDArray, *, top_k: int) -> NDArray[np.float64]:
    r"""How far a token's id alone tells its expert [1]_, averaged over tokens.

    sum_x n_x max_i(n_xi / n_x) / sum_x n_x, with n_x the occurrences of id x and n_xi those that
    chose expert i. Rare ids inflate it: compare it with a null.

    Parameters
    ----------
    table : (..., expert, token id) of choices; each token made `top_k` of them.

    Returns
    -------
    array (...) in [k/N, 1]; 1 if every id has an expert of its own choice.
    """
    return top_k * table.max(axis=-2).sum(axis=-1) / table.sum(axis=(-1, -2))


def vocabulary_deleted(
    choice: NDArray, label: NDArray, document: NDArray, table: NDArray
) -> NDArray[np.float64]:
    """`vocabulary_specialization` without each document, (document).

    Only the ids that a document holds change, so a document costs its own distinct ids.

    Parameters
    ----------
    choice : (token, top_k), expert indices.
    label : (token), token ids numbered from 0; tokens labelled -1 are not counted.
    document : (token), integer labels from 0.
    table : (expert, token id), the choices of all documents.
    """
    choice, label, slices = _by_document(choice, label, document)
    largest = table.max(axis=0)
    deleted = np.empty(len(slices))
    for i, tokens in enumerate(slices):
        counted = label[tokens] >= 0
        ids, inverse = np.unique(label[tokens][counted], return_inverse=True)
        shape = (len(table), len(ids))
        own = contingency(choice[tokens][counted], inverse[:, None], shape=shape)
        change = (table[:, ids] - own).max(axis=0) - largest[ids]
        remaining = table.sum() - own.sum()
        deleted[i] = choice.shape[-1] * (largest.sum() + change.sum()) / remaining
    return deleted


def exchanged_tables(
    choice: NDArray,
    label: NDArray,
    document: NDArray,
    permutations: NDArray[np.intp],
    *,
    n_experts: int,
) -> Iterator[NDArray[np.int64]]:
    """Tables (expert, token id) when documents exchange their blocks of expert choices.

    The choices, document after document in permuted order, are laid along the tokens in their own
    order: a document's run of choices stays whole, and only its tie to the tokens is cut.

    Parameters
    ----------
    choice : (token, top_k), expert indices.
    label : (token), token ids numbered from 0; tokens labelled -1 are not counted.
    document : (token), integer labels from 0.
    permutations : (resample, document).
    n_experts : N.
    """
    choice, label, slices = _by_document(choice, label, document)
    n_labels = int(label.max()) + 1
    counted = np.flatnonzero(label >= 0)
    column = label[counted, None]
    # one flat code a choice, so that a permutation costs one copy, one sum and one count
    code = choice.astype(np.int64) * n_labels
    blocks = [code[tokens] for tokens in slices]
    for permutation in permutations.tolist():
        moved = np.concatenate([blocks[i] for i in permutation]).take(counted, axis=0)
        counts = np.bincount((moved + column).ravel(), minlength=n_experts * n_labels)
        yield counts.reshape(n_experts, n_labels)


def _by_document(
    choice: NDArray, label: NDArray, document: NDArray
) -> tuple[NDArray, NDArray, list[slice]]:
    """Choices and labels with the tokens of a document together, and where each document stands."""
    order, slices = document_slices(document, n_tokens=len(label))
    if order is None:
        return choice, label, slices
    return choice[order], label[order], slices


def _members(domain: NDArray, n_domains: int) -> NDArray[np.float64]:
    return (np.arange(n_domains)[:, None] == domain).astype(np.float64)
