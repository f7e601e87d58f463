"""The page of a synthetic study in headless Chromium: weight, time to load, frames per second.

    python tests/benchmarks/token_explorer.py [FOLDER] [--tokens 20000] [--steps 24]

Two dense and four MoE runs with two MoE layers of 8 experts. Needs `pip install -e ".[dev]"`
and chromium. Three pages: documents of 250 tokens, the same with a script a document beside the
page, and one document of all tokens, which is the hardest to slide through.
"""

import argparse
import shutil
import tempfile
import time
from pathlib import Path

import numpy as np
import xarray as xr
from playwright.sync_api import Page, sync_playwright
from rich.console import Console
from rich.table import Table

from analyses.reporting.explorer.contents import contents, documents
from analyses.reporting.explorer.files import EMBEDDED, PAGE, explorer_files

ARMS = ("dense", "dense", "hash", "hash", "switch", "switch")
N_POS = 125

SLIDE = """async () => {
  const slider = document.getElementById("step");
  const frames = [];
  const until = performance.now() + 3000;
  for (let i = 0; performance.now() < until; i++) {
    slider.value = i % (Number(slider.max) + 1);
    slider.dispatchEvent(new Event("input"));
    frames.push(await new Promise(requestAnimationFrame));
  }
  const lengths = frames.slice(1).map((end, i) => end - frames[i]).sort((a, b) => a - b);
  const rate = 1000 * lengths.length / (frames.at(-1) - frames[0]);
  return [rate, lengths[Math.floor(lengths.length * 0.95)]];
}"""


def write_page(
    folder: Path, *, n_tokens: int, n_steps: int, per_document: int, embedded: int
) -> None:
    """A page of random numbers."""
    rng, n_sequences = np.random.default_rng(0), n_tokens // N_POS
    shape = (len(ARMS), n_steps, n_sequences, N_POS)
    runs = [f"{arm}-seed{i}" for i, arm in enumerate(ARMS)]
    token = rng.integers(0, 4096, (n_sequences, N_POS + 1))
    names = np.array(
        [f"d{i * N_POS // per_document:04d}" for i in range(n_sequences)], dtype=object
    )
    probe_set = xr.Dataset(
        {
            "token": (("sequence", "pos"), token[:, :-1]),
            "target": (("sequence", "pos"), token[:, 1:]),
            "vocabulary": ("d_vocab", np.array([f" w{i}" for i in range(4096)], dtype=object)),
            **dict.fromkeys(("document", "work", "domain"), ("sequence", names)),
            "ngram_surprisal": (
                ("order", "sequence", "pos"), rng.gamma(2, 2, (5, n_sequences, N_POS)),
            ),
        },
        {"order": range(1, 6)},
    )  # fmt: skip
    loss = xr.DataArray(
        rng.gamma(2, 2, shape).astype("float32"),
        dims=("run", "step", "sequence", "pos"),
        coords={"run": runs, "step": [0, *range(1, n_steps)], "arm": ("run", list(ARMS))},
    )
    expert_index = xr.DataArray(
        rng.integers(0, 8, (4, n_steps, 2, n_sequences, N_POS, 1)),
        dims=("run", "step", "layer", "sequence", "pos", "top_k"),
        coords={"run": runs[2:], "layer": [1, 3]},
    )
    means = [loss.values[:, :, s].mean(axis=(2, 3)) for s in documents(probe_set).sequences]
    found = contents(
        loss, expert_index, probe_set,
        study="synthetic", n_experts=8, document_mean=np.stack(means, axis=2), loss_scale=9,
    )  # fmt: skip
    for name, content in explorer_files(found, embedded=embedded):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)


def measured(page: Page, folder: Path) -> list[str]:
    """Weight of the page and of all files, seconds to load, frames a second in each view."""
    started = time.perf_counter()
    page.goto((folder / PAGE).resolve().as_uri())
    page.wait_for_selector("body[data-ready]")
    loaded = time.perf_counter() - started
    page.wait_for_timeout(2000)
    row = []
    for view in ("loss", "difference", "expert"):
        page.keyboard.press({"loss": "1", "difference": "2", "expert": "3"}[view])
        page.wait_for_timeout(500)
        rate, slow = page.evaluate(SLIDE)
        row.append(f"{rate:.0f} ({slow:.0f} ms)")
    weight = (folder / PAGE).stat().st_size
    total = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    return [f"{weight / 1e6:.2f}", f"{total / 1e6:.2f}", f"{loaded:.2f}", *row]


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, nargs="?")
    parser.add_argument("--tokens", type=int, default=20_000)
    parser.add_argument("--steps", type=int, default=24)
    arguments = parser.parse_args()
    table = Table("page", "MB", "MB in all", "loads in s", "loss", "difference", "expert",
                  title="frames per second (95% of frames are shorter than)")  # fmt: skip
    folder = arguments.folder or Path(tempfile.mkdtemp())
    sizes = {"n_tokens": arguments.tokens, "n_steps": arguments.steps}
    pages = {
        "documents of 250 tokens": (250, EMBEDDED),
        "the same, beside the page": (250, 0),
        "one document": (arguments.tokens, EMBEDDED),
    }
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=shutil.which("chromium"), args=["--no-sandbox"]
        )
        page = browser.new_page(viewport={"width": 1440, "height": 900})
        for name, (per_document, embedded) in pages.items():
            target = folder / name.replace(" ", "-").replace(",", "")
            write_page(target, per_document=per_document, embedded=embedded, **sizes)
            table.add_row(name, *measured(page, target))
        browser.close()
    Console().print(table)


if __name__ == "__main__":
    main()
