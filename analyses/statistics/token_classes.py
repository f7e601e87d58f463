r"""What kind of token is to be predicted: divisions of the tokens of a probe set into classes.

A loss is that of the target, so every class says something of the target: where it stands, how
frequent it is, what is written in it, and whether its context could have taught it.

A bigram is repeated if the sequence had the same two tokens in a row before: a model can then copy
the target (an induction head does [1]_). Frequent bigrams repeat by themselves, so repeated ones
are told apart by what a 2-gram model of the training text knew: a repeated bigram that it held to
be unlikely can only have come from the context [2]_.

References
----------
.. [1] Olsson et al. (2022), arXiv:2209.11895 (induction heads).
.. [2] Arora et al. (2023), arXiv:2312.04927 (repeated bigrams that are rare in training text).
.. [3] van Heuven et al. (2014), doi:10.1080/17470218.2013.850521 (bands of word frequency by
   powers of ten).
"""

import re
from typing import NamedTuple

import numpy as np
import xarray as xr
from numpy.typing import NDArray

SURPRISING = 0.05
_WORD = re.compile("[^\\W\\d_]+(?:['\N{RIGHT SINGLE QUOTATION MARK}][^\\W\\d_]+)*")
_SHARES = ("1% or more", "0.1 to 1%", "0.01 to 0.1%", "0.001 to 0.01%", "below 0.001%")
_KINDS = (
    "word-initial",
    "continuation",
    "digits",
    "punctuation",
    "white space",
    "part of a letter",
)
_COPYING = ("repeated, unexpected", "repeated, expected", "only token repeated", "token new")


class Division(NamedTuple):
    """Classes that exclude each other.

    Attributes
    ----------
    classes : names.
    label : (sequence, pos), which of `classes` the target is in; -1 for none.
    """

    classes: tuple[str, ...]
    label: NDArray[np.intp]


def token_classes(probe_set: xr.Dataset) -> dict[str, Division]:
    """Every division that the probe set allows, by name.

    Parameters
    ----------
    probe_set : Dataset with `token` and `target (sequence, pos)` and `domain (sequence)`; without
        `vocabulary` and `token_frequency (d_vocab)` or `ngram_surprisal (order, sequence, pos)`,
        the divisions that need them are left out.

    Returns
    -------
    dict
        `domain`, `frequency`, `position`, `token` (what is written), `case` (of the first letter of
        a word), `bigram` (repeated or new) and `copying` (what the context could teach). All but
        `case` divide all tokens.
    """
    token, target = (
        probe_set[name].transpose("sequence", "pos").values for name in ("token", "target")
    )
    domains, domain = np.unique(
        probe_set["domain"].values.astype(object).astype(str), return_inverse=True
    )
    found = {
        "domain": Division(tuple(domains), np.repeat(domain[:, None], target.shape[1], axis=1))
    }
    if "token_frequency" in probe_set:
        found["frequency"] = frequency_band(target, probe_set["token_frequency"].values)
    found["position"] = position_band(*target.shape)
    if "vocabulary" in probe_set:
        vocabulary = probe_set["vocabulary"].values.astype(object).astype(str)
        found["token"], found["case"] = written(token, target, vocabulary)
    repeated = repeated_bigram(token, target)
    found["bigram"] = Division(("new", "repeated"), repeated.astype(np.intp))
    orders = probe_set["order"].values.tolist() if "ngram_surprisal" in probe_set else []
    if 2 in orders:
        surprisal = probe_set["ngram_surprisal"].sel(order=2).transpose("sequence", "pos").values
        found["copying"] = copying(repeated, repeated_token(token, target), surprisal)
    return found


def frequency_band(target: NDArray, token_frequency: NDArray) -> Division:
    """Share of the training text that the target's id makes up, by powers of ten [3]_.

    Parameters
    ----------
    target : (sequence, pos), token ids.
    token_frequency : (d_vocab), occurrences in the training text.
    """
    share = token_frequency / token_frequency.sum()
    band = np.searchsorted([-1e-2, -1e-3, -1e-4, -1e-5], -share)
    return Division(_SHARES, band[target])


