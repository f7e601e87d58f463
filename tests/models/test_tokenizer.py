from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer

from models.tokenizer import SEPARATOR, tokenizer_hash, train_tokenizer, vocabulary

TEXT = (
    "The quick brown fox jumps over the lazy dog, and the dog does not mind; the fox runs on. "
    "Wo die Wälder grün sind, ruht der Fuchs. "
) * 3


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_tokenizer([TEXT], 300)


def odd_texts() -> Iterator[str]:
    yield from (
        "",
        " ",
        "  two  spaces ",
        "\n\n\ttab\r\n",
        "nul \x00 \x7f",
        "日本語 emoji 👩‍👩‍👧 Ω",
    )
    yield from (
        SEPARATOR,
        f"a{SEPARATOR}b",
        f" {SEPARATOR}\n{SEPARATOR}",
        "<|endoftext",
        "'s don't",
    )
    rng = np.random.default_rng(0)
    for _ in range(50):
        points = rng.integers(0, 0x10FFFF, size=40)
        yield "".join(chr(p) for p in points if not 0xD800 <= p < 0xE000)


def test_any_text_comes_back_unchanged(tokenizer: Tokenizer) -> None:
    for text in [TEXT, *odd_texts()]:
        assert tokenizer.decode(tokenizer.encode(text).ids) == text


def test_no_text_encodes_to_the_separator(tokenizer: Tokenizer, tmp_path: Path) -> None:
    assert tokenizer.token_to_id(SEPARATOR) == 0
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    reloaded = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    trained_on_it = train_tokenizer([SEPARATOR * 1000 + TEXT], 300)
    for each in (tokenizer, reloaded, trained_on_it):
        assert all(0 not in each.encode(text).ids for text in odd_texts())


def test_the_first_merge_is_the_most_frequent_pair() -> None:
    tokenizer = train_tokenizer(["xq xq xq xz xz yq"], 258)
    assert vocabulary(tokenizer)[257] == " x"
    assert len(tokenizer.encode("xq xq").ids) == 4


def test_the_same_texts_give_the_same_tokenizer(tokenizer: Tokenizer) -> None:
    assert tokenizer_hash(train_tokenizer(iter([TEXT]), 300)) == tokenizer_hash(tokenizer)
    assert tokenizer_hash(train_tokenizer([TEXT + " fox" * 99], 300)) != tokenizer_hash(tokenizer)


def test_the_hash_survives_saving(tokenizer: Tokenizer, tmp_path: Path) -> None:
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    reloaded = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    assert tokenizer_hash(reloaded) == tokenizer_hash(tokenizer)


def test_too_little_text_is_an_error_with_the_size_reached() -> None:
    with pytest.raises(ValueError, match=r"yields 2\d\d tokens, data.d_vocab asks for 2048"):
        train_tokenizer(["the cat sat on the mat; the cat"], 2048)


def test_vocabulary_is_the_text_of_each_id(tokenizer: Tokenizer) -> None:
    texts = vocabulary(tokenizer)
    assert len(texts) == tokenizer.get_vocab_size() == 300
    assert texts[0] == SEPARATOR
    assert " the" in texts
    encoded = tokenizer.encode("the lazy dog jumps")
    assert "".join(texts[i] for i in encoded.ids) == "the lazy dog jumps"


def test_bytes_that_are_no_character_read_as_the_replacement_character(
    tokenizer: Tokenizer,
) -> None:
    texts = vocabulary(tokenizer)
    first_of_two, *_ = tokenizer.encode("Ω").ids
    assert texts[first_of_two] == "\ufffd"
