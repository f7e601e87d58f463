"""Mean loss of a linear map to logits, with gradients formed where the logits are still in cache.

For logits ``z = W x + b``, probabilities ``p = softmax(z)`` and target y::

    loss = log sum_i exp z_i - z_y,    d loss / d z = p - [i = y]

Rows are taken some at a time: their gradients are added up at once, and neither all logits nor
their gradients ever exist together. ``log sum_i exp z_i = max z - log max p`` saves a second
exponential and cannot overflow.
"""

from typing import Any

import torch
import torch.nn.functional as F
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
        return _MeanLoss.apply(x.to(dtype), weight.to(dtype), bias.to(dtype), target)


class _MeanLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, target: Tensor) -> Tensor:
        in_parts = x.device.type == "cpu" and x.dtype == torch.float32  # others sum less exactly
        rows = max(1, LOGITS_AT_ONCE // len(weight)) if in_parts else len(x)
        loss = torch.zeros((), device=x.device)
        grad_x = torch.empty_like(x)
        grad_weight, grad_bias = torch.zeros_like(weight), torch.zeros_like(bias)
        parts = zip(x.split(rows), grad_x.split(rows), target[:, None].split(rows), strict=True)
        for x_, grad_x_, target_ in parts:
            logits = F.linear(x_, weight, bias).float()
            prob = logits.softmax(dim=1)
            normalizer = logits.amax(1) - prob.amax(1).log()
            loss += normalizer.sum() - logits.gather(1, target_).sum()
            prob.scatter_add_(1, target_, prob.new_full((len(x_), 1), -1.0))
            grad_logits = prob.to(x.dtype)
            torch.mm(grad_logits, weight, out=grad_x_)
            grad_weight.addmm_(grad_logits.t(), x_)
            grad_bias += prob.sum(0)
        ctx.save_for_backward(grad_x, grad_weight, grad_bias)
        return loss / len(x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        scale = grad / len(ctx.saved_tensors[0])
        return *((saved * scale).to(saved) for saved in ctx.saved_tensors), None
