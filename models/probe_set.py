"""The probe set: held-out sequences that every run of a study is observed on at every step.

Documents are chosen before the tokenizer exists, so that it learns from the others alone: hence
a length in characters, checked once their tokens are known.
"""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from models.config import DataConfig
from models.corpus import Document
from models.ngram import KneserNey

# More characters than a token of English text has, even with a vocabulary of 65,536.
CHARACTERS_PER_TOKEN = 6


@dataclass(frozen=True)
class ProbeSet:
    """Held-out sequences and what is known of them, as plain arrays.

    Names and dimensions are those of the group `probe_set` in `store.schema`. Documents of the
    domains take turns along `sequence`.
    """

    token: NDArray[np.int32]  # (sequence, pos)
    target: NDArray[np.int32]  # (sequence, pos)
    document: NDArray[np.character]  # (sequence)
    work: NDArray[np.character]  # (sequence)
    domain: NDArray[np.character]  # (sequence)
    ngram_surprisal: NDArray[np.float32]  # (order, sequence, pos), nats
    vocabulary: list[str]  # (d_vocab)
    token_frequency: NDArray[np.int64]  # (d_vocab), separators counted

    def save(self, path: Path) -> None:
        """Write the arrays; not the vocabulary, which the tokenizer holds."""
        arrays = {
            field.name: getattr(self, field.name)
            for field in dataclasses.fields(self)
            if field.name != "vocabulary"
        }
        np.savez(path, **arrays)

    @classmethod
    def load(cls, path: Path, *, vocabulary: list[str]) -> "ProbeSet":
        """Read what `save` wrote."""
        with np.load(path, allow_pickle=False) as arrays:
            return cls(vocabulary=vocabulary, **arrays)


def choose_probe_documents(
    domain: Sequence[str], n_characters: NDArray[np.int64], cfg: DataConfig
) -> list[int]:
    """Indices of the documents to hold out: from every domain as evenly as its size allows.

    A domain gives at most half of its documents, and only such as are long enough. Domains take
    turns in the result; inside a domain the choice is random, fixed by `cfg.order_seed`.

    Parameters
    ----------
    domain, n_characters : of each document.

    Raises
    ------
    ValueError
        If there are fewer such documents than `cfg.probe_documents`.
    """
    shortest = cfg.sequences_per_document * (cfg.n_ctx + 1) * CHARACTERS_PER_TOKEN
    rng = np.random.default_rng(cfg.order_seed)
    names, domain_index = np.unique(np.array(domain, dtype=str), return_inverse=True)
    candidates = []
    for i in range(len(names)):
        members = np.flatnonzero(domain_index == i)
        eligible = rng.permutation(members[n_characters[members] >= shortest])
        candidates.append(eligible[: len(members) // 2].tolist())
    turns = [
        of_domain[turn]
        for turn in range(max(map(len, candidates), default=0))
        for of_domain in candidates
        if turn < len(of_domain)
    ]
    if len(turns) < cfg.probe_documents:
        raise ValueError(
            f"the probe set asks for {cfg.probe_documents} documents of at least {shortest:,} "
            f"characters, at most half of any domain; of {len(domain):,} documents only "
            f"{len(turns):,} can be held out; set a smaller data.probe_documents, "
            "data.sequences_per_document or data.n_ctx, or give more text"
        )
    return turns[: cfg.probe_documents]


def probe_sequences(
    document: Document, ids: NDArray[np.int32], cfg: DataConfig
) -> NDArray[np.int32]:
    """Sequences of n_ctx + 1 tokens, each in the middle of an equal share of the document.

    Returns
    -------
    (sequence, n_ctx + 1); none overlap, and neither end of a document, often a heading or a
    greeting, is favoured.

    Raises
    ------
    ValueError
        If the document has too few tokens.
    """
    n_sequences, length = cfg.sequences_per_document, cfg.n_ctx + 1
    if len(ids) < n_sequences * length:
        raise ValueError(
            f"probe document {document.name} of {len(document.text):,} characters has only "
            f"{len(ids):,} tokens, {n_sequences} sequences need {n_sequences * length:,}; set a "
            "smaller data.sequences_per_document or data.n_ctx"
        )
    edges = np.arange(n_sequences + 1) * len(ids) // n_sequences
    starts = (edges[:-1] + edges[1:] - length) // 2
    return ids[starts[:, None] + np.arange(length)]


def make_probe_set(
    held_out: Sequence[tuple[Document, NDArray[np.int32]]],
    cfg: DataConfig,
    *,
    ngram_model: KneserNey,
    vocabulary: list[str],
    token_frequency: NDArray[np.int64],
) -> ProbeSet:
    """The sequences of the held-out documents (each with its token ids), and their surprisal."""
    sequences = np.concatenate([probe_sequences(document, ids, cfg) for document, ids in held_out])
    token, target = sequences[:, :-1], sequences[:, 1:]
    labels = {
        name: np.repeat(
            [getattr(document, name) for document, _ in held_out], cfg.sequences_per_document
        )
        for name in ("name", "work", "domain")
    }
    return ProbeSet(
        token=token,
        target=target,
        document=labels["name"],
        work=labels["work"],
        domain=labels["domain"],
        ngram_surprisal=ngram_model.surprisal(token, target),
        vocabulary=vocabulary,
        token_frequency=token_frequency,
    )
