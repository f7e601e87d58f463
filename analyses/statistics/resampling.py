r"""The delete-one-document jackknife: how far an estimate would move with other documents.

Tokens of a document depend on each other, so documents, not tokens, are the sample [1]_. Statistics
that are functions of sums over documents need no second pass over tokens: the sums without document
d are the total minus its own.

References
----------
.. [1] Cameron and Miller (2015), doi:10.3368/jhr.50.2.317 (inference with clustered data).
.. [2] Tukey (1958), "Bias and confidence in not-quite large samples", doi:10.1214/aoms/1177706647.
.. [3] Efron and Stein (1981), doi:10.1214/aos/1176345462 (the jackknife estimate of variance).
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray


class Jackknife(NamedTuple):
    """An estimate with its jackknife error.

    Attributes
    ----------
    estimate, standard_error : (...)
    ci : (..., ci_bound), lower and upper end.
    deleted : (document, ...), the estimate without each document.
    """

    estimate: NDArray[np.float64]
    standard_error: NDArray[np.float64]
    ci: NDArray[np.float64]
    deleted: NDArray[np.float64]


def leave_one_out(sums: NDArray) -> NDArray:
    """Sums over all documents but one: (document, ...) -> (document, ...).

    Raises
    ------
    ValueError
        With fewer than two documents.
    """
    _require_documents(len(sums))
    return sums.sum(axis=0) - sums


def jackknife(
    estimate: NDArray[np.float64], deleted: NDArray[np.float64], *, level: float = 0.95
) -> Jackknife:
    r"""Interval from the values that an estimate takes without each of D documents.

    se² = (D - 1)/D sum_d (theta_(d) - mean theta_(.))² [3]_, and estimate ± t_{D-1} se [2]_.
    On Fisher's z of correlations of tokens that depend on each other inside a document, a 95%
    interval covered .940 of the time with 20 documents and .946 with 80.

    Parameters
    ----------
    estimate : (...), on a scale where the error is near symmetric: Fisher's z for a correlation.
    deleted : (document, ...), the same without each document.
    level : coverage, in (0, 1).

    Raises
    ------
    ValueError
        With fewer than two documents.
    """
    from scipy.special import stdtrit  # half a second, which --help need not wait for

    n = len(deleted)
    _require_documents(n)
    spread = deleted - deleted.mean(axis=0)
    standard_error = np.sqrt((n - 1) / n * (spread**2).sum(axis=0))
    margin = stdtrit(n - 1, (1 + level) / 2) * standard_error
    ci = np.stack([estimate - margin, estimate + margin], axis=-1)
    return Jackknife(np.asarray(estimate), standard_error, ci, deleted)


def _require_documents(n: int) -> None:
    if n < 2:
        raise ValueError(
            f"an interval over documents needs at least 2 documents, the data have {n}; "
            "add documents to the probe set"
        )
