"""Text that comes from data: a book, a domain or a run may be called anything, and is only shown.

A `<script>`, a pipe or a back-tick in a name must come out as those characters, in the terminal, in
a figure and on a page.

References
----------
.. [1] CommonMark 0.31, section 2.5: character references never act as markup.
"""

import re
from collections.abc import Iterable
from typing import SupportsFloat

# what starts markup inside a line of MyST, HTML or a table; "_" does so outside words only
_MARKUP = re.compile(r"[\\`*{}\[\]<>|$~&#]|(?<![^\W_])_|_(?![^\W_])")
_NONE = "\N{EN DASH}"


def printable(text: str) -> str:
    """The text on one line: runs of white space as one space, control codes as U+FFFD."""
    spaced = " ".join(text.split())
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in spaced)


def escape(text: str) -> str:
    """The text as Markdown that renders as the text itself, inside a line or a table cell [1]_."""
    return _MARKUP.sub(lambda match: f"&#{ord(match[0])};", printable(text))


def listed(items: Iterable[object]) -> str:
    """`a`, `a and b`, or `a, b and c`."""
    *head, tail = map(str, items)
    return f"{', '.join(head)} and {tail}" if head else tail


def first_sentence(text: str) -> str:
    """Up to the first full stop that another sentence follows."""
    return re.split(r"(?<=[.]) (?=[^\W\d_a-z])", text, maxsplit=1)[0]


def interval(low: float, high: float, *, digits: int = 3) -> str:
    """`low to high`, or a dash where there is none."""
    if low != low or high != high:
        return _NONE
    return f"{low:.{digits}f} to {high:.{digits}f}"


def number(value: SupportsFloat, *, digits: int = 3) -> str:
    """A value with so many decimals, or a dash where there is none."""
    value = float(value)
    return _NONE if value != value else f"{value:.{digits}f}"


def p_value(value: float, *, smallest: float) -> str:
    """A p-value, as an upper bound where it is the smallest that the test can give."""
    if value != value:
        return _NONE
    return f"≤ {smallest:.2g}" if value <= smallest else f"{value:.2g}"


def labels(long_name: str, units: str = "1") -> dict[str, str]:
    """Attributes of a variable, from which `figures.axis_label` makes the label of an axis."""
    return {"long_name": long_name, "units": units}
