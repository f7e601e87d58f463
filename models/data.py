"""From documents to training tokens in one fixed order, and a probe set held out from them.

`prepare` passes over the text three times and never holds it: it chooses the probe documents,
trains the tokenizer on the others, then encodes all. The training tokens lie on disk, a
memory-mapped array of uint16, so the disk alone bounds their number.

`TokenStream` cuts them in windows and permutes the windows of each epoch. Its batches are a
function of the step, so a run resumes anywhere; `chain_hash` proves what a run saw.
"""

import dataclasses
import hashlib
import itertools
import json
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from models.config import DataConfig
from models.corpus import Document, documents
from models.ngram import fit_kneser_ney
from models.probe_set import ProbeSet, choose_probe_documents, make_probe_set
from models.tokenizer import SEPARATOR_ID, tokenizer_hash, train_tokenizer, vocabulary

TOKENIZER_CHARACTERS = 100_000_000
NGRAM_TOKENS = 20_000_000
_BATCH_CHARACTERS = 2_000_000


@dataclass(frozen=True)
class PreparedData:
    """What `prepare` left on disk.

    Attributes
    ----------
    tokens : uint16 (token), memory-mapped; each training document is followed by a separator.
    attrs : hashes of corpus, tokenizer and probe set, and counts.
    """

    tokens: np.memmap
    probe_set: ProbeSet
    attrs: dict[str, Any]

    @property
    def n_windows(self) -> int:
        """Training sequences in one epoch."""
        return count_windows(len(self.tokens), n_ctx=self.probe_set.token.shape[1])


class TokenStream:
    """The batches of a study: windows of n_ctx + 1 tokens at stride n_ctx, permuted each epoch.

    Raises
    ------
    ValueError
        If the tokens do not fill one window.
    """

    def __init__(
        self,
        tokens: NDArray[np.uint16],
        *,
        n_ctx: int,
        batch_size: int,
        order_seed: int,
        max_epochs: int,
    ) -> None:
        self.n_windows = count_windows(len(tokens), n_ctx=n_ctx)
        if self.n_windows < 1:
            raise ValueError(f"{len(tokens)} training tokens do not fill one window of {n_ctx + 1}")
        self._tokens = tokens
        self._n_ctx = n_ctx
        self._batch_size = batch_size
        self._order_seed = order_seed
        self._max_epochs = max_epochs
        self._latest: tuple[int, NDArray[np.int64]] | None = None  # an epoch and its order

    def batch(self, step: int) -> NDArray[np.int64]:
        """Batch of the optimizer step `step`, from 0: (batch_size, n_ctx + 1).

        Raises
        ------
        ValueError
            If it reaches past the last epoch.
        """
        index = step * self._batch_size + np.arange(self._batch_size)
        if index[0] < 0 or index[-1] >= self.n_windows * self._max_epochs:
            raise ValueError(
                f"step {step} reaches outside {self._max_epochs} epochs of {self.n_windows} "
                "windows; train fewer steps or set data.max_epochs"
            )
        epoch, place = np.divmod(index, self.n_windows)
        window = np.empty_like(place)
        for e in np.unique(epoch):
            window[epoch == e] = self._order(int(e))[place[epoch == e]]
        at = window[:, None] * self._n_ctx + np.arange(self._n_ctx + 1)
        return self._tokens[at].astype(np.int64)

    def _order(self, epoch: int) -> NDArray[np.int64]:
        if self._latest is None or self._latest[0] != epoch:
            rng = np.random.default_rng([self._order_seed, epoch])
            self._latest = epoch, rng.permutation(self.n_windows)
        return self._latest[1]


def count_windows(n_tokens: int, *, n_ctx: int) -> int:
    """Windows of n_ctx + 1 tokens at stride n_ctx that fit in `n_tokens`."""
    return max(n_tokens - 1, 0) // n_ctx


