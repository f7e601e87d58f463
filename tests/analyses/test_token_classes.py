"""Classes of the token to be predicted: known texts, slow loops, and what a division promises."""

import itertools

import numpy as np
import pytest
import xarray as xr

from analyses.statistics.token_classes import (
    copying,
    frequency_band,
    position_band,
    repeated_bigram,
    repeated_token,
    token_classes,
    written,
)

VOCABULARY = [
    "!", '"', "'", ",", ".", "7", " 18", "000", "\n", " ", "\n\n  ", "\ufffd", "Kn", "ight", " the",
    "The", " He", "didn", "'t", " Mc", "Donald", "s", "T", "is", "_", " ca", "f\u00e9", '."',
    " 2nd", "",
]  # fmt: skip
ID = {text: i for i, text in enumerate(VOCABULARY)}


def ids(*texts: str) -> np.ndarray:
    return np.array([[ID[text] for text in texts]])


def kinds(*texts: str) -> list[str]:
    """What the targets are, the first text being the only token that is no target."""
    row = ids(*texts)
    division, _ = written(row[:, :-1], row[:, 1:], np.array(VOCABULARY))
    return [division.classes[i] for i in division.label[0]]


@pytest.fixture(scope="module")
def probe_set() -> xr.Dataset:
    """Random tokens of few ids, so that bigrams repeat; everything a probe set may hold."""
    rng = np.random.default_rng(0)
    row = rng.integers(0, len(VOCABULARY), (12, 41))
    return xr.Dataset(
        {
            "token": (("sequence", "pos"), row[:, :-1]),
            "target": (("sequence", "pos"), row[:, 1:]),
            "domain": ("sequence", np.array(["verse", "prose", "law"] * 4, dtype=object)),
            "vocabulary": ("d_vocab", np.array(VOCABULARY, dtype=object)),
            "token_frequency": ("d_vocab", 10 ** (np.arange(len(VOCABULARY)) % 8)),
            "ngram_surprisal": (("order", "sequence", "pos"), rng.gamma(2.0, 2.0, (3, 12, 40))),
        },
        {"order": [1, 2, 3]},
    )  # fmt: skip


def test_every_division_but_case_puts_each_token_into_one_class(probe_set: xr.Dataset) -> None:
    divisions = token_classes(probe_set)
    names = ["domain", "frequency", "position", "token", "case", "bigram", "copying"]
    assert list(divisions) == names
    for name, (classes, label) in divisions.items():
        assert len(set(classes)) == len(classes)
        assert label.shape == (12, 40)
        assert label.max() < len(classes)
        assert label.min() == (-1 if name == "case" else 0)


def test_case_divides_the_word_initial_tokens(probe_set: xr.Dataset) -> None:
    divisions = token_classes(probe_set)
    initial = divisions["token"].label == divisions["token"].classes.index("word-initial")
    np.testing.assert_array_equal(divisions["case"].label >= 0, initial)


def test_domain_is_that_of_the_sequence(probe_set: xr.Dataset) -> None:
    classes, label = token_classes(probe_set)["domain"]
    assert classes == ("law", "prose", "verse")
    assert [classes[i] for i in label[:4, 7]] == ["verse", "prose", "law", "verse"]


def test_what_the_probe_set_lacks_is_left_out(probe_set: xr.Dataset) -> None:
    bare = probe_set[["token", "target", "domain"]]
    assert list(token_classes(bare)) == ["domain", "position", "bigram"]
    unigram = probe_set.sel(order=[1])
    assert "copying" not in token_classes(unigram)


def test_order_of_dimensions_and_of_sequences_does_not_matter(probe_set: xr.Dataset) -> None:
    expected, turned = token_classes(probe_set), token_classes(probe_set.transpose())
    reversed_ = token_classes(probe_set.isel(sequence=slice(None, None, -1)))
    for name, (_, label) in expected.items():
        np.testing.assert_array_equal(turned[name].label, label)
        np.testing.assert_array_equal(reversed_[name].label, label[::-1])


def test_frequency_bands_are_powers_of_ten_of_the_training_text() -> None:
    frequency = np.array([985_000, 13_000, 1_500, 450, 45, 5, 0])
    assert frequency.sum() == 1_000_000
    classes, label = frequency_band(np.arange(7)[None], frequency)
    assert [classes[i] for i in label[0]] == [
        "1% or more", "1% or more", "0.1 to 1%", "0.01 to 0.1%", "0.001 to 0.01%",
        "below 0.001%", "below 0.001%",
    ]  # fmt: skip


