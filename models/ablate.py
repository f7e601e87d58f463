"""Knock out every expert of a run, one at a time, and store how each token's loss changes.

    python -m models.ablate studies/quick/switch-seed0.zarr             # at the last step
    python -m models.ablate studies/quick/switch-*.zarr --steps all
    python -m models.ablate RUN --steps 0,100,400 --documents 20        # on part of the probe set

It needs the weights that `python -m models.train ... --keep-weights` keeps beside the run. Three
replacements stand in for an expert, defined in `models.knockout`: its mean output, zero, and the
router's second choice. The changes stand in the run's group `ablation`, in nats per token:
`loss_change_mean`, `loss_change_zero` and `loss_change_second_choice (step, layer, expert,
sequence, pos)`, above 0 where the expert helped.

All tokens are kept, in float16, so that any class of tokens can be asked about afterwards: two
layers of 8 experts on 20,480 tokens take 2 MB a step. Time and size grow with layers x experts x
tokens; of a large model, observe fewer steps, or the first `--documents` of the probe set, in which
domains take turns. Means are always over the whole probe set.

Interrupt it at any moment and give the same command again: it goes on with the next step.
"""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # read once, when torch is first imported

import sys
from collections.abc import Mapping, Sequence

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from models import kept
from models.config import ModelConfig
from models.kept_command import parsed, parser_of, run_command
from models.knockout import REPLACEMENTS, expert_means, loss_changes
from models.transformer import Transformer
from store.run import Run


def knock_out(
    run: Run,
    step: int,
    model: Transformer,
    text: kept.Text,
    batch_size: int,
    advance: kept.Advance,
) -> tuple[NDArray[np.float32], xr.Dataset]:
    """Losses as they are, and how they change without each expert."""
    means = expert_means(model, text.token, batch_size=batch_size)
    token, target = text.token[text.rows], text.target[text.rows]
    loss, change = loss_changes(
        model, token, target, means=means, batch_size=batch_size, advance=advance
    )
    return loss, _observation(model.cfg, text, change)


def n_knockouts(cfg: ModelConfig, text: kept.Text, batch_size: int) -> int:
    """How many knock-outs of a batch one step takes."""
    n_batches = -(-len(text.rows) // batch_size)
    return n_batches * len(cfg.moe_layers) * cfg.n_experts * len(REPLACEMENTS)


def _empty(cfg: ModelConfig, text: kept.Text) -> xr.Dataset:
    shape = (len(cfg.moe_layers), cfg.n_experts, len(text.rows), text.token.shape[1])
    return _observation(cfg, text, {name: np.zeros(shape, "float16") for name in REPLACEMENTS})


def _observation(cfg: ModelConfig, text: kept.Text, change: Mapping) -> xr.Dataset:
    """Changes of loss as the group has them."""
    dims = ("layer", "expert", "sequence", "pos")
    return xr.Dataset(
        {f"loss_change_{name}": (dims, values) for name, values in change.items()},
        {"layer": sorted(cfg.moe_layers), "sequence": text.rows},
    )


ABLATION = kept.Measurement("ablation", "ablated", "knock-outs", _empty, knock_out, n_knockouts)


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    args = parsed(parser_of("models.ablate", str(__doc__)), argv)
    return run_command(args, ABLATION, question="expert_importance")


if __name__ == "__main__":
    sys.exit(main())
