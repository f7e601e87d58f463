"""The token explorer as a reader uses it, in headless Chromium."""

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import parse_qs

import numpy as np
import pytest
import xarray as xr
from scipy import stats

from analyses.reporting.explorer.contents import contents, documents
from analyses.reporting.explorer.files import EMBEDDED, PAGE, explorer_files

playwright = pytest.importorskip(
    "playwright.sync_api", reason='needs playwright: pip install -e ".[dev]"'
)
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
if CHROMIUM is None:
    pytest.skip("needs chromium: apt-get install chromium", allow_module_level=True)

ARMS = ("dense", "dense", "dense", "switch", "switch", "switch", "hash")
STEPS = (0, 1, 10, 100)
N_POS = 8
MINUS = "\N{MINUS SIGN}"
HOSTILE = "<script>window.hacked = 1</script>"
NAMES = ("plain", "<img src=x onerror='window.hacked = 1'>", "last")
VOCABULARY = (" the", "cat", HOSTILE, "\n", " </script>", " &amp;", "é", "\u202e")


@pytest.fixture(scope="module")
def made() -> SimpleNamespace:
    """Three documents of two stretches, seven runs of three arms, two MoE layers."""
    rng = np.random.default_rng(0)
    token = rng.integers(0, len(VOCABULARY), (6, N_POS + 1))
    token[0, :3] = 0, 2, 3
    dims = ("sequence", "pos")
    names = np.repeat(np.array(NAMES, dtype=object), 2)
    loss = rng.gamma(4.0, 1.0, (1, 4, 6, N_POS)) + 0.3 * rng.standard_normal((7, 4, 6, N_POS))
    loss = np.abs(loss)
    loss[3:6, 3, 5] += 2  # at last, switch is worse in half of the last document
    runs = [f"{arm}-seed{i}" for i, arm in enumerate(ARMS)]
    return SimpleNamespace(
        token=token,
        loss=xr.DataArray(
            loss,
            dims=("run", "step", *dims),
            coords={"run": runs, "step": list(STEPS), "arm": ("run", list(ARMS))},
        ),
        expert_index=xr.DataArray(
            rng.integers(0, 4, (4, 4, 2, 6, N_POS, 1)),
            dims=("run", "step", "layer", *dims, "top_k"),
            coords={"run": runs[3:], "layer": [1, 3]},
        ),
        probe_set=xr.Dataset(
            {
                "token": (dims, token[:, :-1]),
                "target": (dims, token[:, 1:]),
                "vocabulary": ("d_vocab", np.array(VOCABULARY, dtype=object)),
                "ngram_surprisal": (("order", *dims), rng.gamma(2.0, 2.0, (2, 6, N_POS))),
                **dict.fromkeys(("document", "work", "domain"), ("sequence", names)),
            },
            {"order": [1, 2]},
        ),
    )


def _write(made: SimpleNamespace, folder: Path, *, embedded: int) -> str:
    means = [
        made.loss.values[:, :, s].mean(axis=(2, 3)) for s in documents(made.probe_set).sequences
    ]
    found = contents(
        made.loss, made.expert_index, made.probe_set,
        study="a study", n_experts=4, document_mean=np.stack(means, axis=2), loss_scale=8.0,
    )  # fmt: skip
    for name, content in explorer_files(found, embedded=embedded):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(content)
    return (folder / PAGE).as_uri()


@pytest.fixture(scope="module")
def address(made: SimpleNamespace, tmp_path_factory: pytest.TempPathFactory) -> str:
    return _write(made, tmp_path_factory.mktemp("page"), embedded=EMBEDDED)


@pytest.fixture(scope="module")
def browser() -> Iterator["playwright.Browser"]:
    # Chromium has no sandbox for root
    arguments = ["--no-sandbox"] if os.geteuid() == 0 else []
    with playwright.sync_playwright() as started:
        opened = started.chromium.launch(executable_path=CHROMIUM, args=arguments)
        yield opened
        opened.close()


