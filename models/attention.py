"""Hard-ALiBi attention: a head sees a fixed number of the last keys; nothing else tells position.

Key j is visible from query i in head h iff ``0 <= i - j < window_h``. Two published schedules:

* "powers" (the reference study): ``window_h = 2**h`` in every head; 11 heads cover 1,024 tokens;
* "half" [1]_: ``window_h = h + 1`` in the first half of the heads, the others unrestricted.

References
----------
.. [1] Jelassi et al. (2024), Repeat After Me: Transformers are Better than State Space Models at
   Copying, arXiv:2402.01032.
.. [2] Press et al. (2022), ALiBi, arXiv:2108.12409 (the soft bias that this hardens).
"""

import math

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn
from transformer_lens.hook_points import HookPoint

from models.config import ModelConfig, Windows


def head_windows(schedule: Windows, n_heads: int, n_ctx: int) -> tuple[int, ...]:
    """Number of keys that each head sees, the query's own included; `n_ctx` is all of them."""
    if schedule == "powers":
        return tuple(min(2**h, n_ctx) for h in range(n_heads))
    n_windowed = n_heads // 2
    windowed = (min(h + 1, n_ctx) for h in range(n_windowed))
    return (*windowed, *(n_ctx for _ in range(n_heads - n_windowed)))


def visible_keys(windows: tuple[int, ...], n_ctx: int) -> Bool[Tensor, "head query key"]:
    """Whether key j is visible from query i in head h."""
    position = torch.arange(n_ctx)
    distance = position[:, None] - position[None, :]
    window = torch.tensor(windows)[:, None, None]
    return (distance >= 0) & (distance < window)


class Attention(nn.Module):
    """Multi-head causal attention with a window per head.

    Scores and pattern are only formed when something watches `hook_attn_scores` or
    `hook_pattern`; otherwise the fused kernel computes the same product without them.
    """

    visible: Bool[Tensor, "head query key"]

    def __init__(self, cfg: ModelConfig) -> None:
        super().__init__()
        self.n_heads = cfg.n_heads
        self.q = nn.Linear(cfg.d_model, cfg.d_model)
        self.k = nn.Linear(cfg.d_model, cfg.d_model)
        self.v = nn.Linear(cfg.d_model, cfg.d_model)
        self.o = nn.Linear(cfg.d_model, cfg.d_model)
        windows = head_windows(cfg.windows, cfg.n_heads, cfg.n_ctx)
        self.register_buffer("visible", visible_keys(windows, cfg.n_ctx), persistent=False)
        self.hook_q = HookPoint()  # [batch, pos, head, d_head]
        self.hook_k = HookPoint()  # [batch, pos, head, d_head]
        self.hook_v = HookPoint()  # [batch, pos, head, d_head]
        self.hook_attn_scores = HookPoint()  # [batch, head, query, key]
        self.hook_pattern = HookPoint()  # [batch, head, query, key]
        self.hook_z = HookPoint()  # [batch, pos, head, d_head]
        self.hook_out = HookPoint()  # [batch, pos, d_model]

    def forward(self, x: Float[Tensor, "batch pos d_model"]) -> Float[Tensor, "batch pos d_model"]:
        B, T, _ = x.shape
        by_head = (B, T, self.n_heads, -1)
        q = self.hook_q(self.q(x).view(by_head)).transpose(1, 2)  # [batch, head, pos, d_head]
        k = self.hook_k(self.k(x).view(by_head)).transpose(1, 2)
        v = self.hook_v(self.v(x).view(by_head)).transpose(1, 2)
        visible = self.visible[:, :T, :T]
        if self.hook_attn_scores.has_hooks() or self.hook_pattern.has_hooks():
            z = self._watched(q, k, v, visible)
        else:
            # only a mask with a batch dimension reaches the fused kernel
            z = F.scaled_dot_product_attention(q, k, v, attn_mask=visible[None])
        z = self.hook_z(z.transpose(1, 2))  # [batch, pos, head, d_head]
        return self.hook_out(self.o(z.reshape(B, T, -1)))

    def _watched(self, q: Tensor, k: Tensor, v: Tensor, visible: Tensor) -> Tensor:
        scores = q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1])
        scores = self.hook_attn_scores(scores.masked_fill(~visible, -torch.inf))
        return self.hook_pattern(scores.softmax(dim=-1)) @ v
