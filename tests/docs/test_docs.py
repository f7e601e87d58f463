"""What the pages tell people to type exists: commands, options, settings, imports; code runs."""

import ast
import contextlib
import importlib
import importlib.util
import re
import runpy
import shlex
import tomllib
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import xarray as xr

from models.config import PRESETS
from models.settings import override
from models.train import main as train

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "docs/index.md"]
PAGES += sorted((ROOT / "docs/how-to").glob("*.md"))
TUTORIAL = ROOT / "docs/tutorial/first-study.md"
NEEDS_A_NETWORK = "boot_transformers"
TINY = [
    "data.source=folder", "data.d_vocab=270", "data.n_ctx=16", "data.probe_documents=6",
    "model.d_model=16", "model.n_heads=4", "model.n_experts=4", "train.n_steps=2",
    "train.batch_size=4", "train.activation_positions=0", "train.prediction_positions=0",
]  # fmt: skip


def fences(page: Path, *languages: str) -> list[str]:
    """Contents of the fences of some languages."""
    found = re.findall(
        r"^```([^\n]*)\n(.*?)^```$", page.read_text("utf-8"), re.DOTALL | re.MULTILINE
    )
    return [text for language, text in found if language.strip() in languages]


def commands(page: Path) -> Iterator[list[str]]:
    """Words of every command line, comments left out."""
    shells = fences(page, "sh", "bash", "console")
    if page == TUTORIAL:
        cells = fences(page, "{code-cell} python3")
        shells = [cell.partition("\n")[2] for cell in cells if cell.startswith("%%bash")]
    for fence in shells:
        for line in fence.replace("\\\n", " ").splitlines():
            if words := shlex.split(line.partition(" | ")[0], comments=True):
                yield words


COMMANDS = [(page.name, words) for page in [*PAGES, TUTORIAL] for words in commands(page)]
CODE = [(page.name, text) for page in PAGES for text in fences(page, "python")]
RUN = [words for _, words in COMMANDS if words[:2] == ["python", "-m"]]


def test_pages_have_commands_and_code():
    assert len(RUN) > 10
    assert len(CODE) > 5


