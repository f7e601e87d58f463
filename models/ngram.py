"""Interpolated Kneser-Ney n-gram models: how surprising a token is given the few before it.

With h the n - 1 tokens before w, and h' all of them but the first,

    P_n(w | h) = max(c(hw) - D(c(hw)), 0) / c(h.)  +  gamma(h) P_{n-1}(w | h')
    gamma(h)   = (D_1 N_1(h.) + D_2 N_2(h.) + D_3 N_3+(h.)) / c(h.)

where c(h.) sums c over continuations, and N_r(h.) counts continuations seen r times. At order n,
c counts occurrences; below it, c(hw) is the number of distinct tokens seen before hw [1]_. The
order 1 is mixed with the uniform distribution; a context never seen hands over to P_{n-1}.
The discounts [2]_ come from n_r, the number of n-grams of a level seen r times:
Y = n_1 / (n_1 + 2 n_2) and D_r = r - (r + 1) Y n_{r+1} / n_r for r = 1, 2, 3 and more.

The separator of documents is an edge, not a token: no n-gram holds it, and probabilities sum to 1
over the other tokens. At the start of a text, where fewer than n - 1 tokens go before, order n
equals the highest order that has its context.

An n-gram is one exact integer, (rank of its first n - 1 tokens among all such) x d_vocab + last
token, so counting is sorting, and looking up is a binary search.

References
----------
.. [1] Kneser & Ney (1995), doi:10.1109/ICASSP.1995.479394.
.. [2] Chen & Goodman (1999), doi:10.1006/csla.1999.0128 (interpolation, modified discounts).
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.tokenizer import SEPARATOR_ID

Ints = NDArray[np.integer[Any]]
Floats = NDArray[np.floating[Any]]

# What a level uses whose n_1 ... n_4 cannot give discounts: half of the count, at most 1.5.
FALLBACK_DISCOUNTS = (0.5, 1.0, 1.5)
_STRETCH = 65_536


@dataclass(frozen=True)
class _Weights:
    """Discounted share of each n-gram in its context, and what the context passes down."""

    share: Floats  # (n-gram)
    passed_down: Floats  # (context)

    def interpolate(self, ngram: Ints, context: Ints, lower: Floats) -> Floats:
        """P of each n-gram; -1 stands for one, or a context, that was never seen."""
        share = np.where(ngram >= 0, self.share[ngram], 0.0)
        return share + np.where(context >= 0, self.passed_down[context], 1.0) * lower


@dataclass(frozen=True)
class _Level:
    """N-grams of one length, sorted; the rank in `ngram` is what the next level builds on."""

    ngram: Ints
    by_occurrence: _Weights
    by_continuation: _Weights | None  # None at the highest order, below which none stands

    def rank(self, ngram: Ints) -> Ints:
        """Rank of each n-gram, -1 where it was never seen."""
        at = np.minimum(np.searchsorted(self.ngram, ngram), len(self.ngram) - 1)
        return np.where(self.ngram[at] == ngram, at, -1)


@dataclass(frozen=True)
class KneserNey:
    """Models of the orders 1 to n that share their counts.

    Attributes
    ----------
    d_vocab : size of the vocabulary, the separator included.
    n_tokens : how many tokens it was fitted on, separators included.
    """

    d_vocab: int
    n_tokens: int
    levels: tuple[_Level, ...]

    def surprisal(self, tokens: Ints, targets: Ints) -> NDArray[np.float32]:
        """Surprisal of each target given the tokens up to its position, for every order.

        Parameters
        ----------
        tokens : (sequence, pos), the context: position p sees tokens 0 to p of its sequence.
        targets : (sequence, pos), what follows the token of that position.

        Returns
        -------
        float32 (order, sequence, pos), nats; order n uses min(n - 1, p + 1) tokens.

        Raises
        ------
        ValueError
            If the shapes differ, or an id is the separator or outside the vocabulary.
        """
        if tokens.ndim != 2 or tokens.shape != targets.shape:
            raise ValueError(
                f"tokens {tokens.shape} and targets {targets.shape} must be one (sequence, pos)"
            )
        for ids in (tokens, targets):
            if ids.size and not 1 <= ids.min() <= ids.max() < self.d_vocab:
                raise ValueError(
                    f"token ids {ids.min()} to {ids.max()} must lie between 1 (0 separates "
                    f"documents) and {self.d_vocab - 1}"
                )
        tokens, targets = tokens.astype(np.int64), targets.astype(np.int64)
        surprisal = np.empty((len(self.levels), *tokens.shape), dtype=np.float32)
        lower = np.full(tokens.shape, 1 / (self.d_vocab - 1))
        context = np.zeros_like(tokens)
        for i, level in enumerate(self.levels):
            ngram = level.rank(context * self.d_vocab + targets)
            probability = level.by_occurrence.interpolate(ngram, context, lower)
            surprisal[i] = -np.log(probability)
            if i >= 2:  # the first i - 1 positions have fewer than i tokens before their target
                surprisal[i, :, : i - 1] = surprisal[i - 1, :, : i - 1]
            if level.by_continuation is not None:
                lower = level.by_continuation.interpolate(ngram, context, lower)
                context = self._extend(level, context, tokens, length=i + 1)
        return surprisal

    def _extend(self, level: _Level, context: Ints, tokens: Ints, *, length: int) -> Ints:
        """Rank of the `length` tokens that end at each position, from one token fewer."""
        before = context if length == 1 else np.roll(context, 1, axis=1)
        extended = level.rank(before * self.d_vocab + tokens)
        extended[:, : length - 1] = -1
        return extended


def fit_kneser_ney(
    tokens: Ints,
    *,
    max_order: int = 5,
    d_vocab: int,
    discount: float | None = None,
    max_tokens: int | None = None,
) -> KneserNey:
    """Count a token array and discount, for the orders 1 to `max_order`.

    Parameters
    ----------
    tokens : (token), documents separated by id 0.
    d_vocab : size of the vocabulary, the separator included.
    discount : None for three discounts a level [2]_; a number in (0, 1] is one for all [1]_.
    max_tokens : fit on about so many at most, in stretches of 65,536 spread evenly over the
        array; memory is about 150 bytes a token.

    Raises
    ------
    ValueError
        If the discount is out of range, an id out of the vocabulary, or no document is as long
        as `max_order`.
    """
    if discount is not None and not 0 < discount <= 1:
        raise ValueError(f"discount {discount} must lie in (0, 1]")
    token = _thinned(tokens, max_tokens).astype(np.int32)
    if token.size and not 0 <= token.min() <= token.max() < d_vocab:
        raise ValueError(f"token ids reach {token.max()}; a vocabulary of {d_vocab} ends before")
    inside = token != SEPARATOR_ID
    rank: Ints = np.where(inside, token, -1)  # of the n-gram that ends at each position
    ngram: Ints = np.arange(d_vocab, dtype=np.int64)
    occurrences: Ints = np.bincount(token[inside], minlength=d_vocab)
    levels: list[_Level] = []
    n_contexts = 1
    for order in range(1, max_order + 1):
        context = ngram // d_vocab
        by_occurrence = _weights(occurrences, context, n_contexts, discount)
        if order == max_order:
            levels.append(_Level(ngram, by_occurrence, None))
            break
        at = np.flatnonzero((rank[:-1] >= 0) & inside[1:]) + 1  # ends of one token more
        if not at.size:
            raise ValueError(
                f"no document has {order + 1} tokens, max_order is {max_order}; give more text"
            )
        longer, one_of_each, longer_rank, occurrences = _counted(
            rank[at - 1].astype(np.int64) * d_vocab + token[at]
        )
        continuations = np.bincount(rank[at[one_of_each]], minlength=len(ngram))
        by_continuation = _weights(continuations, context, n_contexts, discount)
        levels.append(_Level(ngram, by_occurrence, by_continuation))
        n_contexts, ngram = len(ngram), longer
        rank.fill(-1)
        rank[at] = longer_rank
    return KneserNey(d_vocab, len(token), tuple(levels))


def discounts(count: Ints) -> tuple[float, float, float]:
    """D_1, D_2, D_3+ of a level from how many of its n-grams are seen 1, 2, 3 and 4 times [2]_.

    Where a count of counts is 0, or a discount falls outside (0, r], as among few n-grams they
    do, the three are 0.5, 1 and 1.5.
    """
    n = np.bincount(np.minimum(count, 5), minlength=6)[1:5].astype(float)  # n_1 ... n_4
    if not n.all():
        return FALLBACK_DISCOUNTS
    y = n[0] / (n[0] + 2 * n[1])
    d_1, d_2, d_3 = (float(r - (r + 1) * y * n[r] / n[r - 1]) for r in (1, 2, 3))
    return (d_1, d_2, d_3) if 0 < d_1 <= 1 and 0 < d_2 <= 2 and 0 < d_3 <= 3 else FALLBACK_DISCOUNTS


def _weights(count: Ints, context: Ints, n_contexts: int, discount: float | None) -> _Weights:
    discount_of = np.array([0, *(discounts(count) if discount is None else [discount] * 3)])
    discounted = discount_of[np.minimum(count, 3)]
    total = np.bincount(context, weights=count, minlength=n_contexts)
    held_back = np.bincount(context, weights=discounted, minlength=n_contexts)
    seen = total > 0
    passed_down = np.divide(held_back, total, out=np.ones(n_contexts), where=seen)
    # A count is 0 if an n-gram only ever begins documents; its context may then be unseen.
    share = (count - discounted) / np.maximum(total, 1)[context]
    return _Weights(share, passed_down)


def _counted(key: Ints) -> tuple[Ints, Ints, Ints, Ints]:
    """Distinct keys, where one of each stands, the rank of every key, and how often each occurs.

    What `np.unique` returns, at half its memory.
    """
    order = np.argsort(key)
    key = key[order]
    starts = np.flatnonzero(np.concatenate([[True], key[1:] != key[:-1]]))
    occurrences = np.diff(starts, append=len(key))
    rank = np.empty(len(key), dtype=np.int32)
    rank[order] = np.repeat(np.arange(len(starts), dtype=np.int32), occurrences)
    return key[starts], order[starts], rank, occurrences


def _thinned(tokens: Ints, max_tokens: int | None) -> Ints:
    """Evenly spread stretches of the array, separated, if it is longer than `max_tokens`."""
    if max_tokens is None or len(tokens) <= max_tokens:
        return np.asarray(tokens)
    length = min(_STRETCH, max_tokens)
    starts = np.linspace(0, len(tokens) - length, max_tokens // length).astype(np.int64)
    separator = np.array([SEPARATOR_ID], dtype=tokens.dtype)
    return np.concatenate([part for i in starts for part in (tokens[i : i + length], separator)])
