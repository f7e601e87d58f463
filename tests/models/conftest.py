import shutil
from pathlib import Path

import numpy as np
import pytest

from models.train import main as train

WORDS = "the of and a to in he have it that for they with as not on she at by this we you do but"
SETTINGS = [
    "data.source=folder", "data.d_vocab=300", "data.n_ctx=16", "data.probe_documents=6",
    "data.sequences_per_document=2", "model.d_model=16", "model.n_heads=4", "train.n_steps=4",
    "train.batch_size=4", "train.warmup_steps=1", "train.activation_positions=0",
    "train.prediction_positions=0", "train.precision=float32", "model.n_experts=4",
]  # fmt: skip


@pytest.fixture(scope="session")
def text(tmp_path_factory) -> Path:
    """Forty documents of random words in two domains."""
    folder = tmp_path_factory.mktemp("text")
    rng = np.random.default_rng(0)
    for domain in ("prose", "verse"):
        (folder / domain).mkdir()
        for i in range(20):
            words = rng.choice(WORDS.split(), 400)
            (folder / domain / f"{i}.txt").write_text(" ".join(words), encoding="utf-8")
    return folder


@pytest.fixture(scope="session")
def trained(text: Path, tmp_path_factory) -> Path:
    """Three trained runs; the weights of all but `switch-seed1` were kept."""
    out = tmp_path_factory.mktemp("studies")
    settings = [f"--set={setting}" for setting in (*SETTINGS, f"data.path={text}")]
    for name, keep in (("switch-seed0", True), ("switch-seed1", False), ("dense-seed0", True)):
        more = ["--keep-weights"] if keep else []
        assert train(["quick", "--out", str(out), "--run", name, *settings, *more]) == 0
    return out / "quick"


@pytest.fixture
def study(trained: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(trained, tmp_path / "quick"))