def position_band(n_sequences: int, n_pos: int) -> Division:
    """How many tokens of context the model sees, in bands that grow fourfold: 1-4, 5-16, 17-64 ...

    The target at position p is predicted from the p + 1 tokens up to p.
    """
    ends = [4]
    while ends[-1] < n_pos:
        ends.append(4 * ends[-1])
    starts = [1, *(end + 1 for end in ends[:-1])]
    names = [f"{a} to {min(b, n_pos)} tokens" for a, b in zip(starts, ends, strict=True)]
    band = np.searchsorted(ends, np.arange(1, n_pos + 1))
    return Division(tuple(names), np.tile(band, (n_sequences, 1)))


def written(
    token: NDArray, target: NDArray, vocabulary: NDArray[np.str_]
) -> tuple[Division, Division]:
    """What is written in the target, and whether the word that it begins is capitalised.

    A token with a letter is word-initial if its first letter begins a word of the text, which may
    be preceded by a space, a line break, a quotation mark; else it continues a word, as do `'s` and
    `n't`. A token without a letter has digits, or is punctuation (symbols count as such), white
    space, or some bytes of a character that is more than one token.

    Parameters
    ----------
    token, target : (sequence, pos), token ids.
    vocabulary : (d_vocab), text of each id.

    Returns
    -------
    Division of all tokens, and Division of the word-initial ones.
    """
    of_id = np.array([_without_letter(text) for text in vocabulary])
    letter = np.array([_first_letter(text) for text in vocabulary])
    length = np.array([len(text) for text in vocabulary])
    upper = np.array(
        [i >= 0 and text[i].isupper() for text, i in zip(vocabulary, letter, strict=True)]
    )
    kind = of_id[target]
    for row, first, targets in zip(kind, token[:, 0], target, strict=True):
        ids = np.concatenate([[first], targets])
        text = "".join(vocabulary[ids])
        begins = np.zeros(len(text) + 1, dtype=bool)
        begins[[match.start() for match in _WORD.finditer(text)]] = True
        starts = np.cumsum(length[ids]) - length[ids] + np.maximum(letter[ids], 0)
        row[:] = np.where(letter[targets] >= 0, np.where(begins[starts[1:]], 0, 1), row)
    case = np.where(kind == 0, upper[target], -1)
    return Division(_KINDS, kind), Division(("lower case", "capitalised"), case)


def repeated_bigram(token: NDArray, target: NDArray) -> NDArray[np.bool_]:
    """Whether the sequence had this token before this target earlier, (sequence, pos).

    Parameters
    ----------
    token, target : (sequence, pos), token ids.
    """
    n_ids = int(target.max(initial=0)) + 1
    return _seen_before(token.astype(np.int64) * n_ids + target)


def repeated_token(token: NDArray, target: NDArray) -> NDArray[np.bool_]:
    """Whether the sequence had the target earlier, (sequence, pos), after whatever token.

    Parameters
    ----------
    token, target : (sequence, pos), token ids.
    """
    return _seen_before(np.concatenate([token[:, :1], target], axis=1))[:, 1:]


def copying(
    repeated: NDArray[np.bool_], token_repeated: NDArray[np.bool_], surprisal: NDArray
) -> Division:
    """What the context could teach of the target, beyond what the training text did [2]_.

    A repeated bigram is unexpected if the 2-gram model gave the target less than `SURPRISING`.

    Parameters
    ----------
    repeated, token_repeated : (sequence, pos), of `repeated_bigram` and `repeated_token`.
    surprisal : (sequence, pos), nats, under a 2-gram model of the training text.
    """
    rare = surprisal > -np.log(SURPRISING)
    index = np.select([repeated & rare, repeated, token_repeated], [0, 1, 2], default=3)
    return Division(_COPYING, index)


def _seen_before(code: NDArray) -> NDArray[np.bool_]:
    """Whether a row holds the same code at a smaller position."""
    order = np.argsort(code, axis=1, kind="stable")
    ordered = np.take_along_axis(code, order, axis=1)
    seen = np.zeros(code.shape, dtype=bool)
    np.put_along_axis(seen, order[:, 1:], ordered[:, 1:] == ordered[:, :-1], axis=1)
    return seen


def _first_letter(text: str) -> int:
    """Index of the first letter, -1 without."""
    return next((i for i, character in enumerate(text) if character.isalpha()), -1)


def _without_letter(text: str) -> int:
    """Index into `_KINDS` of a token that has no letter."""
    if any(character.isdigit() for character in text):
        return 2
    if not text or "\N{REPLACEMENT CHARACTER}" in text:
        return 5
    return 4 if text.isspace() else 3
