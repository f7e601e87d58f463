"""Documents as integer labels on tokens: the unit that every interval and every null resamples."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray


class ProbeText(NamedTuple):
    """The probe set as integer labels, tokens in reading order.

    Attributes
    ----------
    document : (token)
    domain : (document)
    vocabulary : (token), frequent token ids numbered from 0, -1 for the others.
    documents, domains : names, sorted.
    """

    document: NDArray[np.intp]
    domain: NDArray[np.intp]
    vocabulary: NDArray[np.intp]
    documents: NDArray[np.str_]
    domains: NDArray[np.str_]


def probe_text(token: NDArray, document: NDArray, domain: NDArray, *, min_count: int) -> ProbeText:
    """Number the documents, domains and frequent token ids of a probe set.

    Parameters
    ----------
    token : (sequence, pos), token ids.
    document, domain : (sequence), names.
    min_count : occurrences that make a token id frequent.

    Raises
    ------
    ValueError
        If a document has two domains, or no id is frequent.
    """
    documents, of_sequence = np.unique(document.astype(object).astype(str), return_inverse=True)
    domains, domain_of_sequence = np.unique(domain.astype(object).astype(str), return_inverse=True)
    of_document = np.zeros(len(documents), dtype=np.intp)
    of_document[of_sequence] = domain_of_sequence
    differs = np.flatnonzero(of_document[of_sequence] != domain_of_sequence)
    if len(differs):
        name = str(documents[of_sequence[differs[0]]])
        raise ValueError(
            f"document {name!r} of the probe set has sequences of two domains; permuting documents "
            "needs one domain a document"
        )
    return ProbeText(
        np.repeat(of_sequence, token.shape[1]),
        of_document,
        frequent_labels(token.ravel(), min_count=min_count),
        documents,
        domains,
    )


def frequent_labels(token: NDArray, *, min_count: int) -> NDArray[np.intp]:
    """Number from 0 the token ids that occur at least `min_count` times; -1 stands for the others.

    Raises
    ------
    ValueError
        If no id is frequent enough.
    """
    ids, inverse, counts = np.unique(token, return_inverse=True, return_counts=True)
    frequent = counts >= min_count
    if not frequent.any():
        raise ValueError(
            f"no token id occurs {min_count} times in the probe set (the commonest, "
            f"{ids[counts.argmax()]}, {counts.max()} times); lower min_count, or use a larger "
            "probe set"
        )
    return np.where(frequent, np.cumsum(frequent) - 1, -1)[inverse]


def document_slices(
    document: NDArray, *, n_tokens: int
) -> tuple[NDArray[np.intp] | None, list[slice]]:
    """Where each document stands once its tokens are brought together.

    Parameters
    ----------
    document : (token), integer labels from 0.
    n_tokens : length that `document` must have.

    Returns
    -------
    order : token positions sorted by document, stable within it; None if they are sorted already.
    slices : one slice of the sorted tokens per document.

    Raises
    ------
    ValueError
        If there is not one label a token, or if a label between 0 and the largest has no token.
    """
    document = np.asarray(document)
    if document.shape != (n_tokens,):
        raise ValueError(
            f"document labels have shape {document.shape} for {n_tokens} tokens; give one a token"
        )
    if n_tokens == 0:
        raise ValueError("there are no tokens to sum over; give at least one document")
    order = None
    if (np.diff(document) < 0).any():
        order = np.argsort(document, kind="stable")
    sizes = np.bincount(document)
    if not sizes.all():
        raise ValueError(
            f"document {int(np.argmin(sizes))} of {len(sizes)} has no token; number the documents "
            "without gaps, as np.unique(..., return_inverse=True) does"
        )
    ends = np.cumsum(sizes)
    return order, [slice(end - size, end) for end, size in zip(ends, sizes, strict=True)]
