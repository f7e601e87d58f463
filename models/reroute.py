"""Route every token anew, with the last step's router or the last step's representation.

    python -m models.reroute studies/quick/switch-seed0.zarr --steps all

A route may differ from the last one because the router changed, or because what it reads did. At
each step c, two routes tell: that of the last step's router on what the layer reads at c, and that
of the router of c on what the layer reads at the last step. They stand in the run's group
`rerouted`, `expert_index_last_router` and `expert_index_last_representation (step, layer, sequence,
pos, top_k)`; `python -m analyses.router_saturation` compares them with the routes as they were. At
the last step both are the last routes.

It needs a finished run and the weights that `python -m models.train ... --keep-weights` keeps
beside it. A step takes the time of two passes over the probe set.

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
from models.every_expert import rerouted
from models.kept_command import parsed, parser_of, run_command
from models.transformer import Transformer
from store.run import Run


def route_anew(
    run: Run,
    step: int,
    model: Transformer,
    text: kept.Text,
    batch_size: int,
    advance: kept.Advance,
) -> tuple[NDArray[np.float32], xr.Dataset]:
    """Losses as they are, and routes with the last step's router or representation.

    Raises
    ------
    ValueError
        If the run is not finished, or kept no weights at its last step.
    """
    last = last_step(run)
    other = Transformer(model.cfg).to(next(model.parameters()).device)
    kept.load_weights(other, run, last)
    token, target = text.token[text.rows], text.target[text.rows]
    loss, *routes = rerouted(model, other, token, target, batch_size=batch_size, advance=advance)
    return loss, _observation(model.cfg, text, *routes)


def last_step(run: Run) -> int:
    """The step that the others are compared with.

    Raises
    ------
    ValueError
        If the run is not finished, or kept no weights there.
    """
    if not run.finished:
        raise ValueError(
            f"run {run.name!r} is not finished, so that its last step is not known; train it to "
            "its end first"
        )
    last = int(run.steps[-1])
    kept.require_weights(run, [last])
    return last


def _n_parts(cfg: ModelConfig, text: kept.Text, batch_size: int) -> int:
    return -(-len(text.rows) // batch_size) * len(cfg.moe_layers)


def _empty(cfg: ModelConfig, text: kept.Text) -> xr.Dataset:
    shape = (len(cfg.moe_layers), len(text.rows), text.token.shape[1], cfg.top_k)
    return _observation(cfg, text, np.zeros(shape, "int16"), np.zeros(shape, "int16"))


def _observation(
    cfg: ModelConfig, text: kept.Text, last_router: NDArray, last_representation: NDArray
) -> xr.Dataset:
    dims = ("layer", "sequence", "pos", "top_k")
    return xr.Dataset(
        {
            "expert_index_last_router": (dims, last_router),
            "expert_index_last_representation": (dims, last_representation),
        },
        {"layer": sorted(cfg.moe_layers), "sequence": text.rows},
    )


REROUTED = kept.Measurement(
    "rerouted", "routed anew", "layers", _empty, route_anew, _n_parts, require=last_step
)


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    args = parsed(parser_of("models.reroute", str(__doc__)), argv)
    return run_command(args, REROUTED, question="router_saturation")


if __name__ == "__main__":
    sys.exit(main())
