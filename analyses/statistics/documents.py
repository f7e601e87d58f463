"""Documents as integer labels on tokens: the unit that every interval and every null resamples."""

import numpy as np
from numpy.typing import NDArray


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


def document_tokens(document: NDArray, *, n_tokens: int) -> list[slice | NDArray[np.intp]]:
    """The tokens of each document: a slice where they follow each other, else their positions.

    Parameters and exceptions are those of `document_slices`.
    """
    order, slices = document_slices(document, n_tokens=n_tokens)
    return [tokens if order is None else order[tokens] for tokens in slices]


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