def test_a_share_of_exactly_one_percent_is_in_the_band_that_starts_there() -> None:
    classes, label = frequency_band(np.array([[0, 1, 2]]), np.array([9_890, 100, 10]))
    assert [classes[i] for i in label[0]] == ["1% or more", "1% or more", "0.1 to 1%"]


@pytest.mark.parametrize(
    ("n_pos", "expected"),
    [
        (3, ["1 to 3 tokens"] * 3),
        (4, ["1 to 4 tokens"] * 4),
        (20, ["1 to 4 tokens"] * 4 + ["5 to 16 tokens"] * 12 + ["17 to 20 tokens"] * 4),
    ],
)
def test_positions_are_counted_in_tokens_of_context(n_pos: int, expected: list[str]) -> None:
    classes, label = position_band(2, n_pos)
    for row in label:
        assert [classes[i] for i in row] == expected


def test_kinds_follow_the_text_not_only_the_token() -> None:
    assert kinds("Kn", "ight", ",", "\n", "The") == [
        "continuation", "punctuation", "white space", "word-initial",
    ]  # fmt: skip
    assert kinds(" ", "T", "is") == ["word-initial", "continuation"]
    assert kinds('"', "T", "is", '."') == ["word-initial", "continuation", "punctuation"]
    assert kinds(" He", "\n\n  ", "\n", "s") == ["white space", "white space", "word-initial"]


def test_contractions_and_inner_capitals_continue_a_word() -> None:
    assert kinds("\n", "didn", "'t") == ["word-initial", "continuation"]
    assert kinds("\n", "didn", "'", "s") == ["word-initial", "punctuation", "continuation"]
    assert kinds("\n", " Mc", "Donald", "'", "s") == [
        "word-initial", "continuation", "punctuation", "continuation",
    ]  # fmt: skip


def test_an_opening_quotation_mark_does_not_continue_a_word() -> None:
    assert kinds(" the", " ", "'", "T", "is") == [
        "white space", "punctuation", "word-initial", "continuation",
    ]  # fmt: skip


def test_digits_underscores_and_parts_of_letters_have_their_classes() -> None:
    assert kinds("!", "7", " 18", "000", "_", "\ufffd", "") == [
        "digits", "digits", "digits", "punctuation", "part of a letter", "part of a letter",
    ]  # fmt: skip
    # letters come first, and letters beyond ASCII are letters
    assert kinds("!", " 2nd", " ca", "f\u00e9") == ["word-initial", "word-initial", "continuation"]


def test_capitalised_is_the_first_letter_of_a_word() -> None:
    row = ids("\n", "The", " the", " Mc", "Donald", " He", ",")
    _, case = written(row[:, :-1], row[:, 1:], np.array(VOCABULARY))
    assert case.classes == ("lower case", "capitalised")
    assert case.label[0].tolist() == [1, 0, 1, -1, 1, -1]


def test_repetition_agrees_with_a_slow_loop() -> None:
    rng = np.random.default_rng(1)
    row = rng.integers(0, 5, (8, 30))
    token, target = row[:, :-1], row[:, 1:]
    bigram, alone = repeated_bigram(token, target), repeated_token(token, target)
    for i, full in enumerate(row.tolist()):
        for pos in range(29):
            pairs = list(itertools.pairwise(full[: pos + 1]))
            assert bigram[i, pos] == ((full[pos], full[pos + 1]) in pairs)
            assert alone[i, pos] == (full[pos + 1] in full[: pos + 1])
    assert 0 < bigram.sum() < alone.sum() < alone.size
    assert not (bigram & ~alone).any()


def test_repetition_is_looked_for_in_the_own_sequence_and_in_order() -> None:
    token = np.array([[1, 2, 1], [1, 3, 2]])
    target = np.array([[2, 1, 2], [3, 2, 1]])
    # the second sequence has (1, 2) nowhere and (2, 1) only once; ids must not run together
    assert repeated_bigram(token, target).tolist() == [[False, False, True], [False] * 3]


def test_copying_tells_the_unexpected_repetition_from_the_expected() -> None:
    repeated = np.array([[True, True, False, False]])
    alone = np.array([[True, True, True, False]])
    surprisal = -np.log(np.array([[0.049, 0.051, 0.001, 0.001]]))
    classes, label = copying(repeated, alone, surprisal)
    assert [classes[i] for i in label[0]] == [
        "repeated, unexpected", "repeated, expected", "only token repeated", "token new",
    ]  # fmt: skip
