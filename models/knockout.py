"""Knocks out one expert at a time: how much does each token's loss change without it?

For the tokens routed to expert e of one layer, with x what enters the layer and g_e the gate, the
expert's part g_e(x) E_e(x) of the layer's output is replaced:

* "mean": by g_e(x) m_e, where m_e is the mean of E_e(x) over the probe tokens routed to e. What the
  expert always adds stays, what it knows of this token goes [1]_.
* "zero": by 0, its biases included.
* "second_choice": by what the layer gives when the router's logit of e is minus infinity: the token
  goes to the best of the others, and gates share the probability of e in proportion. Tokens that
  would not have gone to e keep their gates, which leaving e out for all [2]_ would raise. A hash
  router has no second choice, nor has a layer that uses all its experts: there the change is NaN.

Zero puts the layers above where training never was, the mean less so [3]_, and the second choice
keeps to outputs that experts do give; agreement of the three is what counts. Hooks do it, on names
that the model has anyway, and no weight is touched. Later layers and positions respond as they
will: a changed token is routed anew above, and later tokens attend to it.

Shapes: N = batch * pos tokens, E = experts, D = d_model.

References
----------
.. [1] Wang et al. (2022), Interpretability in the Wild, arXiv:2211.00593 (mean ablation).
.. [2] Lu et al. (2024), Not All Experts are Equal, arXiv:2402.14800 (leaving out experts).
.. [3] Li and Janson (2024), Optimal Ablation for Interpretability, arXiv:2409.09951.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Literal, get_args

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor

from models.moe import MoE
from models.transformer import Transformer

Replacement = Literal["mean", "zero", "second_choice"]
REPLACEMENTS: tuple[Replacement, ...] = get_args(Replacement)

Means = dict[int, Float[Tensor, "E D"]]
Hook = tuple[str | Callable, Callable]


def knocked_out(
    model: Transformer,
    layer: int,
    expert: int,
    replacement: Replacement,
    *,
    mean: Float[Tensor, "D"] | None = None,
) -> AbstractContextManager[Any]:
    """Inside a `with` block, the model runs without an expert; afterwards it is as it was.

    Parameters
    ----------
    layer, expert : which one.
    replacement : what stands in for it.
    mean : what replaces its output if `replacement` is "mean".

    Raises
    ------
    ValueError
        If the layer has no such expert, its router no second choice, or the mean is not given.
    """
    moe = _moe(model, layer)
    if not 0 <= expert < moe.cfg.n_experts:
        raise ValueError(f"expert {expert}: layer {layer} has 0 to {moe.cfg.n_experts - 1}")
    name = f"blocks.{layer}.mlp"
    if replacement == "second_choice":
        if not has_second_choice(moe):
            raise ValueError(f"the {moe.cfg.router} router of layer {layer} has no second choice")
        return model.hooks(fwd_hooks=[(f"{name}.gate.hook_out", _masked(expert, moe.gate.top_k))])
    gates: list[Tensor] = []  # [N]

    def silence(weight: Float[Tensor, "N E"], hook: Any) -> Tensor:
        gates[:] = [weight[:, expert]]
        return weight.index_fill(1, torch.tensor([expert], device=weight.device), 0.0)

    hooks: list[Hook] = [(f"{name}.hook_expert_weights", silence)]
    if replacement == "mean":
        if mean is None:
            raise ValueError("replacement 'mean' needs the mean; take it from expert_means")
        substitute = mean

        def fill(out: Float[Tensor, "batch pos D"], hook: Any) -> Tensor:
            return out + gates[0].view(*out.shape[:2], 1) * substitute

        hooks.append((f"{name}.hook_out", fill))
    return model.hooks(fwd_hooks=hooks)


def has_second_choice(moe: MoE) -> bool:
    """Whether the router can send a token to another expert than those it chose."""
    return moe.cfg.router != "hash" and moe.cfg.top_k < moe.cfg.n_experts


def expert_means(
    model: Transformer, token: Int[Tensor, "sequence pos"], *, batch_size: int = 32
) -> Means:
    """Mean output of each expert, before its gate, over the tokens routed to it, by layer.

    Returns
    -------
    dict
        (expert, d_model) of each layer with experts; 0 for an expert that no token chose.
    """
    sums = {
        layer: torch.zeros(block.mlp.cfg.n_experts, model.cfg.d_model + 1, dtype=torch.float64)
        for layer, block in enumerate(model.blocks)
        if isinstance(block.mlp, MoE)
    }

    def summing(layer: int) -> list[Hook]:
        entered: list[Tensor] = []

        def enter(x: Float[Tensor, "batch pos D"], hook: Any) -> None:
            entered[:] = [x.flatten(0, 1)]

        def add(index: Int[Tensor, "N K"], hook: Any) -> None:
            sums[layer] += _output_sums(_moe(model, layer), entered[0], index).cpu()

        name = f"blocks.{layer}.mlp"
        return [(f"{name}.hook_in", enter), (f"{name}.hook_expert_indices", add)]

    hooks = [hook for layer in sums for hook in summing(layer)]
    device = next(model.parameters()).device
    with observing(model), model.hooks(fwd_hooks=hooks):
        for batch in token.split(batch_size):
            model(batch.to(device))
    return {
        layer: (total[:, :-1] / total[:, -1:].clamp(min=1)).float().to(device)
        for layer, total in sums.items()
    }


@contextmanager
def observing(model: Transformer) -> Iterator[None]:
    """Eval mode, no gradients, no autocast, as `probes.base.observe` has it."""
    was_training, device = model.training, next(model.parameters()).device
    model.eval()
    try:
        with torch.no_grad(), torch.autocast(device.type, enabled=False):
            yield
    finally:
        model.train(was_training)


def loss_changes(
    model: Transformer,
    token: Int[Tensor, "sequence pos"],
    target: Int[Tensor, "sequence pos"],
    *,
    means: Means,
    batch_size: int = 32,
    advance: Callable[[int], None] = lambda n: None,
) -> tuple[NDArray[np.float32], dict[Replacement, NDArray[np.float16]]]:
    """Loss of every token, and its change without each expert.

    From the ablated layer up, the model is run anew for each expert and replacement; what lies
    below is computed once a batch, and experts that no token of a batch chose are left out.

    Parameters
    ----------
    token, target : what the model reads, and should predict.
    means : of `expert_means`.
    advance : hears of so many knock-outs done, for each batch, layer and expert.

    Returns
    -------
    loss : (sequence, pos), nats, of the model as it is.
    change : by replacement (layer, expert, sequence, pos), nats; above 0 where the expert helped.
        0 for an expert that no token of the batch chose.
    """
    layers, n_experts = sorted(means), model.cfg.n_experts
    shape = (len(layers), n_experts, *token.shape)
    loss = np.empty(token.shape, np.float32)
    change = {name: np.zeros(shape, np.float16) for name in REPLACEMENTS}
    if not has_second_choice(_moe(model, layers[0])):
        change["second_choice"][:] = np.nan
    device = next(model.parameters()).device
    with observing(model):
        for start in range(0, len(token), batch_size):
            rows = slice(start, start + batch_size)
            inputs, wanted = token[rows].to(device), target[rows].to(device)
            whole, entered, chosen = _intact(model, inputs, wanted, layers)
            loss[rows] = whole.cpu().numpy()
            for (i, layer), expert in ((a, e) for a in enumerate(layers) for e in range(n_experts)):
                if expert in chosen[layer]:
                    for name in REPLACEMENTS:
                        if name == "second_choice" and not has_second_choice(_moe(model, layer)):
                            continue
                        mean = means[layer][expert]
                        with knocked_out(model, layer, expert, name, mean=mean):
                            without = _losses(model, entered[layer], inputs, wanted, layer)
                        change[name][i, expert, rows] = (without - whole).cpu().numpy()
                advance(len(REPLACEMENTS))
    return loss, change


def _intact(
    model: Transformer,
    token: Int[Tensor, "batch pos"],
    target: Int[Tensor, "batch pos"],
    layers: list[int],
) -> tuple[Float[Tensor, "batch pos"], dict[int, Tensor], dict[int, set[int]]]:
    """Losses, what enters each layer's block, and the experts that some token chose there."""
    entered: dict[int, Tensor] = {}
    chosen: dict[int, set[int]] = {}

    def keep(layer: int) -> list[Hook]:
        def enter(x: Tensor, hook: Any) -> None:
            entered[layer] = x

        def choose(index: Tensor, hook: Any) -> None:
            chosen[layer] = set(index.unique().tolist())

        return [
            (f"blocks.{layer}.hook_resid_pre", enter),
            (f"blocks.{layer}.mlp.hook_expert_indices", choose),
        ]

    with model.hooks(fwd_hooks=[hook for layer in layers for hook in keep(layer)]):
        loss = _losses(model, model.hook_embed(model.embed(token)), token, target, 0)
    return loss, entered, chosen


