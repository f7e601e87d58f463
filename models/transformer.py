"""A small transformer whose every activation worth recording passes a named hook point.

Block, with the reference study's norm placement::

    x = x + ln1_post(attn(ln1(x)))
    x = x + mlp(ln2(x))            # or experts, in the blocks of `moe_layers`

Embedding and unembedding are separate weights, there is no position table (`models.attention`
tells position by windows), activation is ReLU, every linear map has a bias, weights start as
PyTorch does. Hook names are those of TransformerLens 4's bridge, so one probe reads this model and
a booted Pythia or OLMoE alike::

    model.run_with_cache(tokens)[1]["blocks.1.hook_resid_post"]     # [batch, pos, d_model]
    model.run_with_hooks(tokens, fwd_hooks=[("blocks.0.attn.hook_pattern", look)])
"""

import math
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformer_lens import ActivationCache, HookedRootModule
from transformer_lens.hook_points import HookPoint

from models.attention import Attention
from models.config import ModelConfig
from models.cross_entropy import linear_cross_entropy
from models.moe import MoE


class Norm(nn.LayerNorm):
    """Layer normalization whose output is watched."""

    def __init__(self, cfg: ModelConfig) -> None:
        super().__init__(cfg.d_model)
        self.hook_out = HookPoint()  # [batch, pos, d_model]

    def forward(self, x: Float[Tensor, "batch pos d_model"]) -> Float[Tensor, "batch pos d_model"]:
        return self.hook_out(super().forward(x))


class Embed(nn.Module):
    """Token embedding."""

    def __init__(self, cfg: ModelConfig) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(cfg.d_vocab, cfg.d_model))
        self.hook_out = HookPoint()  # [batch, pos, d_model]

    def forward(self, token: Int[Tensor, "batch pos"]) -> Float[Tensor, "batch pos d_model"]:
        return self.hook_out(F.embedding(token, self.weight))


class MLP(nn.Module):
    """Two-layer ReLU MLP, four times as wide inside."""

    def __init__(self, cfg: ModelConfig) -> None:
        super().__init__()
        self.w_in = nn.Linear(cfg.d_model, cfg.d_mlp)
        self.w_out = nn.Linear(cfg.d_mlp, cfg.d_model)
        self.hook_in = HookPoint()  # [batch, pos, d_model]
        self.hook_pre = HookPoint()  # [batch, pos, d_mlp]
        self.hook_post = HookPoint()  # [batch, pos, d_mlp]
        self.hook_out = HookPoint()  # [batch, pos, d_model]

    def forward(self, x: Float[Tensor, "batch pos d_model"]) -> Float[Tensor, "batch pos d_model"]:
        pre = self.hook_pre(self.w_in(self.hook_in(x)))
        return self.hook_out(self.w_out(self.hook_post(F.relu(pre))))


class Block(nn.Module):
    """Attention, then an MLP or experts, each adding to the residual stream."""

    def __init__(self, cfg: ModelConfig, layer: int) -> None:
        super().__init__()
        self.ln1 = Norm(cfg)
        self.attn = Attention(cfg)
        self.ln1_post = Norm(cfg)
        self.ln2 = Norm(cfg)
        self.mlp: MLP | MoE = MoE(cfg) if layer in cfg.moe_layers else MLP(cfg)
        self.hook_resid_pre = HookPoint()  # [batch, pos, d_model], and so are all below
        self.hook_attn_out = HookPoint()
        self.hook_resid_mid = HookPoint()
        self.hook_mlp_out = HookPoint()
        self.hook_resid_post = HookPoint()

    def forward(
        self, x: Float[Tensor, "batch pos d_model"], token: Int[Tensor, "batch pos"]
    ) -> Float[Tensor, "batch pos d_model"]:
        x = self.hook_resid_pre(x)
        x = self.hook_resid_mid(x + self.hook_attn_out(self.ln1_post(self.attn(self.ln1(x)))))
        normed = self.ln2(x)
        out = self.mlp(normed, token) if isinstance(self.mlp, MoE) else self.mlp(normed)
        return self.hook_resid_post(x + self.hook_mlp_out(out))


