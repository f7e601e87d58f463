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

import itertools
import math

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn
from transformer_lens.hook_points import HookPoint

from models.block_attention import block_attention
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


def block_size(window: int, n_ctx: int) -> int:
    """Queries in a block of a head; `n_ctx` where blocks would save nothing.

    With queries in blocks of c, all keys that they see lie in their block and the one before it if
    the window is at most c + 1: 2c keys instead of `n_ctx`. A window of 1 is a block of 1.
    """
    if window == 1:
        return 1
    return next((c for c in (8, 32, 128, 512) if window <= c + 1 and 2 * c < n_ctx), n_ctx)


class WindowedHeads(nn.Module):
    """Attention of heads whose queries are taken in blocks of one size.

    Parameters
    ----------
    windows : of these heads.
    block : queries in a block; `n_ctx` for a single block that sees all keys.
    """

    mask: Float[Tensor, "head block query key"]  # 0 where visible, else -inf

    def __init__(self, windows: tuple[int, ...], *, block: int, n_ctx: int) -> None:
        super().__init__()
        self.n_heads, self.block, self.is_whole = len(windows), block, block == n_ctx
        self.is_causal = min(windows) >= n_ctx
        if self.is_whole:
            alike = windows[:1] if self.is_causal else windows  # one mask serves all causal heads
            visible = visible_keys(alike, n_ctx)[:, None]
        else:
            pair = visible_keys(windows, 2 * block)[:, None, block:]  # keys before, then its own
            visible = pair.repeat(1, math.ceil(n_ctx / block), 1, 1)
            visible[:, 0, :, :block] = False  # nothing comes before the first block
        self.register_buffer("mask", torch.where(visible, 0.0, -torch.inf), persistent=False)

    def forward(
        self,
        q: Float[Tensor, "batch head pos d_head"],
        k: Float[Tensor, "batch head pos d_head"],
        v: Float[Tensor, "batch head pos d_head"],
    ) -> Float[Tensor, "batch head pos d_head"]:
        T = q.shape[2]
        if self.block == 1:
            return v  # a query that sees one key gives it all its weight
        if not self.is_whole:
            return block_attention(q, k, v, self.mask[:, : math.ceil(T / self.block)].to(q.dtype))
        mask = self.mask[:, :, :T, :T]
        if _fused_is_slow(q):
            return block_attention(q, k, v, mask.to(q.dtype))
        if self.is_causal:
            return F.scaled_dot_product_attention(q, k, v, is_causal=True)
        # only a mask with a batch dimension reaches the fused kernel
        mask = mask.to(q.dtype).transpose(0, 1)
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)


def _fused_is_slow(q: Tensor) -> bool:
    """Whether products, one after another, take less time than the fused kernel: decision 17."""
    return q.device.type == "cpu" and q.dtype == torch.bfloat16


class Attention(nn.Module):
    """Multi-head causal attention with a window per head.

    Scores and pattern are only formed when something watches `hook_attn_scores` or
    `hook_pattern`; otherwise blocks or fused kernels give the same without them.
    """

    def __init__(self, cfg: ModelConfig) -> None:
        super().__init__()
        self.n_heads = cfg.n_heads
        self.windows = head_windows(cfg.windows, cfg.n_heads, cfg.n_ctx)
        self.q = nn.Linear(cfg.d_model, cfg.d_model)
        self.k = nn.Linear(cfg.d_model, cfg.d_model)
        self.v = nn.Linear(cfg.d_model, cfg.d_model)
        self.o = nn.Linear(cfg.d_model, cfg.d_model)
        alike = itertools.groupby(
            self.windows, lambda window: (block_size(window, cfg.n_ctx), window == cfg.n_ctx)
        )
        self.groups = nn.ModuleList(
            WindowedHeads(tuple(windows), block=block, n_ctx=cfg.n_ctx)
            for (block, _), windows in alike
        )
        self.heads_per_group = [group.n_heads for group in self.groups]
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
        watched = self.hook_attn_scores.has_hooks() or self.hook_pattern.has_hooks()
        z = self._with_pattern(q, k, v) if watched else self._fused(q, k, v)
        z = self.hook_z(z)
        return self.hook_out(self.o(z.reshape(B, T, -1)))

    def _with_pattern(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        visible = visible_keys(self.windows, q.shape[2]).to(q.device)
        scores = q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1])
        scores = self.hook_attn_scores(scores.masked_fill(~visible, -torch.inf))
        return (self.hook_pattern(scores.softmax(dim=-1)) @ v).transpose(1, 2)

    def _fused(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        parts = zip(*(x.split(self.heads_per_group, dim=1) for x in (q, k, v)), strict=True)
        z = [heads(*part).transpose(1, 2) for heads, part in zip(self.groups, parts, strict=True)]
        return torch.cat(z, dim=2)