def _losses(
    model: Transformer,
    x: Float[Tensor, "batch pos D"],
    token: Int[Tensor, "batch pos"],
    target: Int[Tensor, "batch pos"],
    layer: int,
) -> Float[Tensor, "batch pos"]:
    """Per-token cross-entropy when `x` enters block `layer`, nats."""
    for block in model.blocks[layer:]:
        x = block(x, token)
    logits = model.unembed(model.ln_final(x)).float()
    return F.cross_entropy(logits.flatten(0, 1), target.flatten(), reduction="none").view_as(target)


def _masked(expert: int, top_k: int) -> Callable[..., Tensor]:
    """A hook that takes an expert from the router, for the tokens that would have gone to it."""

    def mask(logits: Float[Tensor, "N E"], hook: Any) -> Tensor:
        chosen = logits.softmax(dim=-1).topk(top_k, dim=-1).indices  # as the router chooses
        served = (chosen == expert).any(dim=-1)
        masked = logits.clone()
        masked[served, expert] = -torch.inf
        return masked

    return mask


def _output_sums(
    moe: MoE, x: Float[Tensor, "N D"], index: Int[Tensor, "N K"]
) -> Float[Tensor, "E D+1"]:
    """Sum of each expert's outputs over its tokens, and in a last column their number."""
    order = index.flatten().argsort(stable=True)
    expert, token = index.flatten()[order], order // index.shape[1]
    counts = expert.bincount(minlength=moe.cfg.n_experts)
    out = moe.experts(x[token], expert, counts).double()
    ones = out.new_ones(len(out), 1)
    sums = out.new_zeros(moe.cfg.n_experts, out.shape[1] + 1)
    return sums.index_add(0, expert, torch.cat([out, ones], dim=1))


def _moe(model: Transformer, layer: int) -> MoE:
    n_layers = len(model.blocks)
    moe = model.blocks[layer].mlp if 0 <= layer < n_layers else None
    if not isinstance(moe, MoE):
        having = [i for i in range(n_layers) if isinstance(model.blocks[i].mlp, MoE)]
        raise ValueError(f"block {layer} has no experts; those with experts: {having or 'none'}")
    return moe
