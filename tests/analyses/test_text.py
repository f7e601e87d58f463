import io

import pytest
from markdown_it import MarkdownIt
from rich.console import Console
from rich.text import Text

from analyses.reporting.text import escape, interval, listed, number, p_value, printable

HOSTILE = (
    "<script>alert(1)</script>",
    "a | b",
    "`code` and ```fence```",
    "[link](javascript:alert(1)) ![x](y)",
    "*bold* __init__ ~~gone~~ $x^2$ {role}`x` \\| \\",
    "&lt;b&gt; &#124;",
    "# heading",
)


@pytest.mark.parametrize("text", HOSTILE)
def test_escaped_text_renders_as_itself(text: str) -> None:
    parser = MarkdownIt("commonmark").enable(["table", "strikethrough"])
    tokens = parser.parse(f"| name |\n| --- |\n| {escape(text)} |\n")
    cells = [token for token in tokens if token.type == "inline"]
    assert len(cells) == 2
    assert {child.type for child in cells[1].children or []} <= {"text", "text_special"}
    assert "".join(child.content for child in cells[1].children or []) == text


def test_run_names_stay_readable_in_the_source() -> None:
    assert escape("dense_112-seed0 (2 pairs), 95% interval") == (
        "dense_112-seed0 (2 pairs), 95% interval"
    )


def test_control_codes_cannot_reach_the_terminal() -> None:
    shown = printable("a\x1b[31mred\x07\r\nb\u202e")
    assert (
        shown
        == "a\N{REPLACEMENT CHARACTER}[31mred\N{REPLACEMENT CHARACTER} b\N{REPLACEMENT CHARACTER}"
    )
    console = Console(file=io.StringIO(), force_terminal=True)
    console.print(Text(printable("[bold]\x1b[2J")))
    assert "\x1b[2J" not in console.file.getvalue()  # type: ignore[attr-defined]


def test_numbers_that_are_missing_are_dashes() -> None:
    nan = float("nan")
    shown = (number(nan), interval(nan, nan), p_value(nan, smallest=0.1))
    assert shown == ("\N{EN DASH}",) * 3
    assert (number(0.12345), interval(0.1, 0.2, digits=1)) == ("0.123", "0.1 to 0.2")


def test_smallest_possible_p_is_given_as_a_bound() -> None:
    assert p_value(0.002, smallest=0.002) == "≤ 0.002"
    assert p_value(0.25, smallest=0.002) == "0.25"


def test_items_are_listed_as_in_a_sentence() -> None:
    assert [listed(["a"]), listed("ab"), listed("abc")] == ["a", "a and b", "a, b and c"]