class Unembed(nn.Module):
    """From the residual stream to logits."""

    def __init__(self, cfg: ModelConfig) -> None:
        super().__init__()
        self.linear = nn.Linear(cfg.d_model, cfg.d_vocab)
        self.hook_in = HookPoint()  # [batch, pos, d_model]
        self.hook_out = HookPoint()  # [batch, pos, d_vocab]

    def forward(self, x: Float[Tensor, "batch pos d_model"]) -> Float[Tensor, "batch pos d_vocab"]:
        return self.hook_out(self.linear(self.hook_in(x)))


class Transformer(HookedRootModule):
    """Decoder-only language model; dense, or with experts in some blocks.

    Parameters
    ----------
    cfg : its architecture.
    seed : fixes the initialization; the caller's random state is left as it was.
    """

    def __init__(self, cfg: ModelConfig, *, seed: int = 0) -> None:
        super().__init__()
        self.cfg = cfg
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.embed = Embed(cfg)
            self.blocks = nn.ModuleList(Block(cfg, layer) for layer in range(cfg.n_layers))
            self.ln_final = Norm(cfg)
            self.unembed = Unembed(cfg)
        self.hook_embed = HookPoint()  # [batch, pos, d_model]
        self.setup()

    def forward(
        self, token: Int[Tensor, "batch pos"], target: Int[Tensor, "batch pos"] | None = None
    ) -> Float[Tensor, "batch pos d_vocab"] | Float[Tensor, ""]:
        """Logits of the next token at every position; with `target` their mean loss, in nats."""
        x = self.hook_embed(self.embed(token))
        for block in self.blocks:
            x = block(x, token)
        x = self.ln_final(x)
        if target is None:
            return self.unembed(x)
        if self.unembed.hook_in.has_hooks() or self.unembed.hook_out.has_hooks():
            return F.cross_entropy(self.unembed(x).float().flatten(0, 1), target.flatten())
        linear = self.unembed.linear
        return linear_cross_entropy(x.flatten(0, 1), linear.weight, linear.bias, target.flatten())

    def run_with_cache(self, *args: Any, **kwargs: Any) -> tuple[Tensor, ActivationCache]:
        """Logits, and every hooked activation; arguments as in TransformerLens."""
        logits, cache = super().run_with_cache(*args, **kwargs)
        has_batch_dim = not kwargs.get("remove_batch_dim", False)
        return logits, ActivationCache(cache, self, has_batch_dim=has_batch_dim)

    @property
    def balance_loss(self) -> Tensor:
        """Balancing loss of the last training pass, summed over layers; 0 for a dense model."""
        losses = [block.mlp.balance_loss for block in self.blocks if isinstance(block.mlp, MoE)]
        return torch.stack(losses).sum() if losses else torch.zeros(())

    def parameter_groups(self, learning_rate: float) -> list[dict]:
        """Optimizer groups; ungated experts learn at `learning_rate / sqrt(n_experts)`."""
        experts = [p for block in self.blocks if isinstance(block.mlp, MoE)
                   for p in block.mlp.experts.parameters()]  # fmt: skip
        if self.cfg.router != "ungated":
            return [{"params": list(self.parameters()), "lr": learning_rate}]
        slow = {id(p) for p in experts}
        others = [p for p in self.parameters() if id(p) not in slow]
        return [
            {"params": others, "lr": learning_rate},
            {"params": experts, "lr": learning_rate / math.sqrt(self.cfg.n_experts)},
        ]


def n_parameters(cfg: ModelConfig) -> int:
    """Number of parameters of the model, counted without allocating it."""
    with torch.device("meta"):
        return sum(p.numel() for p in Transformer(cfg).parameters())


def n_active_parameters(cfg: ModelConfig) -> int:
    """Parameters that take part in one token's prediction: of the experts, `top_k` a layer."""
    per_expert = 2 * cfg.d_model * cfg.d_mlp + cfg.d_mlp + cfg.d_model
    return n_parameters(cfg) - len(cfg.moe_layers) * (cfg.n_experts - cfg.top_k) * per_expert
