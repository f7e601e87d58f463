import re

from markdown_it import MarkdownIt

from analyses.reporting.index_page import Entry, cards, index_page
from analyses.reporting.text import first_sentence

HOSTILE = "<script>x</script> | [a](javascript:b) `c`"
ENTRIES = [
    Entry("one", "Is it so?", f"It is {HOSTILE}: 0.5 (0.4 to 0.6). By 3 runs.", (), True),
    Entry("two", "Why?", "Do arms differ? No.", ("code: store/run.py",), False),
]


def page() -> str:
    return index_page(HOSTILE, ENTRIES, {"three": HOSTILE}, "python -m analyses studies/x")


def test_index_states_each_finding_and_what_is_stale_or_not_answered() -> None:
    text = page()
    assert "2 questions answered, 1 not." in text
    assert "[![](one/thumbnail.png)](one/index.md)" in text
    assert "two/thumbnail.png" not in text
    assert text.count("0.5 (0.4 to 0.6)") == 2
    assert text.count("By 3 runs.") == 1
    assert "**Stale**: code: store/run.py." in text
    assert text.count("Stale") == 3
    assert "* `three`: " in text
    assert "```bash\npython -m analyses studies/x\n```" in text


def test_text_of_the_data_cannot_act() -> None:
    html = MarkdownIt("commonmark").enable("table").render(page())
    assert "<script>" not in html
    assert "&lt;script&gt;x&lt;/script&gt; | [a](javascript:b) `c`" in html
    assert set(re.findall('href="([^"]*)"', html)) == {"one/index.md", "two/index.md"}
    assert html.count("<tr>") == 3


def test_cards_lead_to_their_reports_from_another_page() -> None:
    shown = cards(page(), folder="reports/x")
    assert "[![](reports/x/one/thumbnail.png)](reports/x/one/index.md)" in shown
    assert shown.splitlines()[1] == "| --- | --- |"
    assert len(shown.splitlines()) == 4
    html = MarkdownIt("commonmark").enable("table").render(shown)
    assert set(re.findall('href="([^"]*)"', html)) == {
        "reports/x/one/index.md",
        "reports/x/two/index.md",
    }


def test_index_of_nothing_says_why() -> None:
    text = index_page("x", [], {"three": "no experts"}, "c")
    assert "0 questions answered, 1 not." in text
    assert "* `three`: no experts" in text
    assert "What was found" not in text


def test_first_sentence_ends_at_a_full_stop_before_a_sentence() -> None:
    assert first_sentence("At 0.5 (e.g. so. it goes), yes. Then no.") == (
        "At 0.5 (e.g. so. it goes), yes."
    )
    assert first_sentence("Is it? Yes. And more.") == "Is it? Yes."
    assert first_sentence("No end") == "No end"
