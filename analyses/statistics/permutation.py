"""Permutation tests: what a statistic would be if a label had nothing to do with what it labels.

Of text, whole documents change places, so that the dependence of tokens inside one survives in the
null. Of models, whole runs change arms, with all the pairs that they are in. Few runs allow few
relabellings, and no test of them can give a p below one over their number.

References
----------
.. [1] Phipson and Smyth (2010), doi:10.2202/1544-6115.1585 (permutation p-values are never zero).
.. [2] Dekker et al. (2007), doi:10.1007/s11336-007-9016-1 (permuting the nodes of dyadic data).
.. [3] Holm (1979), Scandinavian Journal of Statistics 6, 65-70; Benjamini and Hochberg (1995),
   doi:10.1111/j.2517-6161.1995.tb02031.x; Benjamini and Yekutieli (2001),
   doi:10.1214/aos/1013699998.
"""

import math
from collections.abc import Callable, Iterator
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

Alternative = Literal["greater", "less", "two-sided"]
Correction = Literal["holm", "fdr_bh", "fdr_by"]
_TIE = 1e-9


class LabelTest(NamedTuple):
    """A permutation test over the labels of runs.

    Attributes
    ----------
    p : p-value.
    smallest_p : the smallest that this test can give on these runs, whatever their labels.
    exact : whether every relabelling was tried.
    null : (assignment), the statistic under each, the observed one first.
    """

    p: float
    smallest_p: float
    exact: bool
    null: NDArray[np.float64]


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


def label_assignments(
    label: NDArray, *, n_resamples: int, rng: np.random.Generator
) -> tuple[NDArray, bool]:
    """Distinct ways to hand out the labels to the runs, the observed one first.

    Parameters
    ----------
    label : (run)
    n_resamples : the most beside the observed one; if there are more, so many are drawn.

    Returns
    -------
    assignments : (assignment, run)
    exact : whether these are all.
    """
    label = np.asarray(label)
    names, codes, counts = np.unique(label, return_inverse=True, return_counts=True)
    n_distinct = math.factorial(len(label))
    for count in counts.tolist():
        n_distinct //= math.factorial(count)
    exact = n_distinct <= n_resamples + 1
    if exact:
        others = [a for a in _arrangements(counts.tolist()) if a != codes.tolist()]
        drawn = np.array([codes.tolist(), *others], dtype=np.intp)
    else:
        drawn = np.concatenate(
            [codes[None], rng.permuted(np.tile(codes, (n_resamples, 1)), axis=1)]
        )
    return names[drawn], exact


def label_test(
    statistic: Callable[[NDArray], float],
    label: NDArray,
    *,
    alternative: Alternative = "greater",
    n_resamples: int = 9999,
    rng: np.random.Generator,
) -> LabelTest:
    """Whether a statistic is more extreme than if the runs' labels were handed out at random [2]_.

    Parameters
    ----------
    statistic : of one assignment (run) of labels; "two-sided" compares its absolute value.
    label : (run), the observed labels.
    n_resamples : the most relabellings that are tried beside the observed one; all, if they are no
        more, and then the p-value is exact. Otherwise it is (1 + #{as extreme}) / (B + 1) [1]_.
    """
    assignments, exact = label_assignments(label, n_resamples=n_resamples, rng=rng)
    null = np.array([float(statistic(assignment)) for assignment in assignments])
    if np.isnan(null[0]):
        return LabelTest(math.nan, math.nan, exact, null)
    extreme = {"greater": null, "less": -null, "two-sided": np.abs(null)}[alternative]
    # relabellings that must tie, such as two arms exchanged, differ by rounding only
    slack = _TIE * max(1e-300, float(np.nanmax(np.abs(extreme))))
    # "not less" counts a relabelling whose statistic is missing against the claim
    p = float((~(extreme < extreme[0] - slack)).mean())
    smallest = float((~(extreme < np.nanmax(extreme) - slack)).mean())
    return LabelTest(p, smallest, exact, null)


def adjusted_p(p: NDArray, *, method: Correction = "holm") -> NDArray[np.float64]:
    """p-values corrected for the size of their family [3]_.

    "holm" keeps the chance of any false claim at the level, "fdr_bh" the share of false claims
    among claims, for independent or positively dependent tests, "fdr_by" the same for any tests.

    Parameters
    ----------
    p : (...), one family; NaN stays NaN and does not count.
    """
    # a second, which --help need not wait for
    from statsmodels.stats.multitest import multipletests

    p = np.asarray(p, dtype=np.float64)
    corrected = np.full(p.shape, np.nan)
    there = ~np.isnan(p)
    if there.any():
        corrected[there] = multipletests(p[there], method=method)[1]
    return corrected


def _arrangements(counts: list[int]) -> Iterator[list[int]]:
    """Every distinct sequence that holds label i `counts[i]` times, in lexicographic order."""
    if not any(counts):
        yield []
        return
    for code, count in enumerate(counts):
        if count:
            rest = [*counts[:code], count - 1, *counts[code + 1 :]]
            for tail in _arrangements(rest):
                yield [code, *tail]
