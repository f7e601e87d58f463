"""What watching costs: an observation beside the bare forward pass over the probe set.

    python tests/benchmarks/watching.py [--size quick|wide] [--rounds 7]

Rounds alternate between the bare pass, the pass with probes, the write and a training step, so that
a busy machine slows them alike; figures are medians over rounds of the ratio to the bare pass.
`wide` is the reference study's mixture of experts with two layers. Training waits for the pass with
probes, not for the write. From pass, write and step follows how long a run of the reference study
is watched. Exits with 1 if the pass with probes takes more than 1.15 times as long as the bare one,
or watching more than 3% of training.
"""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import argparse
import statistics
import tempfile
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import xarray as xr
from rich.console import Console
from rich.table import Table
from sizes import seconds, sizes, trainer_of

from models.config import ModelConfig, RunConfig, StudyConfig, quick, reference
from models.memory import keep_freed_memory
from models.training import probes_of
from models.transformer import Transformer
from probes.base import n_passes, observe
from store.run import Run

PROMISED = 1.15
PROMISED_SHARE = 0.03  # of training time, under the reference study's schedule


class Setting(NamedTuple):
    """A model, how it is watched, and on how many sequences."""

    study: StudyConfig
    model: ModelConfig
    n_sequences: int


def setting_of(size: str) -> Setting:
    _, moe, _ = sizes(size)
    return Setting(quick(), moe, 160) if size == "quick" else Setting(reference(), moe, 32)


def measured(setting: Setting, folder: Path, rounds: int) -> dict[str, list[tuple[float, float]]]:
    """Seconds of each part of an observation, a round each."""
    cfg = setting.model
    model = Transformer(cfg).eval()
    text = torch.randint(0, cfg.d_vocab, (setting.n_sequences, cfg.n_ctx + 1))
    token, target = text[:, :-1], text[:, 1:]
    probes = probes_of(setting.study, RunConfig("switch", 0, cfg), target)
    seen = observe(model, token, probes)
    run = Run.create(
        folder / "run.zarr", xr.Dataset({"token": (("sequence", "pos"), token.int().numpy())}),
        seen, steps=np.arange(rounds + 1), training_steps=rounds, attrs={}, coordinates={},
    )  # fmt: skip

    def bare() -> None:
        with torch.no_grad():
            for batch in token.tensor_split(n_passes(*token.shape)):
                model(batch)

    def watched() -> None:
        seen.update(observe(model, token, probes))

    def write(step: int) -> None:
        run.write(step, seen)
        run.commit(step)

    trainer = trainer_of(RunConfig("switch", 0, cfg), batch_size=reference().train.batch_size)
    parts = ("bare", "watched", "write", "training step")
    taken: dict[str, list[tuple[float, float]]] = {part: [] for part in parts}
    for step in range(rounds + 1):
        now = [
            seconds(do)
            for do in (bare, watched, lambda: write(step), trainer.advance)  # noqa: B023
        ]
        for part, spent in zip(taken, now, strict=True):
            taken[part] += [spent] * (step > 0)  # the first round warms up
    return taken


def share_of_training(setting: Setting, taken: dict[str, list[tuple[float, float]]]) -> float:
    """Time to watch a run of the reference study over the time to train it, by the clock."""
    data, cfg = reference().data, reference().train
    n_watched = len(cfg.observation_steps) * data.probe_documents * data.sequences_per_document
    median = {part: statistics.median(wall for wall, _ in spent) for part, spent in taken.items()}
    watching = n_watched * (median["watched"] + median["write"]) / setting.n_sequences
    return watching / (cfg.n_steps * median["training step"])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", choices=("quick", "wide"), default="quick")
    parser.add_argument("--rounds", type=int, default=7)
    args = parser.parse_args()
    torch.set_num_threads(1)  # as the presets train
    keep_freed_memory()
    setting = setting_of(args.size)
    with tempfile.TemporaryDirectory() as folder:
        taken = measured(setting, Path(folder), args.rounds)
    table = Table(title=f"an observation, {args.size}, one thread, times the bare forward pass")
    for column in ("part", "clock", "processor", "seconds by the clock"):
        table.add_column(column, justify="left" if column == "part" else "right")
    ratios = {
        part: [
            statistics.median(s[i] / b[i] for s, b in zip(spent, taken["bare"], strict=True))
            for i in (0, 1)
        ]
        for part, spent in taken.items()
    }
    for part, spent in taken.items():
        median = statistics.median(wall for wall, _ in spent)
        table.add_row(part, *(f"{ratio:.2f}" for ratio in ratios[part]), f"{median:.3f}")
    Console().print(table)
    share = share_of_training(setting, taken)
    print(f"under the reference schedule, watching takes {share:.1%} of training time")
    return int(ratios["watched"][0] > PROMISED or share > PROMISED_SHARE)


if __name__ == "__main__":
    raise SystemExit(main())
