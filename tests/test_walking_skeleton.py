"""The whole arrow on the built-in text, as a user runs it: train, watch, store, ask, read."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import scipy.stats
import xarray as xr

from models.config import laptop, quick, seeds
from models.data import count_windows

SETTINGS = ["train.n_steps=8", "train.observe_every=4", "train.warmup_steps=2"]


def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])}
    return subprocess.run(
        [sys.executable, "-m", *arguments],
        cwd=folder, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A folder with the `quick` study, trained for a few steps."""
    folder = tmp_path_factory.mktemp("user")
    settings = [part for setting in SETTINGS for part in ("--set", setting)]
    trained = run(folder, "models.train", "quick", *settings)
    assert trained.returncode == 0, trained.stderr
    return folder


def losses(folder: Path, name: str) -> xr.DataArray:
    """A run's losses, by plain xarray."""
    return xr.open_zarr(folder / f"studies/quick/{name}.zarr", group="losses", chunks=None)["loss"]


def test_every_run_of_the_quick_study_is_stored_and_opened_by_plain_xarray(folder):
    runs = sorted(path.stem for path in folder.glob("studies/quick/*.zarr"))
    assert runs == ["dense-seed0", "dense-seed1", "dense_120-seed0", "switch-seed0", "switch-seed1"]
    for name in runs:
        assert losses(folder, name)["step"].values.tolist() == [0, 1, 2, 4, 8]
        assert bool(np.isfinite(losses(folder, name)).all())


def test_the_built_in_probe_set_covers_all_domains_with_at_least_sixty_documents(folder):
    store = folder / "studies/quick/dense-seed0.zarr"
    probe_set = xr.open_zarr(store, group="probe_set", chunks=None)
    assert len(np.unique(probe_set["document"])) >= 60
    domains, counts = np.unique(probe_set["domain"], return_counts=True)
    assert len(domains) == 7
    assert counts.min() >= 10
    surprisal = probe_set["ngram_surprisal"].mean(["sequence", "pos"])
    assert bool((surprisal.diff("order")[:2] < 0).all())  # orders 1 to 3 know ever more


@pytest.mark.parametrize("preset", [quick, seeds, laptop])
def test_the_built_in_text_is_enough_for_the_presets(preset, folder):
    meta = json.loads((folder / "studies/quick/data/meta.json").read_text(encoding="utf-8"))
    cfg = preset()
    available = count_windows(meta["attrs"]["n_train_tokens"], n_ctx=cfg.data.n_ctx)
    assert cfg.train.n_sequences < 0.97 * available * cfg.data.max_epochs


def test_r2_over_time_answers_from_the_newest_study(folder):
    asked = run(folder, "analyses.r2_over_time")
    assert asked.returncode == 0, asked.stderr
    assert "quick" in asked.stdout + asked.stderr
    report = folder / "docs/reports/quick/r2_over_time"
    assert (report / "index.md").exists()
    result = json.loads((report / "results.json").read_text(encoding="utf-8"))
    data, pairs = result["data_vars"], result["coords"]["pair"]["data"]
    assert len(pairs) == 10
    pair = pairs.index("dense-seed0 \N{MULTIPLICATION SIGN} switch-seed1")
    one, other = (losses(folder, name).isel(step=-1) for name in ("dense-seed0", "switch-seed1"))
    r = scipy.stats.pearsonr(one.values.ravel(), other.values.ravel()).statistic
    assert data["pair_r2"]["data"][pair][-1] == pytest.approx(r**2, abs=1e-6)
    low, high = data["pair_r2_ci"]["data"][pair][-1]
    assert 0 <= low < r**2 < high <= 1


def test_expert_specialization_answers_from_a_named_study(folder):
    asked = run(folder, "analyses.expert_specialization", "studies/quick", "--n-resamples", "20")
    assert asked.returncode == 0, asked.stderr
    report = folder / "docs/reports/quick/expert_specialization"
    assert (report / "index.md").exists()
    assert list(report.glob("*.png"))
    assert list(report.glob("*.svg"))


def test_a_second_call_trains_nothing(folder):
    settings = [part for setting in SETTINGS for part in ("--set", setting)]
    again = run(folder, "models.train", "quick", *settings)
    assert again.returncode == 0
    assert again.stdout.count("already finished") == 5


@pytest.mark.parametrize("analysis", ["r2_over_time", "expert_specialization"])
def test_without_a_study_the_remedy_is_named(analysis, tmp_path):
    asked = run(tmp_path, f"analyses.{analysis}")
    assert asked.returncode == 2
    assert "models.train quick" in asked.stderr
    assert "Traceback" not in asked.stderr
