"""Mean loss of a linear map to logits, with gradients formed where the logits are still in cache.

For logits ``z = W x + b``, probabilities ``p = softmax(z)`` and target y::

    loss = log sum_i exp z_i - z_y,    d loss / d z = p - [i = y]

On a CPU, rows are taken some at a time: their gradients are added up at once, in float32, and
neither all logits nor their gradients ever exist together.
``log sum_i exp z_i = max z - log max p`` saves a second exponential and cannot overflow.
"""

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

from models.precision import product_dtype

LOGITS_AT_ONCE = 2**20  # 4 MB of float32, about what a core has of the cache


def linear_cross_entropy(
    x: Float[Tensor, "N D"],
    weight: Float[Tensor, "V D"],
    bias: Float[Tensor, "V"],
    target: Int[Tensor, "N"],
) -> Float[Tensor, ""]:
    """Mean over rows of the cross-entropy of ``softmax(W x + b)``, nats, in float32.

    Products are in autocast's type where it is enabled; it can be differentiated once.
    """
    dtype = product_dtype(x)
    with torch.autocast(x.device.type, enabled=False):
        return _MeanLoss.apply(x.to(dtype), weight, bias, target)


class _MeanLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, target: Tensor) -> Tensor:
        factor, lower = weight.to(x.dtype), x.dtype != torch.float32
        rows = min(len(x), max(1, LOGITS_AT_ONCE // len(weight))) if x.is_cpu else len(x)
        # each part writes them again, so that they stay in cache
        prob = x.new_empty(rows, len(weight), dtype=torch.float32)
        logits = torch.empty_like(prob)
        product = torch.empty_like(prob, dtype=x.dtype) if lower else logits
        loss = torch.zeros((), device=x.device)
        grad_x = torch.empty_like(x)
        grad_weight, grad_bias = torch.zeros_like(weight), torch.zeros_like(bias)
        parts = zip(x.split(rows), grad_x.split(rows), target[:, None].split(rows), strict=True)
        for x_, grad_x_, target_ in parts:
            n = len(x_)
            product, logits, prob = product[:n], logits[:n], prob[:n]  # the last may be smaller
            torch.mm(x_, factor.t(), out=product)
            if lower:
                logits.copy_(product)
            logits += bias
            torch.softmax(logits, dim=1, out=prob)
            normalizer = logits.amax(1) - prob.amax(1).log()
            loss += normalizer.sum() - logits.gather(1, target_).sum()
            prob.scatter_add_(1, target_, prob.new_full((n, 1), -1.0))
            grad_bias += prob.sum(0)
            grad_logits = product.copy_(prob) if lower else prob
            torch.mm(grad_logits, factor, out=grad_x_)
            if lower:
                grad_weight += grad_logits.t() @ x_
            else:
                grad_weight.addmm_(grad_logits.t(), x_)
        ctx.save_for_backward(grad_x, grad_weight, grad_bias)
        return loss / len(x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        scale = grad / len(ctx.saved_tensors[0])
        return *((saved * scale).to(saved) for saved in ctx.saved_tensors), None
