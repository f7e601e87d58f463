r"""Linear probes: what ridge classifiers read from a representation, on text new to them.

A probe of C classes is least squares on one column a class, 1 where a token has it and 0 elsewhere,
on standardised features, with a penalty n lambda |w|² on all but the intercept; the largest column
is its answer [1]_. It is scikit-learn's RidgeClassifier(alpha = n lambda) after StandardScaler. All
that it needs are sums over tokens, of x, x x', y and x y'. Sums of each fold are taken once, and
added up for whatever folds a probe is fitted to. Probes of all targets on the same tokens then
share one factorization for each training set and strength.

Strengths are chosen inside the training folds: with fold f held out, every other fold g is
predicted from what is left without f and g, and the one with most hits over all g is taken [2]_.

References
----------
.. [1] Hastie, Tibshirani and Friedman (2009), The Elements of Statistical Learning, 4.2.
.. [2] Varma and Simon (2006), doi:10.1186/1471-2105-7-91 (why the strength is chosen inside).
"""

from collections.abc import Sequence
from itertools import combinations
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

STRENGTHS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
FEWEST_FOLDS = 3


class Moments(NamedTuple):
    """Sums over tokens, of one fold or of several.

    Attributes
    ----------
    n : (...), tokens.
    x, y : (..., feature) and (..., column)
    xx, xy : (..., feature, feature) and (..., feature, column)
    """

    n: NDArray[np.float64]
    x: NDArray[np.float64]
    y: NDArray[np.float64]
    xx: NDArray[np.float64]
    xy: NDArray[np.float64]


def unit_folds(unit: NDArray[np.intp], *, n_folds: int) -> NDArray[np.intp]:
    """Fold of each token: whole units of text, divided so that folds have similar sizes.

    Parameters
    ----------
    unit : (token), integer labels from 0.
    n_folds : as many as there are units, if these are fewer.

    Raises
    ------
    ValueError
        With fewer than three units: one to fit to, one to choose the strength by, one to score.
    """
    n_units = len(np.unique(unit))
    if n_units < FEWEST_FOLDS:
        raise ValueError(
            f"probes are fitted, chosen and scored on different units of text, and the data have "
            f"{n_units}, fewer than {FEWEST_FOLDS}; add works or documents to the probe set, or "
            "use --unit document"
        )
    from sklearn.model_selection import GroupKFold  # a second, which --help need not wait for

    fold = np.empty(len(unit), dtype=np.intp)
    splits = GroupKFold(min(n_folds, n_units)).split(unit[:, None], groups=unit)
    for i, (_, held_out) in enumerate(splits):
        fold[held_out] = i
    return fold


def ridge(moments: Moments, strengths: Sequence[float]) -> tuple[NDArray, NDArray]:
    """Probes on standardised features, in units of the features as given.

    Parameters
    ----------
    moments : of the tokens to fit to, added up.
    strengths : lambda of each.

    Returns
    -------
    weight : (strength, column, feature)
    intercept : (strength, column)
    """
    n, mean, share = moments.n, moments.x / moments.n, moments.y / moments.n
    gram = moments.xx / n - np.outer(mean, mean)
    variance = np.diag(gram)
    # a constant feature, to rounding, tells nothing, and is not blown up
    constant = variance <= 1e-10 * np.diag(moments.xx) / n
    sd = np.sqrt(np.where(constant, 1.0, variance))
    gram = gram / np.outer(sd, sd)
    cross = (moments.xy / n - np.outer(mean, share)) / sd[:, None]
    cross[constant] = 0.0
    penalty = np.asarray(strengths)[:, None, None] * np.eye(len(gram))
    solved = np.linalg.solve(gram + penalty, np.broadcast_to(cross, (len(penalty), *cross.shape)))
    weight = np.swapaxes(solved / sd[:, None], 1, 2)
    return weight, share - weight @ mean


def predicted(
    x: NDArray,
    tasks: Sequence[NDArray[np.intp]],
    fold: NDArray[np.intp],
    *,
    strengths: Sequence[float] = STRENGTHS,
) -> list[NDArray[np.intp]]:
    """What probes answer on each fold, fitted to the others.

    Parameters
    ----------
    x : (token, feature)
    tasks : each (variant, token), labels from 0; -1 for tokens not counted, in all variants alike.
    fold : (token), from 0; at least three, each with tokens of every task.
    strengths : lambdas to choose from, for each variant and fold.

    Returns
    -------
    list of arrays (variant, token), -1 for tokens not counted.
    """
    counted = [task[0] >= 0 for task in tasks]
    alike: dict[bytes, list[int]] = {}
    for i, mask in enumerate(counted):
        alike.setdefault(mask.tobytes(), []).append(i)
    answers: list[NDArray[np.intp]] = [np.full(task.shape, -1) for task in tasks]
    for members in alike.values():
        where = np.flatnonzero(counted[members[0]])
        order = where[np.argsort(fold[where], kind="stable")]
        own = [tasks[i][:, order] for i in members]
        found = _of_same_tokens(x[order], own, np.bincount(fold[order]), strengths)
        for i, answer in zip(members, found, strict=True):
            answers[i][:, order] = answer
    return answers