@pytest.mark.parametrize("words", RUN, ids=" ".join)
def test_a_command_and_its_options_exist(words, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    name = words[2]
    spec = importlib.util.find_spec(name)
    assert spec is not None, name
    name += ".__main__" if spec.submodule_search_locations else ""
    with contextlib.suppress(SystemExit):
        importlib.import_module(name).main(["--help"])
    shown = capsys.readouterr().out
    for option in (word for word in words[3:] if word.startswith("--")):
        assert re.search(rf"{option}\b", shown), option


@pytest.mark.parametrize(
    "words", [words for words in RUN if words[2] == "models.train"], ids=" ".join
)
def test_a_study_and_its_settings_exist(words):
    if words[3] == "sixteen":  # the how-to has just added it
        return
    settings = [words[i + 1] for i, word in enumerate(words) if word == "--set"]
    study = override(PRESETS[words[3]](), settings)
    if "--run" in words:
        assert words[words.index("--run") + 1] in {run.name for run in study.runs}


def test_what_else_is_typed_exists():
    makefile = (ROOT / "Makefile").read_text("utf-8")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    for page, words in COMMANDS:
        if words[0] == "make":
            assert re.search(rf"^{words[1]}:", makefile, re.MULTILINE), (page, words)
        for extra in re.findall(r"^\.\[(.*)\]$", words[-1]):
            assert set(extra.split(",")) <= set(project["optional-dependencies"]), (page, words)


@pytest.mark.parametrize(("page", "text"), CODE)
def test_code_compiles_and_its_imports_resolve(page, text):
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.ImportFrom):
            module = importlib.import_module(str(node.module))
            for name in node.names:
                assert hasattr(module, name.name), f"{page}: {node.module}.{name.name}"
        elif isinstance(node, ast.Import):
            for name in node.names:
                importlib.import_module(name.name)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A folder with a tiny study called `quick`."""
    folder = tmp_path_factory.mktemp("user")
    rng = np.random.default_rng(0)
    for i in range(20):
        path = folder / "texts" / "verse" / f"{i}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(
            " ".join(rng.choice(["the", "of", "and", "sea", "sky", "ship", "he", "saw"], 400)),
            "utf-8",
        )
    settings = [f"--set={setting}" for setting in (*TINY, f"data.path={folder / 'texts'}")]
    for run in ("dense-seed0", "switch-seed0"):
        arguments = ["quick", "--out", str(folder / "studies"), "--run", run, *settings]
        assert train(arguments) == 0
    return folder


def test_the_readme_reads_a_store_as_it_says(folder, monkeypatch):
    monkeypatch.chdir(folder)
    runnable = [t for t in fences(ROOT / "README.md", "python") if NEEDS_A_NETWORK not in t]
    seen: dict = {}
    for text in runnable:
        exec(compile(text, "README.md", "exec"), seen)
    assert seen["loss"].dims == ("run", "step", "sequence", "pos")
    assert bool(np.isfinite(seen["losses"]["loss"].isel(step=-1)).all())


def test_the_probe_of_the_how_to_records_lengths():
    seen: dict = {}
    *setup, last = fences(ROOT / "docs/how-to/add-a-probe.md", "python")
    for text in setup:
        exec(compile(text, "add-a-probe.md", "exec"), seen)
    *before, shown = last.strip().splitlines()
    exec(compile("\n".join([*before, f"norm = {shown}"]), "add-a-probe.md", "exec"), seen)
    assert seen["norm"]["norm"].dims == ("layer", "sequence", "pos")
    assert seen["norm"].sizes == {"layer": 2, "sequence": 3, "pos": 8}
    _, cache = seen["model"].run_with_cache(seen["token"])
    direct = cache["blocks.1.hook_resid_post"].norm(dim=-1).detach().numpy()
    np.testing.assert_allclose(seen["norm"]["norm"].sel(layer=1), direct, rtol=1e-5)


def test_the_study_of_the_how_to_has_the_runs_it_says():
    seen: dict = {}
    exec(fences(ROOT / "docs/how-to/own-model.md", "python")[0], seen)
    runs = [run.name for run in seen["sixteen"]().runs]
    assert runs == [f"{arm}-seed{i}" for arm in ("dense", "switch_16") for i in range(3)]


def test_the_analysis_of_the_how_to_writes_a_report_of_mean_losses(folder, tmp_path, capsys):
    path = tmp_path / "mean_loss.py"
    path.write_text(fences(ROOT / "docs/how-to/add-an-analysis.md", "python")[0], "utf-8")
    analysis = SimpleNamespace(**runpy.run_path(str(path)))
    study = folder / "studies/quick"
    assert analysis.main([str(study), "--report", str(tmp_path)]) == 0
    page = (tmp_path / "mean_loss/index.md").read_text("utf-8")
    table = (tmp_path / "mean_loss/mean_loss.csv").read_text("utf-8").splitlines()
    columns = table[0].split(",")
    rows = [dict(zip(columns, line.split(","), strict=True)) for line in table[1:]]
    best = min(rows, key=lambda row: float(row["loss_mean"]))
    assert f"{best['run']} has the lowest mean loss, {float(best['loss_mean']):.3f} nats" in page
    for row in rows:
        losses = xr.open_zarr(study / f"{row['run']}.zarr", group="losses", chunks=None)["loss"]
        mean = float(losses.isel(step=-1).mean())
        assert float(row["loss_mean"]) == pytest.approx(mean, abs=1e-6)
        assert float(row["loss_mean_ci_lower"]) < mean < float(row["loss_mean_ci_upper"])


def extension(name: str) -> SimpleNamespace:
    """A module of docs/_ext that needs no Sphinx."""
    return SimpleNamespace(**runpy.run_path(str(ROOT / f"docs/_ext/{name}.py")))


@pytest.mark.parametrize(
    "page",
    [
        '<script src="https://cdn.example/x.js"></script>',
        "<img src='//images.example/x.png'>",
        '<link rel="stylesheet" href="http://fonts.example/x.css">',
        '<link rel="preconnect" href="https://fonts.example">',
        "<style>@import 'https://fonts.example/x.css';</style>",
        '<p style="background: url(https://images.example/x.png)">',
    ],
)
def test_a_page_that_loads_from_the_network_is_found(page):
    assert len(extension("offline").loads(page)) == 1


def test_links_and_local_files_are_no_loads():
    page = (
        '<a href="https://zarr.dev">Zarr</a><img src="../x.png"><img src="data:image/png,A">'
        '<link rel="canonical" href="https://example"><link rel="stylesheet" href="x.css">'
        "<code>&lt;script src=&quot;https://cdn.example&quot;&gt;</code>"
    )
    assert extension("offline").loads(page) == []


def test_links_to_what_the_site_does_not_hold_are_found(tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub/index.html").write_text('<h1 id="top-of-it">x</h1>', "utf-8")
    (tmp_path / "a b.png").write_bytes(b"")
    (tmp_path / "index.html").write_text(
        '<a href="sub/#top-of-it"></a><a href="#"></a><a href="https://zarr.dev/x"></a>'
        '<img src="a%20b.png"><img src="data:image/png,A">'
        '<a href="sub/index.html#gone"></a><a href="#nowhere"></a><img src="c.png">',
        "utf-8",
    )
    (tmp_path / "_static").mkdir()
    (tmp_path / "_static/theme.html").write_text('<a href="{{ later }}"></a>', "utf-8")
    broken = extension("links").broken_links(tmp_path)
    assert [target for _, target in broken] == ["#nowhere", "c.png", "sub/index.html#gone"]
    assert {page for page, _ in broken} == {Path("index.html")}


def test_a_formula_of_a_docstring_is_shown_as_it_stands_and_its_references_are_listed():
    shown = extension("docstrings").module_as_rst(
        "What is |r| [1]_?\n\nWith `x (a,\nb)` given\n\n    r² = a_i * b\n\n"
        "References\n----------\n.. [1] Fisher (1921),\n   Metron.\n"
    )
    assert r"What is \|r\| [1]?" in shown
    assert "``x (a, b)``" in shown
    assert ".. code-block:: text\n\n    r² = a_i * b\n" in shown
    assert "1. Fisher (1921), Metron." in shown