@pytest.fixture
def visit(browser: "playwright.Browser") -> Iterator[Callable[..., "playwright.Page"]]:
    """Opens an address; at the end no error must be on the console, nothing asked of a network."""
    context, problems = browser.new_context(viewport={"width": 1400, "height": 900}), []

    def visit(address: str) -> "playwright.Page":
        page = context.new_page()
        page.set_default_timeout(30_000)
        page.on("console", lambda said: problems.append(said.text))
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on(
            "request",
            lambda asked: (
                problems.append(asked.url) if not asked.url.startswith(("file:", "data:")) else None
            ),
        )
        page.goto(address)
        page.wait_for_selector("body[data-ready]")
        return page

    yield visit
    context.close()
    assert not problems


def _word(page: "playwright.Page", word: int) -> "playwright.Locator":
    return page.locator(f"#text [data-word='{word}']")


def _link(page: "playwright.Page") -> dict[str, str]:
    page.wait_for_timeout(400)
    return {key: value[0] for key, value in parse_qs(page.url.split("#", 1)[1]).items()}


def test_text_is_shown_as_it_is_and_runs_nothing(made, address, visit) -> None:
    page = visit(address)
    for number, name in enumerate(NAMES):
        playwright.expect(page.locator("#title")).to_have_text(name)
        shown = page.locator("#text p").evaluate_all("all => all.map((p) => p.textContent)")
        words = made.token[2 * number : 2 * number + 2]
        assert shown == ["".join(VOCABULARY[i] for i in sequence) for sequence in words]
        page.keyboard.press("j")
    assert page.evaluate("window.hacked") is None
    assert page.locator("main img, main script").count() == 0


def test_slider_and_arrows_move_the_step(address, visit) -> None:
    page = visit(f"{address}#view=loss&a=arm:dense&step=0")
    before = _word(page, 3).get_attribute("class")
    page.locator("#step").fill("3")
    playwright.expect(page.locator("#now")).to_have_text("step 100")
    colors = {before}
    for key, step in (("ArrowLeft", 10), ("ArrowLeft", 1), ("Home", 0), ("End", 100)):
        page.keyboard.press(key)
        playwright.expect(page.locator("#now")).to_have_text(f"step {step}")
        colors.add(_word(page, 3).get_attribute("class"))
    assert len(colors) > 1
    assert _link(page)["step"] == "100"


def test_hover_shows_what_every_run_made_of_the_token(made, address, visit) -> None:
    page = visit(f"{address}#view=loss&a=arm:dense&step=10")
    chosen = page.locator("aside h2").text_content()
    _word(page, 1).hover()
    aside = page.locator("aside")
    playwright.expect(aside.locator("h2")).to_have_text(HOSTILE.replace(" ", "␣"))
    losses = made.loss.values[:, 2, 0, 0]
    text = aside.text_content()
    for loss in losses[:6]:
        assert f"{loss:.2f}" in text
    for surprisal in made.probe_set["ngram_surprisal"].values[:, 0, 0]:
        assert f"{surprisal:.2f}" in text
    experts = made.expert_index.values[:3, 2, :, 0, 1, 0]
    rows = aside.locator("table").last.locator("tbody tr").all_text_contents()
    for layer, row in enumerate(rows):
        assert " ".join(map(str, experts[:, layer])) in row
    assert aside.locator("svg path").count() == len(ARMS)
    page.locator("#title").hover()
    playwright.expect(aside.locator("h2")).to_have_text(chosen)


def test_link_restores_what_was_shown(address, visit) -> None:
    page = visit(address)
    page.locator("#views span", has_text="Difference").click()
    page.select_option("#b", "run:hash-seed6")
    page.locator("#documents button").nth(1).click()
    _word(page, 12).click()
    page.keyboard.press("ArrowLeft")
    link = _link(page)
    assert link["view"] == "difference"
    assert link["b"] == "run:hash-seed6"
    assert (link["document"], link["step"], link["token"]) == (NAMES[1], "10", "1.3")
    other = visit(page.url)
    assert other.locator("#title").text_content() == NAMES[1]
    assert other.locator("#now").text_content() == "step 10"
    assert other.locator("[data-chosen]").get_attribute("data-word") == "12"
    assert other.locator("aside").text_content() == page.locator("aside").text_content()
    # in a page that is open, too
    other.evaluate("location.hash = 'view=expert&layer=1&document=last&step=0'")
    playwright.expect(other.locator("#title")).to_have_text("last")
    assert other.locator("body").get_attribute("data-view") == "expert"


