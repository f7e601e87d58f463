"""What a layer would do with a token otherwise: every expert's output, another step's routes.

For each layer with experts, the input x of router and experts is what the model itself gives at a
token: the residual stream between attention and experts, normalised. On it,

* `expert_outputs` runs every expert, whatever the router chose: E_e(x), before its gate.
* `rerouted` runs the router of another step of the same training, on the x of this one, and this
  one's router on the x of the other.

Shapes: N = batch * pos tokens, K = top_k, E = experts, D = d_model.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor

from models.knockout import observing
from models.moe import MoE
from models.transformer import Transformer

Advance = Callable[[int], None]


def expert_outputs(
    model: Transformer,
    token: Int[Tensor, "sequence pos"],
    target: Int[Tensor, "sequence pos"],
    positions: Sequence[int],
    *,
    batch_size: int = 32,
    advance: Advance = lambda n: None,
) -> tuple[NDArray[np.float32], NDArray[np.float16]]:
    """Output of every expert at some positions of all sequences.

    Parameters
    ----------
    token, target : what the model reads, and should predict.
    advance : hears of so many experts run, for each batch and layer.

    Returns
    -------
    loss : (sequence, pos), nats, at all positions.
    output : (layer, expert, sequence, pos, d_model), layers with experts in order, before the gate.

    Raises
    ------
    ValueError
        If an output is too large for float16.
    """
    layers, n_experts = moe_layers(model), model.cfg.n_experts
    shape = (len(layers), n_experts, len(token), len(positions), model.cfg.d_model)
    loss, output = np.empty(token.shape, np.float32), np.empty(shape, np.float16)
    device = next(model.parameters()).device
    with observing(model):
        for start in range(0, len(token), batch_size):
            rows = slice(start, start + batch_size)
            inputs = token[rows].to(device)
            logits, entered = _entered(model, inputs)
            loss[rows] = _losses(logits, target[rows].to(device))
            for i, layer in enumerate(layers):
                x = entered[layer][:, list(positions)]
                found = of_every_expert(_moe(model, layer), x.flatten(0, 1))
                found = found.unflatten(1, x.shape[:2]).cpu().numpy()
                _require_float16(found, layer)
                output[i, :, rows] = found
                advance(n_experts)
    return loss, output


def of_every_expert(moe: MoE, x: Float[Tensor, "N D"]) -> Float[Tensor, "E N D"]:
    """E_e(x) of all experts of a layer."""
    n_experts, n = moe.cfg.n_experts, len(x)
    expert = torch.arange(n_experts, device=x.device).repeat_interleave(n)
    counts = expert.new_full((n_experts,), n)
    return moe.experts(x.repeat(n_experts, 1), expert, counts).view(n_experts, n, -1)


def rerouted(
    model: Transformer,
    other: Transformer,
    token: Int[Tensor, "sequence pos"],
    target: Int[Tensor, "sequence pos"],
    *,
    batch_size: int = 32,
    advance: Advance = lambda n: None,
) -> tuple[NDArray[np.float32], NDArray[np.int16], NDArray[np.int16]]:
    """Routes if only the router, or only what it reads, were those of another step.

    Parameters
    ----------
    model, other : of two steps, on the same device.
    token, target : what they read, and should predict.
    advance : hears of each layer, for each batch.

    Returns
    -------
    loss : (sequence, pos), nats, of `model`.
    other_router : (layer, sequence, pos, top_k), experts that the routers of `other` choose for
        what enters the layers of `model`, best first.
    other_input : the same for the routers of `model` and what enters the layers of `other`.
    """
    layers = moe_layers(model)
    loss = np.empty(token.shape, np.float32)
    shape = (len(layers), *token.shape, model.cfg.top_k)
    other_router, other_input = np.empty(shape, np.int16), np.empty(shape, np.int16)
    device = next(model.parameters()).device
    with observing(model), observing(other):
        for start in range(0, len(token), batch_size):
            rows = slice(start, start + batch_size)
            inputs = token[rows].to(device)
            logits, own = _entered(model, inputs)
            loss[rows] = _losses(logits, target[rows].to(device))
            _, others = _entered(other, inputs)
            for i, layer in enumerate(layers):
                for routes, of, x in ((other_router, other, own), (other_input, model, others)):
                    _, index = _moe(of, layer).gate(x[layer].flatten(0, 1), inputs.flatten())
                    routes[i, rows] = index.unflatten(0, inputs.shape).cpu().numpy()
                advance(1)
    return loss, other_router, other_input


def moe_layers(model: Transformer) -> list[int]:
    """Blocks with experts, ascending."""
    return [layer for layer, block in enumerate(model.blocks) if isinstance(block.mlp, MoE)]


def _entered(
    model: Transformer, token: Int[Tensor, "batch pos"]
) -> tuple[Float[Tensor, "batch pos vocab"], dict[int, Float[Tensor, "batch pos D"]]]:
    """Logits, and what enters router and experts of each layer."""
    entered: dict[int, Tensor] = {}
    with _keeping_inputs(model, entered):
        logits = model(token)
    return logits, entered


@contextmanager
def _keeping_inputs(model: Transformer, entered: dict[int, Tensor]) -> Iterator[None]:
    def keep(layer: int) -> tuple[str, Callable[..., None]]:
        def hook(x: Float[Tensor, "batch pos D"], hook: Any) -> None:
            entered[layer] = x

        return f"blocks.{layer}.mlp.hook_in", hook

    with model.hooks(fwd_hooks=[keep(layer) for layer in moe_layers(model)]):
        yield


def _losses(
    logits: Float[Tensor, "batch pos vocab"], target: Int[Tensor, "batch pos"]
) -> NDArray[np.float32]:
    """Per-token cross-entropy, nats."""
    loss = F.cross_entropy(logits.float().flatten(0, 1), target.flatten(), reduction="none")
    return loss.view_as(target).cpu().numpy()


def _moe(model: Transformer, layer: int) -> MoE:
    moe = model.blocks[layer].mlp
    assert isinstance(moe, MoE)
    return moe


def _require_float16(output: NDArray, layer: int) -> None:
    largest = float(np.abs(output).max(initial=0))
    if not largest <= float(np.finfo(np.float16).max):
        raise ValueError(
            f"an expert of layer {layer} gives {largest:.3g}, too large for float16; leave the "
            "step out with --steps"
        )