def chain_hash(previous: bytes, batch: NDArray[np.integer[Any]]) -> bytes:
    """SHA-256 of the hash so far and the next batch; the first `previous` is empty.

    Two runs whose hashes agree saw the same batches in the same order.
    """
    return hashlib.sha256(previous + batch.astype("<u4").tobytes()).digest()


def prepare(
    cfg: DataConfig,
    folder: Path,
    *,
    n_sequences: int,
    progress: Callable[[str], None] | None = None,
) -> PreparedData:
    """Tokens, tokenizer and probe set of a study: made in `folder` once, then read from there.

    Parameters
    ----------
    n_sequences : windows that training will ask for, steps times batch size.
    progress : is told each stage as it begins.

    Raises
    ------
    ValueError
        If `folder` holds something else or data of another configuration, or the text is
        unreadable or too small: for the vocabulary, the probe set, or `n_sequences`.
    """
    if not (folder / "meta.json").exists():
        if folder.exists() and any(folder.iterdir()):
            raise ValueError(f"{folder} holds files but no prepared data; choose another --out")
        _build(cfg, folder, progress or (lambda stage: None))
    prepared = _load(cfg, folder)
    available = prepared.n_windows * cfg.max_epochs
    if available < n_sequences:
        raise ValueError(
            f"training asks for {n_sequences:,} sequences of {cfg.n_ctx} tokens; the "
            f"{len(prepared.tokens):,} training tokens hold {prepared.n_windows:,}, in "
            f"{cfg.max_epochs} epochs {available:,}; set fewer train.n_steps, a smaller "
            "train.batch_size or more data.max_epochs, or give more text"
        )
    return prepared


def _load(cfg: DataConfig, folder: Path) -> PreparedData:
    meta = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
    differing = [
        f"data.{name} is {meta['config'].get(name)!r} there, {value!r} here"
        for name, value in _content(cfg).items()
        if meta["config"].get(name) != value
    ]
    if differing:
        raise ValueError(
            f"{folder} was prepared for another configuration: {'; '.join(differing)}; choose "
            "another --out, or delete that folder"
        )
    attrs = meta["attrs"]
    tokens = np.memmap(folder / "train.bin", dtype="<u2", mode="r")
    if len(tokens) != attrs["n_train_tokens"]:
        raise ValueError(
            f"{folder / 'train.bin'} has {len(tokens):,} tokens instead of "
            f"{attrs['n_train_tokens']:,}: it is damaged; delete {folder}"
        )
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    probe_set = ProbeSet.load(folder / "probe_set.npz", vocabulary=vocabulary(tokenizer))
    return PreparedData(tokens, probe_set, attrs)


def _content(cfg: DataConfig) -> dict[str, Any]:
    """What of the configuration decides the files; the number of epochs does not."""
    return {k: v for k, v in dataclasses.asdict(cfg).items() if k != "max_epochs"}


