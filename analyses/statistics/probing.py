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

from collections.abc import Iterator, Sequence
from itertools import combinations
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

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


def ridge(moments: Moments, strengths: ArrayLike) -> tuple[NDArray, NDArray]:
    """Probes on standardised features, in units of the features as given.

    With G and c the covariances of the features, and of features and columns, and D the variances,
    standardising and going back to the given units comes to (G + lambda D) w = c.

    Parameters
    ----------
    moments : of the tokens to fit to, added up.
    strengths : lambda of each probe (probe), or of each of its columns (probe, column).

    Returns
    -------
    weight : (probe, column, feature)
    intercept : (probe, column)
    """
    from scipy.linalg.lapack import dposv  # time that --help need not wait for

    n, mean, share = moments.n, moments.x / moments.n, moments.y / moments.n
    gram = moments.xx / n - np.outer(mean, mean)
    cross = moments.xy / n - np.outer(mean, share)
    variance = np.diag(gram).copy()
    # a constant feature, to rounding, tells nothing, and is not blown up
    constant = variance <= 1e-10 * np.diag(moments.xx) / n
    gram[constant], gram[:, constant], cross[constant], variance[constant] = 0.0, 0.0, 0.0, 1.0
    weight = np.empty((len(np.asarray(strengths)), cross.shape[1], len(gram)))
    of_probes = np.broadcast_to(np.reshape(strengths, (len(weight), -1)), weight.shape[:2])
    for own, of_probe in zip(weight, of_probes, strict=True):
        for strength in set(of_probe.tolist()):
            np.fill_diagonal(gram, (1 + strength) * variance)
            columns = np.flatnonzero(of_probe == strength)
            _, solution, info = dposv(gram, cross[:, columns])
            assert info == 0, "positive definite, as strengths are above 0"
            own[columns] = solution.T
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

    def without(*held_out: int) -> Moments:
        return Moments(*(whole - part[list(held_out)].sum(axis=0)
                         for whole, part in zip(total, parts, strict=True)))  # fmt: skip

    layout = _layout(tasks, n_classes)
    hits = np.zeros((len(folds), len(strengths), len(layout.label)))
    single = np.ascontiguousarray(x.T, dtype=np.float32)  # will do to count hits, and is fast
    for pair in combinations(range(len(folds)), 2):
        weight, intercept = (w.astype(np.float32) for w in ridge(without(*pair), strengths))
        for held_out, chosen_by in (pair, pair[::-1]):
            at = folds[chosen_by]
            scores = weight.reshape(-1, len(single)) @ single[:, at]
            scores = scores.reshape(*intercept.shape, -1)
            scores += intercept[..., None]
            hits[held_out] += _n_hits(scores, layout, at)
    answers = np.empty_like(layout.label)
    for f, at in enumerate(folds):
        best = np.asarray(strengths)[_strongest_best(hits[f])]
        weight, intercept = ridge(without(f), best[None, layout.variant])
        score = weight[0] @ x[at].T + intercept[0, :, None]
        for rows, of_task in _by_task(score, layout):
            answers[rows, at] = of_task.argmax(axis=-2)
    return np.split(answers, np.cumsum([len(task) for task in tasks])[:-1])


class _Layout(NamedTuple):
    """Which columns belong to which task and variant.

    Attributes
    ----------
    shapes : for each task its variants and classes.
    label : (variant, token), of all tasks.
    first : (variant), the column of its class 0.
    variant : (column), whose it is.
    """

    shapes: list[tuple[int, int]]
    label: NDArray[np.intp]
    first: NDArray[np.intp]
    variant: NDArray[np.intp]


def _layout(tasks: list[NDArray[np.intp]], n_classes: list[int]) -> _Layout:
    shapes = [(len(task), n) for task, n in zip(tasks, n_classes, strict=True)]
    width = np.concatenate([np.full(*shape) for shape in shapes])
    return _Layout(
        shapes,
        np.concatenate(tasks),
        np.cumsum(width) - width,
        np.repeat(np.arange(len(width)), width),
    )


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


def _by_task(scores: NDArray, layout: _Layout) -> Iterator[tuple[slice, NDArray]]:
    """For each task its rows among variants, and scores (..., variant, class, token)."""
    row = column = 0
    for n_variants, n in layout.shapes:
        part = scores[..., column : column + n_variants * n, :]
        shape = (*scores.shape[:-2], n_variants, n, scores.shape[-1])
        yield slice(row, row + n_variants), part.reshape(shape)
        row, column = row + n_variants, column + n_variants * n


def _n_hits(scores: NDArray, layout: _Layout, at: slice) -> NDArray[np.intp]:
    """Tokens whose own class scores highest, (strength, variant)."""
    n_strengths, _, n_tokens = scores.shape
    own_column = layout.first[:, None] + layout.label[:, at]
    flat = own_column * n_tokens + np.arange(n_tokens)
    own = np.take(scores.reshape(n_strengths, -1), flat, axis=1)
    highest = np.empty_like(own)
    for rows, of_task in _by_task(scores, layout):
        of_task.max(axis=-2, out=highest[:, rows])
    return (own >= highest).sum(axis=-1)


def _strongest_best(hits: NDArray) -> NDArray[np.intp]:
    """Which strength has most hits, the strongest of equals, from (strength, variant)."""
    return len(hits) - 1 - hits[::-1].argmax(axis=0)
