r"""Linear CKA of representations of the same tokens, by batches with one token of a text each.

CKA [1]_ asks whether two representations find the same pairs of tokens alike. Over all tokens it
also sees that tokens of one text are alike in anything: independent representations score .13 to
.44, however it is debiased. So tokens are dealt into batches that hold at most one token of each
unit of text, and similarities are compared within batches only [2]_. With Gram matrices K and L of
the n tokens of a batch, zero diagonals, the unbiased HSIC [3]_ is

    HSIC1(K, L) = [tr(KL) + 1'K1 1'L1 / ((n-1)(n-2)) - 2 1'KL1 / (n-2)] / (n(n-3))
                = <K~, L~> / (n(n-3))

where K~ is U-centred [4]_: off the diagonal, row and column means are taken away such that all row
sums are 0. Hence the totals over batches

    T(X, Y) = sum_batches <K~, L~>,        CKA = T(X, Y) / sqrt(T(X, X) T(Y, Y))

are dot products, of any number of representations one matrix product. Batches of n tokens count as
n(n-3), so that each pair of tokens counts alike; if all are of one size, this is the estimator of
[2]_. A mean of the CKA of each batch would be another, biased one.

Without token u of a batch, whose row of products is P_u = sum_j K~_uj L~_uj,

    <K~, L~> becomes <K~, L~> - 2 (n-2)/(n-3) P_u

since row sums are 0 before, and -K~_iu after. So the jackknife over units costs as much as T.

References
----------
.. [1] Kornblith et al. (2019), arXiv:1905.00414.
.. [2] Nguyen, Raghu and Kornblith (2021), arXiv:2010.15327 (HSIC1 summed over minibatches).
.. [3] Song et al. (2012), Journal of Machine Learning Research 13, 1393-1434.
.. [4] Székely and Rizzo (2014), doi:10.1214/14-AOS1255 (U-centring).
"""

from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from analyses.statistics.representations import (
    centred,
    finite_mean,
    floating,
    refuse_constant,
    require_same_tokens,
    varies,
)

Grams = list[NDArray]
Preprocessing = Literal["raw", "rows", "z"]
_LEAST = 4


def normalised(x: NDArray, *, how: Preprocessing = "raw") -> NDArray:
    """Representations centred, so that no token, or no feature, outweighs all others if need be.

    Parameters
    ----------
    x : (token, feature)
    how : "raw", centred alone; "rows", each token first scaled to unit length, as the next layer's
        normalisation would, so that no token outweighs others; "z", each feature then divided by
        its standard deviation, so that no feature does. A zero row or a constant feature is 0.

    Returns
    -------
    array (token, feature), float64 for float64 input and float32 for any other.

    Raises
    ------
    ValueError
        If values are not finite, or the same for all tokens.
    """
    x = floating(x)
    if how not in ("raw", "rows", "z"):
        raise ValueError(f"preprocessing {how!r} is not known; choose 'raw', 'rows' or 'z'")
    if how == "rows":
        finite_mean(x)
        length = np.sqrt(np.einsum("tf,tf->t", x, x, dtype=np.float64))[:, None]
        # divided in float64, without an array of it
        x = np.divide(x, np.where(length > 0, length, 1), out=np.empty_like(x), casting="same_kind")
    values = centred(x)
    if how != "z":
        return values
    spread = np.sqrt(np.einsum("tf,tf->f", values, values, dtype=np.float64) / len(x))
    # what is left of a constant feature is rounding, which must not be blown up
    there = spread > 8 * np.finfo(x.dtype).eps * np.abs(x).max(axis=0)
    return values * np.where(there, 1 / np.where(there, spread, 1), 0).astype(x.dtype)


