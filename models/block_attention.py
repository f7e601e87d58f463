"""Attention of queries in blocks that see their own block of keys and the one before it.

With ``P = softmax(Q K^T / sqrt(d_head) + mask)`` of a block and ``Z = P V``, gradients are [1]_::

    dV = P^T dZ,    dP = dZ V^T,    dS = P * (dP - sum_j P_j dP_j)
    dQ = dS K / sqrt(d_head),    dK = dS^T Q / sqrt(d_head)

Written out, so that blocks of keys overlap in memory and all blocks of a head follow one another:
neither keys nor gradients are copied block by block.

References
----------
.. [1] Dao et al. (2022), FlashAttention, arXiv:2205.14135, appendix B.2.
"""

import math
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable


def block_attention(
    q: Float[Tensor, "batch head pos d_head"],
    k: Float[Tensor, "batch head pos d_head"],
    v: Float[Tensor, "batch head pos d_head"],
    mask: Float[Tensor, "#head block query key"],
) -> Float[Tensor, "batch head pos d_head"]:
    """Weighted values of each query; it can be differentiated once.

    Parameters
    ----------
    mask : added to scores, with one head or as many as there are. With as many keys as queries, a
        block sees itself; with twice as many, also the block before it, which `mask` must hide from
        the first block of a sequence.
    """
    with torch.autocast(q.device.type, enabled=False):
        return _BlockAttention.apply(q, k, v, mask)


class _BlockAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
        ctx.shape, (queries, keys) = q.shape, mask.shape[2:]
        q = _blocks(q, queries)
        k, v = (_blocks(x, queries, before=keys - queries) for x in (k, v))
        scores = torch.bmm(q, k.mT)
        by_head = scores.view(len(mask), -1, *mask.shape[1:])
        torch.add(mask[:, None], by_head, alpha=1 / math.sqrt(q.shape[-1]), out=by_head)
        pattern = scores.softmax(dim=-1)
        ctx.save_for_backward(q, k, v, pattern)
        return _positions(torch.bmm(pattern, v), queries, ctx.shape)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dz: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, pattern = ctx.saved_tensors
        dz = _blocks(dz, q.shape[1])
        dv = torch.bmm(pattern.mT, dz)
        ds = torch._softmax_backward_data(torch.bmm(dz, v.mT), pattern, -1, pattern.dtype)
        dq, dk = torch.bmm(ds, k), torch.bmm(ds.mT, q)
        for gradient in (dq, dk):
            gradient /= math.sqrt(q.shape[-1])
        return *(_positions(x, q.shape[1], ctx.shape) for x in (dq, dk, dv)), None


def _blocks(
    x: Float[Tensor, "batch head pos d_head"], size: int, *, before: int = 0
) -> Float[Tensor, "block key d_head"]:
    """Blocks of each sequence of each head, with positions before them; zeros fill up the last.

    Blocks overlap in memory. The first of a sequence begins with the end of another.
    """
    B, h, T, d = x.shape
    filled = -(-T // size) * size
    memory = x.new_empty(before + h * B * filled, d)
    memory[:before] = 0
    sequences = memory[before:].view(h, B, filled, d)
    sequences[:, :, :T] = x.transpose(0, 1)
    sequences[:, :, T:] = 0
    return memory.as_strided((h * B * filled // size, before + size, d), (size * d, d, 1))


def _positions(
    x: Float[Tensor, "block key d_head"], size: int, shape: torch.Size
) -> Float[Tensor, "batch head pos d_head"]:
    """What `_blocks` took apart; of a position in two blocks the sum."""
    B, h, T, d = shape
    own = x[:, -size:]
    if own.shape != x.shape:
        own[:-1] += x[1:, :size]
    return own.reshape(h, B, -1, d)[:, :, :T].transpose(0, 1)
