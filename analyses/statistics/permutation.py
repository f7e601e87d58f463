"""Permutation of documents: what a statistic would be if a label had nothing to do with the text.

Whole documents change places, so that the dependence of tokens inside one survives in the null.

References
----------
.. [1] Phipson and Smyth (2010), doi:10.2202/1544-6115.1585 (permutation p-values are never zero).
"""

import numpy as np
from numpy.typing import NDArray


def document_permutations(
    n_documents: int, *, n_resamples: int, rng: np.random.Generator
) -> NDArray[np.intp]:
    """Orders of the documents, (resample, document), each drawn uniformly.

    Raises
    ------
    ValueError
        With fewer than two documents, or no resample.
    """
    if n_documents < 2:
        raise ValueError(
            f"a permutation null over documents needs at least 2, the data have {n_documents}; "
            "add documents to the probe set"
        )
    if n_resamples < 1:
        raise ValueError(f"n_resamples is {n_resamples}; use 1 or more")
    return rng.permuted(np.tile(np.arange(n_documents), (n_resamples, 1)), axis=1)


def permutation_p(observed: NDArray, null: NDArray) -> NDArray[np.float64]:
    """One-sided p-value (1 + #{null >= observed}) / (B + 1) [1]_.

    Parameters
    ----------
    observed : (...)
    null : (resample, ...), the statistic under B permutations.

    Returns
    -------
    array (...) in [1 / (B + 1), 1]; NaN where `observed` is NaN.
    """
    # a permutation that gives back the observed value may differ from it in the last digit
    reached = null >= observed - 1e-12 * np.abs(observed)
    p = (1 + reached.sum(axis=0)) / (len(null) + 1)
    return np.where(np.isnan(observed), np.nan, p)