def test_difference_is_welchs_t_over_runs(made, address, visit) -> None:
    page = visit(
        f"{address}#view=difference&a=arm:switch&b=arm:dense&measure=t&step=100&document=last"
    )
    at = made.loss.values[:, 3, 4:].reshape(len(ARMS), -1)
    test = stats.ttest_ind(at[3:6], at[:3], equal_var=False)
    limit = stats.t.ppf(0.975, test.df)
    sure = np.abs(test.statistic / limit - 1) > 0.04
    for token in np.flatnonzero(sure)[:6].tolist():
        word = _word(page, token // N_POS * (N_POS + 1) + token % N_POS + 1)
        is_beyond = abs(test.statistic[token]) > limit[token]
        assert ("beyond" in str(word.get_attribute("class"))) == is_beyond
        word.click()
        verdict = str(page.locator("aside .verdict").text_content()).replace(MINUS, "-")
        said = float(verdict.split("t = ")[1].split(":")[0])
        assert said == pytest.approx(test.statistic[token], rel=0.03, abs=0.06)
        assert ("beyond noise" in verdict) == is_beyond
    assert "beyond noise" in str(page.locator("#legend").text_content())
    page.select_option("#b", "run:hash-seed6")
    playwright.expect(page.locator("#legend")).to_contain_text("Noise of seeds is not known")


def test_only_what_is_beyond_noise_keeps_its_colour(address, visit) -> None:
    page = visit(f"{address}#view=difference&a=arm:switch&b=arm:dense&step=100&document=last")
    beyond = page.locator("#text .abeyond, #text .bbeyond").count()
    assert 0 < beyond < 2 * N_POS
    page.select_option("#measure", "beyond")
    playwright.expect(page.locator("#text .faded")).to_have_count(2 * N_POS - beyond)
    assert page.locator("#text .abeyond, #text .bbeyond").count() == beyond


def test_tokens_are_coloured_by_the_expert_that_read_them(made, address, visit) -> None:
    page = visit(f"{address}#view=expert&run=run:switch-seed3&layer=3&step=1")
    experts = made.expert_index.values[0, 1, 1, 0, :, 0]
    for place, expert in enumerate(experts.tolist()):
        assert _word(page, place).get_attribute("class") == f"expert{expert}"
    # the last of a stretch is predicted and never read
    assert _word(page, N_POS).get_attribute("class") in (None, "none")
    one = int(experts[0])
    page.locator(f"#legend [data-expert='{one}']").click()
    taken = (made.expert_index.values[0, 1, 1, :2, :, 0] == one).sum()
    playwright.expect(page.locator(f"#text .expert{one}")).to_have_count(int(taken))
    assert _link(page)["expert"] == str(one)


def test_documents_and_tokens_are_sorted_by_difference(made, address, visit) -> None:
    page = visit(f"{address}#view=difference&a=arm:dense&b=arm:switch&step=100")
    page.select_option("#sort", "low")
    playwright.expect(page.locator("#documents b").first).to_have_text("last")
    at = made.loss.values[:, 3]
    difference = at[:3].mean(axis=0) - at[3:6].mean(axis=0)
    means = difference.reshape(3, -1).mean(axis=1)
    order = [NAMES[i] for i in np.argsort(means)]
    assert page.locator("#documents b").all_text_contents() == order
    page.locator("#tab-tokens").click()
    page.select_option("#scope", "all")
    page.select_option("#token-sort", "size")
    largest, second = np.argsort(-np.abs(difference).ravel())[:2]
    playwright.expect(page.locator("#tokens li")).to_have_count(6 * N_POS)
    value = page.locator("#tokens var").first.text_content()
    assert float(str(value).replace(MINUS, "-")) == pytest.approx(
        difference.ravel()[largest], abs=0.01
    )
    page.locator("#tokens button").first.click()
    for token in (largest, second):
        sequence, pos = divmod(int(token), N_POS)
        playwright.expect(page.locator("#title")).to_have_text(NAMES[sequence // 2])
        assert _link(page)["token"] == f"{sequence % 2}.{pos + 1}"
        page.keyboard.press("n")


def test_keys_choose_view_token_document_theme_and_help(address, visit) -> None:
    page = visit(f"{address}#token=0.1")
    for key, view in (("1", "loss"), ("3", "expert"), ("2", "difference")):
        page.keyboard.press(key)
        playwright.expect(page.locator("body")).to_have_attribute("data-view", view)
    page.keyboard.press(".")
    assert page.locator("[data-chosen]").get_attribute("data-word") == "2"
    page.keyboard.press(",")
    assert page.locator("[data-chosen]").get_attribute("data-word") == "1"
    light = page.evaluate("getComputedStyle(document.documentElement).backgroundColor")
    page.keyboard.press("d")
    dark = page.evaluate("getComputedStyle(document.documentElement).backgroundColor")
    assert light != dark
    page.keyboard.press("?")
    assert page.locator("#helper").is_visible()
    page.keyboard.press("Escape")
    page.keyboard.press("Home")
    page.keyboard.press(" ")
    playwright.expect(page.locator("#now")).to_have_text("step 100")


def test_press_on_the_curves_goes_to_the_step(address, visit) -> None:
    page = visit(f"{address}#view=loss&step=100")
    box = page.locator("aside svg").bounding_box()
    page.mouse.click(box["x"] + 30, box["y"] + box["height"] / 2)
    playwright.expect(page.locator("#now")).to_have_text("step 0")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_ink_can_be_read_on_every_colour(browser, address, scheme: str) -> None:
    page = browser.new_page(color_scheme=scheme)
    page.goto(f"{address}#view=loss")
    page.wait_for_selector("body[data-ready]")
    contrast = page.evaluate(
        """() => {
          const canvas = new OffscreenCanvas(1, 1).getContext("2d");
          const luminance = (...colors) => {
            for (const color of colors) { canvas.fillStyle = color; canvas.fillRect(0, 0, 1, 1); }
            const [r, g, b] = [...canvas.getImageData(0, 0, 1, 1).data].map((value) => {
              const x = value / 255;
              return x <= 0.04045 ? x / 12.92 : ((x + 0.055) / 1.055) ** 2.4;
            });
            return 0.2126 * r + 0.7152 * g + 0.0722 * b;
          };
          const paper = getComputedStyle(document.documentElement).backgroundColor;
          const ink = luminance(getComputedStyle(document.body).color);
          const made = document.createElement("span");
          document.body.append(made);
          const experts = Array.from({length: 9}, (_, i) => `expert${i}`);
          const names = ["loss16", "a16", "b16", ...experts];
          return Math.min(...names.map((name) => {
            made.className = name;
            const back = luminance(paper, getComputedStyle(made).backgroundColor);
            return (Math.max(ink, back) + 0.05) / (Math.min(ink, back) + 0.05);
          }));
        }"""
    )
    page.close()
    assert contrast >= 4.5


def test_large_study_reads_documents_from_beside_the_page(made, visit, tmp_path: Path) -> None:
    address = _write(made, tmp_path, embedded=0)
    page = visit(address)
    page.keyboard.press("j")
    playwright.expect(page.locator("#title")).to_have_text(NAMES[1])
    assert page.locator("#text span").count() == 2 * (N_POS + 1)


def test_missing_document_is_said_and_the_page_goes_on(made, browser, tmp_path: Path) -> None:
    address = _write(made, tmp_path, embedded=0)
    (tmp_path / "documents" / "00001.js").rename(tmp_path / "documents" / "gone")
    page = browser.new_page()
    page.goto(address)
    page.wait_for_selector("body[data-ready]")
    page.locator("#documents button").nth(1).click()
    playwright.expect(page.locator("#text")).to_contain_text("documents/00001.js cannot be read")
    page.locator("#documents button").nth(2).click()
    playwright.expect(page.locator("#title")).to_have_text(NAMES[2])
    page.close()