def batches(
    unit: NDArray[np.intp], *, largest: int = 500, rng: np.random.Generator
) -> list[NDArray[np.intp]]:
    """Tokens dealt at random into batches that hold at most one token of each unit of text.

    Batch k takes one of the tokens left of every unit that has any: no other way to deal leaves
    more pairs of tokens to compare. The last batches hold the long units alone; batches of fewer
    than 4 tokens, which HSIC1 is not defined for, are dropped with their tokens. How many that are
    is `len(unit)` less the tokens of all batches: none if units are of one length.

    Parameters
    ----------
    unit : (token), integer labels from 0.
    largest : tokens that a batch may have; a larger one is divided into equal parts, at random.

    Returns
    -------
    list of arrays of token positions, ascending within a batch.

    Raises
    ------
    ValueError
        With tokens of fewer than 4 units, or `largest` below 4.
    """
    unit = np.asarray(unit)
    n_units = len(np.unique(unit))
    if n_units < _LEAST:
        raise ValueError(
            f"a batch takes one token of each unit of text and at least {_LEAST}, the tokens are "
            f"of {n_units}; record activations of more works, or use --unit document"
        )
    if largest < _LEAST:
        raise ValueError(f"batches of at most {largest} tokens are too small; allow {_LEAST}")
    shuffled = rng.permutation(len(unit))
    order = shuffled[np.argsort(unit[shuffled], kind="stable")]
    counts = np.unique(unit, return_counts=True)[1]
    rank = np.arange(len(unit)) - np.repeat(np.cumsum(counts) - counts, counts)
    by_rank = order[np.argsort(rank, kind="stable")]
    dealt = []
    for taken in np.split(by_rank, np.cumsum(np.bincount(rank))[:-1]):
        batch = rng.permutation(taken)
        parts = min(-(-len(batch) // largest), len(batch) // _LEAST)
        if parts:
            dealt += [np.sort(part) for part in np.array_split(batch, parts)]
    return dealt


def minibatch_cka(x: NDArray, y: NDArray, *, batches: Sequence[NDArray[np.intp]]) -> float:
    """CKA of two representations over batches of tokens.

    Parameters
    ----------
    x, y : (token, feature), the same tokens.
    batches : token positions of each, at least 4, as `batches` deals them.

    Returns
    -------
    float, at most 1, about 0 for unrelated representations, then also below 0; NaN where a self
    term is not above 0.

    Raises
    ------
    ValueError
        For different numbers of tokens, and for what `gram_features` refuses.
    """
    return float(minibatch_cka_table([x], [y], batches=batches)[0, 0])


def minibatch_cka_table(
    first: Sequence[NDArray],
    second: Sequence[NDArray] | None = None,
    *,
    batches: Sequence[NDArray[np.intp]],
) -> NDArray[np.float64]:
    """`minibatch_cka` of each of `first` with each of `second`, (first, second).

    If `second` is not given it is `first`. One batch of all representations is in memory at a time.
    Where they do not fit side by side, or intervals or chance are asked for, keep `gram_features`.
    """
    every = [_by_token(x) for x in (*first, *(second or ()))]
    require_same_tokens(every)
    _require_batches(batches)
    largest, totals = max(map(len, batches)), np.zeros((len(every), len(every)))
    held = np.empty((len(every), largest**2), np.result_type(*every))
    room = {(x.shape[1], x.dtype): np.empty((largest, x.shape[1]), x.dtype) for x in every}
    varied = [False] * len(every)
    for batch in batches:
        grams = held[:, : len(batch) ** 2]
        for i, (x, gram) in enumerate(zip(every, grams, strict=True)):
            out = gram.reshape(len(batch), -1)
            here = room[x.shape[1], x.dtype]
            varied[i] = _u_centred_gram(x, batch, varied=varied[i], room=here, out=out)
        # a batch is summed in the precision of its Grams, batches are in float64
        totals += grams @ grams.T
    for x, varies_somewhere in zip(every, varied, strict=True):
        if not varies_somewhere:
            refuse_constant(x)
    cka = cka_of_all(totals)
    return cka if second is None else cka[: len(first), len(first) :]


def gram_features(x: NDArray, batches: Sequence[NDArray[np.intp]]) -> Grams:
    """U-centred Gram matrix K~ of each batch, whose products with another's make HSIC1.

    Nothing else of a representation is needed, so that one is read at a time: n b numbers stay of
    n tokens in batches of b.

    Parameters
    ----------
    x : (token, feature), with any common offset: it is taken away in each batch.
    batches : token positions of each, at least 4.

    Returns
    -------
    list of arrays (n, n), n the tokens of the batch; float64 for float64 x and float32 otherwise.

    Raises
    ------
    ValueError
        If a batch has fewer than 4 tokens, values are not finite, or the same for all tokens of
        every batch.
    """
    x = _by_token(x)
    _require_batches(batches)
    # views of one array, which memory has back whole; thousands of small ones would leave holes
    sizes = [len(batch) for batch in batches]
    held = np.split(np.empty(sum(n * n for n in sizes), x.dtype), np.cumsum(np.square(sizes))[:-1])
    grams = [place.reshape(n, n) for place, n in zip(held, sizes, strict=True)]
    varied, room = False, np.empty((max(sizes), x.shape[1]), x.dtype)
    for batch, gram in zip(batches, grams, strict=True):
        varied = _u_centred_gram(x, batch, varied=varied, room=room, out=gram)
    if not varied:
        refuse_constant(x)
    return grams


def _by_token(x: NDArray) -> NDArray:
    """The representation, token after token in memory; else all of it is copied for every batch."""
    return np.ascontiguousarray(floating(x))


def _u_centred_gram(
    x: NDArray, batch: NDArray[np.intp], *, varied: bool, room: NDArray, out: NDArray
) -> bool:
    """K~ of one batch, into `out`; whether tokens of it differ, or as `varied` tells of another."""
    taken = np.take(x, batch, axis=0, out=room[: len(batch)], mode="clip")  # others copy twice
    mean = np.full(len(batch), 1 / len(batch), x.dtype) @ taken
    # once values are known to vary the product will do, as U-centring takes away its rounding
    if not varied or not np.isfinite(mean).all():
        mean = finite_mean(taken)
    taken -= mean.astype(x.dtype, copy=False)
    np.matmul(taken, taken.T, out=out)
    varied = varied or varies(float(out.trace()), mean, like=taken)
    u_centred(out)
    return varied


def u_centred(gram: NDArray) -> NDArray:
    """K~ of a Gram matrix (n, n) [4]_, in place: rows sum to 0 and the diagonal is 0."""
    n = len(gram)
    diagonal = np.einsum("ii->i", gram)  # a view
    diagonal[:] = 0
    # a product with ones, which is a fifth of the time of a sum
    row = (gram @ np.ones(n, dtype=gram.dtype)).astype(np.float64) / (n - 2)
    row -= row.sum() / (2 * (n - 1))
    share = row.astype(gram.dtype)
    gram -= share[:, None]
    gram -= share
    diagonal[:] = 0
    return gram


def hsic_table(
    first: Sequence[Grams], second: Sequence[Grams] | None = None
) -> NDArray[np.float64]:
    """n(n-3) HSIC1 of all pairs of representations in each batch, (first, second, batch).

    Summed over batches, these are the totals T that `cka_from` divides.

    Parameters
    ----------
    first, second : of each representation its `gram_features` in the same batches; `second` is
        `first` if it is not given.
    """
    _require_same_batches(first, second)
    table = []
    for b in range(len(first[0])):
        x = _stacked(first, b).reshape(len(first), -1)
        y = x if second is None else _stacked(second, b).reshape(len(second), -1)
        table.append(x @ y.T)
    # a batch is summed in the precision of its Grams, batches are in float64
    return np.stack(table, axis=-1, dtype=np.float64)


def hsic_without_each_unit(
    first: Sequence[Grams],
    second: Sequence[Grams] | None = None,
    *,
    batches: Sequence[NDArray[np.intp]],
    unit: NDArray[np.intp],
) -> NDArray[np.float64]:
    """Totals T over batches without each unit of text, (first, second, unit).

    Parameters
    ----------
    first, second : as for `hsic_table`.
    batches, unit : what the Grams were made with, and `batches` from.

    Returns
    -------
    array (first, second, unit), in the order of labels; where no token of a unit is in a batch, the
    total of all.
    """
    _require_same_batches(first, second)
    shape = len(first), len(first if second is None else second)
    total, change = np.zeros(shape), np.zeros((int(unit.max()) + 1, *shape))
    for b, batch in enumerate(batches):
        # (token, representation, token), so that the products of a row are one matrix product
        x = _stacked(first, b, axis=1)
        y = x if second is None else _stacked(second, b, axis=1)
        row = x @ y.transpose(0, 2, 1)
        n = len(batch)
        total += row.sum(axis=0)
        change[unit[batch]] -= 2 * (n - 2) / (n - 3) * row
    return np.moveaxis(total + change, 0, -1)


def permuted(
    grams: Grams,
    permutation: NDArray[np.intp],
    *,
    batches: Sequence[NDArray[np.intp]],
    unit: NDArray[np.intp],
) -> Grams:
    """Gram matrices with whole units of text exchanged: what chance makes of T.

    A token takes the place of that of unit pi(u) in its batch; where the batch has none of that
    unit, of pi(pi(u)) and so on, which is a permutation of the units that are there.

    Parameters
    ----------
    grams : of one representation.
    permutation : (unit), pi.
    batches, unit : what the Grams were made with.
    """
    moved = []
    for gram, batch in zip(grams, batches, strict=True):
        place = np.full(len(permutation), -1)
        place[unit[batch]] = np.arange(len(batch))
        other = permutation[unit[batch]]
        while (absent := place[other] < 0).any():
            other[absent] = permutation[other[absent]]
        moved.append(gram[np.ix_(place[other], place[other])])
    return moved


def cka_from(hsic_xy: NDArray, hsic_xx: NDArray, hsic_yy: NDArray) -> NDArray[np.float64]:
    """T(X, Y) / sqrt(T(X, X) T(Y, Y)), of totals over batches.

    Parameters
    ----------
    hsic_xy, hsic_xx, hsic_yy : (...), broadcast; sums of `hsic_table` over its last axis, or of
        `hsic_without_each_unit`.

    Returns
    -------
    array (...), about 0 for unrelated representations, then also below 0; NaN where T(X, X) or
    T(Y, Y) is not above 0.
    """
    xx, yy = (np.where(np.asarray(own) > 0, own, np.nan) for own in (hsic_xx, hsic_yy))
    return np.asarray(hsic_xy) / np.sqrt(xx) / np.sqrt(yy)


def cka_of_all(totals: NDArray) -> NDArray[np.float64]:
    """`cka_from` for totals (representation, representation, ...) of one list with itself."""
    own = np.moveaxis(np.diagonal(totals, axis1=0, axis2=1), -1, 0)
    return cka_from(totals, own[:, None], own[None])


def _require_batches(batches: Sequence[NDArray[np.intp]]) -> None:
    short = [len(batch) for batch in batches if len(batch) < _LEAST]
    if short or not len(batches):
        raise ValueError(
            f"HSIC1 needs batches of at least {_LEAST} tokens, there is "
            f"{f'one of {short[0]}' if short else 'none'}; deal tokens with `batches`"
        )


def _stacked(representations: Sequence[Grams], batch: int, *, axis: int = 0) -> NDArray:
    """Grams of one batch."""
    return np.stack([g[batch] for g in representations], axis=axis)


def _require_same_batches(first: Sequence[Grams], second: Sequence[Grams] | None) -> None:
    every = [*first, *(second or [])]
    sizes = {tuple(len(gram) for gram in grams) for grams in every}
    if len(sizes) != 1:
        shown = ", ".join(str(sum(s)) for s in sorted(sizes)) or "none"
        raise ValueError(
            f"representations of different tokens or batches cannot be compared ({shown} tokens); "
            "make all Grams from the same tokens with the same batches"
        )
