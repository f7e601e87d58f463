"""Byte-level BPE: any text becomes token ids and comes back unchanged.

The 256 bytes are the base alphabet, so nothing is out of vocabulary and no text is normalized;
merges of frequent pairs fill the vocabulary [1]_. Id 0 separates documents. It is in the vocabulary
but not among the tokens that encoding looks for, so no text, even one that contains the literal
"<|endoftext|>", encodes to it.

References
----------
.. [1] Sennrich et al. (2016), arXiv:1508.07909 (BPE); Radford et al. (2019), Language Models are
   Unsupervised Multitask Learners (on bytes).
"""

import hashlib
import json
from collections.abc import Iterable

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

SEPARATOR = "<|endoftext|>"
SEPARATOR_ID = 0


def train_tokenizer(texts: Iterable[str], d_vocab: int) -> Tokenizer:
    """Learn a vocabulary of exactly `d_vocab` tokens; the same texts give the same tokenizer.

    A pair is merged only if it occurs at least twice.

    Raises
    ------
    ValueError
        If the texts hold too few repeated pairs to reach `d_vocab`.
    """
    learner = Tokenizer(models.BPE())
    learner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    learner.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=d_vocab,
        min_frequency=2,
        special_tokens=[SEPARATOR],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    learner.train_from_iterator(texts, trainer)
    if learner.get_vocab_size() != d_vocab:
        raise ValueError(
            f"the training text yields {learner.get_vocab_size()} tokens, data.d_vocab asks for "
            f"{d_vocab}; give more text or a smaller data.d_vocab"
        )
    description = json.loads(learner.to_str())
    # The separator keeps its id in the model's vocabulary; only the search for it in texts goes.
    description["added_tokens"] = []
    return Tokenizer.from_str(json.dumps(description))


def tokenizer_hash(tokenizer: Tokenizer) -> str:
    """SHA-256, in hex, of the tokenizer's JSON with sorted keys."""
    canonical = json.dumps(json.loads(tokenizer.to_str()), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()


def vocabulary(tokenizer: Tokenizer) -> list[str]:
    """Text of every id, such as " the"; bytes that are no character alone read as "\\ufffd"."""
    return [tokenizer.decode([i]) for i in range(tokenizer.get_vocab_size())]
