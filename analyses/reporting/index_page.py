"""The page of all reports of a study: a card for each, what they found, what was not answered.

Plain Markdown, in which a table is the cards; the site gives it their look.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from analyses.reporting.report import THUMBNAIL
from analyses.reporting.text import escape, first_sentence, listed, printable

_CARDS, _END_OF_CARDS = "<!-- cards -->", "<!-- end of cards -->"


@dataclass(frozen=True)
class Entry:
    """A report as the index shows it.

    Attributes
    ----------
    analysis, question, finding : of the report.
    changes : what is not as it was when it was made, in words.
    thumbnail : whether the folder has one.
    """

    analysis: str
    question: str
    finding: str
    changes: tuple[str, ...]
    thumbnail: bool


def index_page(
    study: str, entries: Sequence[Entry], unanswered: Mapping[str, str], command: str
) -> str:
    """The page; everything that comes from data is escaped.

    Parameters
    ----------
    unanswered : {analysis: why}.
    command : makes again what is stale.
    """
    parts = [
        f"# Study {escape(study)}",
        _counts(entries, unanswered),
        _CARDS,
        "| | |\n| --- | --- |\n" + "\n".join(map(_card, entries)) if entries else "",
        _END_OF_CARDS,
        "## What was found" if entries else "",
        *(_found(entry) for entry in entries),
        "## What was not answered" if unanswered else "",
        "\n".join(f"* `{name}`: {escape(why)}" for name, why in unanswered.items()),
        "## How to make these reports again",
        "What changed is analysed again, the rest stays:",
        f"```bash\n{printable(command)}\n```",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def cards(index: str, *, folder: str) -> str:
    """The cards of an index, for a page that has the index in `folder`."""
    shown = index.partition(_CARDS)[2].partition(_END_OF_CARDS)[0].strip()
    # brackets that are no link are escaped
    return shown.replace("](", f"]({folder}/")


def _counts(entries: Sequence[Entry], unanswered: Mapping[str, str]) -> str:
    stale = [f"`{entry.analysis}`" for entry in entries if entry.changes]
    told = [f"{len(entries)} questions answered, {len(unanswered)} not."]
    if stale:
        told.append(f"**Stale**, as the study or the code has changed since: {listed(stale)}.")
    return " ".join(told)


def _card(entry: Entry) -> str:
    page = f"{entry.analysis}/index.md"
    picture = f"[![]({entry.analysis}/{THUMBNAIL})]({page})" if entry.thumbnail else ""
    stale = "**Stale.** " if entry.changes else ""
    said = escape(first_sentence(entry.finding))
    return f"| {picture} | **[{escape(entry.question)}]({page})** {stale}{said} |"


def _found(entry: Entry) -> str:
    title = f"### [{escape(entry.question)}]({entry.analysis}/index.md)"
    stale = f"**Stale**: {escape('; '.join(entry.changes))}." if entry.changes else ""
    return "\n\n".join(part for part in (title, stale, escape(entry.finding)) if part)