def _build(cfg: DataConfig, folder: Path, progress: Callable[[str], None]) -> None:
    """Write beside `folder`, then rename, so that a folder is whole or absent."""
    partial = folder.with_name(f"{folder.name}.{os.getpid()}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        _write(cfg, partial, progress)
        try:
            partial.rename(folder)
        except OSError:
            if not (folder / "meta.json").exists():
                raise  # else another process prepared the same text first
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _write(cfg: DataConfig, folder: Path, progress: Callable[[str], None]) -> None:
    progress("reading the text")
    domain, n_characters, corpus_hash = _scan(cfg)
    probe = choose_probe_documents(domain, n_characters, cfg)
    is_probe = np.zeros(len(domain), dtype=bool)
    is_probe[probe] = True

    progress(f"training the tokenizer on {len(domain) - len(probe):,} documents")
    kept = min(1.0, TOKENIZER_CHARACTERS / max(1, int(n_characters[~is_probe].sum())))
    tokenizer = train_tokenizer(_training_texts(cfg, is_probe, kept=kept), cfg.d_vocab)
    tokenizer.save(str(folder / "tokenizer.json"))

    progress(f"encoding {int(n_characters.sum()):,} characters")
    held_out, token_frequency = _write_tokens(cfg, tokenizer, is_probe, folder / "train.bin")
    train = np.memmap(folder / "train.bin", dtype="<u2", mode="r")
    progress(f"fitting n-gram models to {min(len(train), NGRAM_TOKENS):,} tokens")
    ngram_model = fit_kneser_ney(train, d_vocab=cfg.d_vocab, max_tokens=NGRAM_TOKENS)
    make_probe_set(
        [held_out[i] for i in probe],
        cfg,
        ngram_model=ngram_model,
        vocabulary=vocabulary(tokenizer),
        token_frequency=token_frequency,
    ).save(folder / "probe_set.npz")
    attrs = {
        "corpus_hash": corpus_hash,
        "tokenizer_hash": tokenizer_hash(tokenizer),
        "n_train_tokens": len(train),
        "n_train_documents": len(domain) - len(probe),
        "ngram_tokens": ngram_model.n_tokens,
        "train_documents": dict(Counter(domain) - Counter(domain[i] for i in probe)),
        "probe_documents": dict(Counter(domain[i] for i in probe)),
    }
    meta = {"config": _content(cfg), "attrs": attrs}
    (folder / "meta.json").write_text(json.dumps(meta, indent=1, sort_keys=True), encoding="utf-8")


def _write_tokens(
    cfg: DataConfig, tokenizer: Tokenizer, is_probe: NDArray[np.bool_], path: Path
) -> tuple[dict[int, tuple[Document, NDArray[np.int32]]], NDArray[np.int64]]:
    """Write the training documents; return the probe documents by index, and id frequencies."""
    held_out = {}
    token_frequency = np.zeros(cfg.d_vocab, dtype=np.int64)
    with path.open("wb") as file:
        for i, (document, ids) in enumerate(_encoded(cfg, tokenizer)):
            if is_probe[i]:
                held_out[i] = document, ids
                continue
            tokens = np.append(ids, SEPARATOR_ID)
            file.write(tokens.astype("<u2").tobytes())
            token_frequency += np.bincount(tokens, minlength=cfg.d_vocab)
    return held_out, token_frequency


def _scan(cfg: DataConfig) -> tuple[list[str], NDArray[np.int64], str]:
    """Domain and length of every document, and the SHA-256 of all names, domains and texts."""
    digest = hashlib.sha256()
    domain, n_characters = [], []
    for document in documents(cfg):
        domain.append(document.domain)
        n_characters.append(len(document.text))
        for part in (document.name, document.domain, document.text):
            encoded = part.encode()
            digest.update(len(encoded).to_bytes(8, "little") + encoded)
    return domain, np.array(n_characters, dtype=np.int64), digest.hexdigest()


def _training_texts(cfg: DataConfig, is_probe: NDArray[np.bool_], *, kept: float) -> Iterator[str]:
    """Texts of the training documents, thinned evenly to the fraction `kept`."""
    quota = 0.0
    for document, held_out in zip(documents(cfg), is_probe, strict=True):
        quota += 0.0 if held_out else kept
        if quota >= 1:
            quota -= 1
            yield document.text


def _encoded(cfg: DataConfig, tokenizer: Tokenizer) -> Iterator[tuple[Document, NDArray[np.int32]]]:
    """Every document with its token ids, encoded on all cores a few million characters at once."""
    batch: list[Document] = []
    n_characters = 0
    for document in itertools.chain(documents(cfg), [None]):
        if document is not None:
            batch.append(document)
            n_characters += len(document.text)
        if document is None or n_characters >= _BATCH_CHARACTERS:
            encodings = tokenizer.encode_batch_fast([each.text for each in batch])
            for each, encoding in zip(batch, encodings, strict=True):
                yield each, np.array(encoding.ids, dtype=np.int32)
            batch, n_characters = [], 0