def _of_same_tokens(
    x: NDArray, tasks: list[NDArray[np.intp]], sizes: NDArray[np.intp], strengths: Sequence[float]
) -> list[NDArray[np.intp]]:
    """`predicted` for tasks that count the same tokens, sorted by fold."""
    # centred once more than probes do, so that large means cost no digits
    x = x.astype(np.float64) - x.mean(axis=0, dtype=np.float64)
    n_classes = [int(task.max()) + 1 for task in tasks]
    y = np.concatenate([_columns(task, n) for task, n in zip(tasks, n_classes, strict=True)])
    ends = np.cumsum(sizes)
    folds = [slice(end - size, end) for end, size in zip(ends, sizes, strict=True)]
    parts = _fold_moments(x, y, folds)
    total = Moments(*(part.sum(axis=0) for part in parts))
    shapes = [(len(task), n) for task, n in zip(tasks, n_classes, strict=True)]
    hits = [np.zeros((len(folds), len(strengths), len(task))) for task in tasks]
    for pair in combinations(range(len(folds)), 2):
        rest = Moments(*(whole - part[list(pair)].sum(axis=0)
                         for whole, part in zip(total, parts, strict=True)))  # fmt: skip
        weight, intercept = ridge(rest, strengths)
        for held_out, chosen_by in (pair, pair[::-1]):
            at = folds[chosen_by]
            scores = _by_task(_scores(weight, intercept, x[at]), shapes)
            for task, of_task, found in zip(tasks, scores, hits, strict=True):
                found[held_out] += _n_hits(of_task, task[:, at])
    answers: list[NDArray[np.intp]] = [np.empty_like(task) for task in tasks]
    for f, at in enumerate(folds):
        rest = Moments(*(whole - part[f] for whole, part in zip(total, parts, strict=True)))
        weight, intercept = ridge(rest, strengths)
        best = np.concatenate(
            [np.repeat(_strongest_best(h[f]), n) for h, n in zip(hits, n_classes, strict=True)]
        )
        column = np.arange(len(best))
        score = weight[best, column] @ x[at].T + intercept[best, column, None]
        for answer, of_task in zip(answers, _by_task(score, shapes), strict=True):
            answer[:, at] = of_task.argmax(axis=-2)
    return answers


def _scores(weight: NDArray, intercept: NDArray, x: NDArray) -> NDArray[np.float32]:
    """Scores (strength, column, token) to count hits of: single precision will do, and is fast."""
    flat = weight.reshape(-1, weight.shape[-1]).astype(np.float32) @ x.T.astype(np.float32)
    flat += intercept.reshape(-1, 1).astype(np.float32)
    return flat.reshape(*weight.shape[:-1], len(x))


def _columns(task: NDArray[np.intp], n_classes: int) -> NDArray[np.float64]:
    """(variant * class, token), 1 where a token has the class."""
    found = task[:, None] == np.arange(n_classes)[:, None]
    return found.reshape(-1, task.shape[1]).astype(np.float64)


def _fold_moments(x: NDArray, y: NDArray, folds: list[slice]) -> Moments:
    """Moments (fold, ...) of features (token, feature) and columns (column, token)."""
    return Moments(
        np.array([float(at.stop - at.start) for at in folds]),
        np.stack([x[at].sum(axis=0) for at in folds]),
        np.stack([y[:, at].sum(axis=1) for at in folds]),
        np.stack([x[at].T @ x[at] for at in folds]),
        np.stack([x[at].T @ y[:, at].T for at in folds]),
    )


def _by_task(scores: NDArray, shapes: list[tuple[int, int]]) -> list[NDArray]:
    """Scores (..., column, token) as one array (..., variant, class, token) a task."""
    ends = np.cumsum([n_variants * n for n_variants, n in shapes])
    *rest, _, n_tokens = scores.shape
    return [
        part.reshape(*rest, *shape, n_tokens)
        for part, shape in zip(np.split(scores, ends[:-1], axis=-2), shapes, strict=True)
    ]


def _n_hits(scores: NDArray, label: NDArray[np.intp]) -> NDArray[np.intp]:
    """Tokens whose own class scores highest, (strength, variant)."""
    own = np.take_along_axis(scores, label[None, :, None], axis=-2)[..., 0, :]
    return (own >= scores.max(axis=-2)).sum(axis=-1)


def _strongest_best(hits: NDArray) -> NDArray[np.intp]:
    """Which strength has most hits, the strongest of equals, from (strength, variant)."""
    return len(hits) - 1 - hits[::-1].argmax(axis=0)
