"""Run every expert of a run on every token, whatever the router chose, and store the outputs.

    python -m models.expert_outputs studies/quick/switch-seed0.zarr             # at the last step
    python -m models.expert_outputs studies/quick/switch-*.zarr --steps all
    python -m models.expert_outputs RUN --steps 0,100,400 --documents 20        # of part of it

It needs the weights that `python -m models.train ... --keep-weights` keeps beside the run. At 16
positions spread over each sequence, where activations are recorded by default, every expert of a
layer reads what the layer's own router and experts read there. The outputs, before they are scaled
by a gate, stand in the run's group `expert_outputs`: `output (step, layer, expert, sequence, pos,
d_model)` in float16. Which of them the router chose stands in the group `routing`.

Two layers of 8 experts with 128 features on 2,560 tokens take 10 MB a step. Time and size grow with
layers x experts x tokens; of a large model, take fewer steps, `--positions`, or the first
`--documents` of the probe set, in which domains take turns.

Interrupt it at any moment and give the same command again: it goes on with the next step.
"""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # read once, when torch is first imported

import sys
from collections.abc import Sequence

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from models import kept
from models.config import ModelConfig
from models.every_expert import expert_outputs
from models.kept_command import parsed, parser_of, run_command
from models.transformer import Transformer
from probes.base import spread_positions
from store.run import Run


def measurement(n_positions: int = 16) -> kept.Measurement:
    """Outputs of all experts at so many positions of a sequence; at all, if it has fewer."""

    def positions(cfg: ModelConfig) -> list[int]:
        return spread_positions(cfg.n_ctx, min(n_positions, cfg.n_ctx))

    def observation(cfg: ModelConfig, text: kept.Text, output: NDArray) -> xr.Dataset:
        dims = ("layer", "expert", "sequence", "pos", "d_model")
        labels = {"layer": sorted(cfg.moe_layers), "sequence": text.rows, "pos": positions(cfg)}
        return xr.Dataset({"output": (dims, output)}, labels)

    def empty(cfg: ModelConfig, text: kept.Text) -> xr.Dataset:
        shape = (len(cfg.moe_layers), cfg.n_experts, len(text.rows), len(positions(cfg)))
        return observation(cfg, text, np.zeros((*shape, cfg.d_model), "float16"))

    def observe(
        run: Run,
        step: int,
        model: Transformer,
        text: kept.Text,
        batch_size: int,
        advance: kept.Advance,
    ) -> tuple[NDArray[np.float32], xr.Dataset]:
        token, target = text.token[text.rows], text.target[text.rows]
        loss, output = expert_outputs(
            model, token, target, positions(model.cfg), batch_size=batch_size, advance=advance
        )
        return loss, observation(model.cfg, text, output)

    def n_parts(cfg: ModelConfig, text: kept.Text, batch_size: int) -> int:
        return -(-len(text.rows) // batch_size) * len(cfg.moe_layers) * cfg.n_experts

    return kept.Measurement("expert_outputs", "all experts run", "experts", empty, observe, n_parts)


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    parser = parser_of("models.expert_outputs", str(__doc__))
    parser.add_argument(
        "--positions", type=int, default=16, metavar="N", help="of a sequence (default: 16)"
    )
    args = parsed(parser, argv)
    return run_command(args, measurement(args.positions), question="expert_representations")


if __name__ == "__main__":
    sys.exit(main())
