"""Mixture of experts: a router sends each token to `top_k` of `n_experts` MLPs.

Three routers, one layer:

* "switch" [1]_: ``y = sum_i p_i(x) E_i(x)`` over the chosen i; the gate p carries the gradient of
  the language-model loss to the router. Input jitter of 1% in training.
* "ungated": ``y = sum_i E_i(x)``; the choice is the router's but the output is not scaled by it, so
  that only the balancing loss trains the router. 1% noise on the logits in training; experts
  start at 1/16 of the usual scale.
* "hash" [2]_: a fixed random map from token id to expert, balanced over ids; nothing is learned.

Balancing loss of a layer [1]_: ``E * sum_i f_i P_i``, f_i the share of choices that fell on expert
i (no gradient), P_i its mean probability; 1 at uniform load, E when one expert takes all.

Shapes: N = batch * pos tokens, K = top_k, E = experts, D = d_model, F = d_mlp.

References
----------
.. [1] Fedus et al. (2022), Switch Transformers, arXiv:2101.03961.
.. [2] Roller et al. (2021), Hash Layers, arXiv:2106.04426.
"""

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformer_lens.hook_points import HookPoint

from models.config import ModelConfig
from models.distributed import mean_over_ranks, n_ranks, own_rows, sum_before
from models.precision import product_dtype

UNGATED_INIT_SCALE = 0.0625
ROUTER_NOISE = 0.01
# A CPU compiles its bfloat16 products anew for each number of rows, for longer than it multiplies;
# experts get multiples of this, so that few numbers occur.
ROWS = 64


class Router(nn.Module):
    """Chooses experts: hooks carry TransformerLens' names and shapes for a router.

    `hook_out` are logits whose softmax is the distribution before top-k, in float32.
    """

    expert_of_token: Int[Tensor, "d_vocab"]

    def __init__(self, cfg: ModelConfig) -> None:
        super().__init__()
        assert cfg.router is not None
        self.kind, self.top_k, self.n_experts = cfg.router, cfg.top_k, cfg.n_experts
        if self.kind == "hash":
            balanced = torch.arange(cfg.d_vocab) % cfg.n_experts
            self.register_buffer("expert_of_token", balanced[torch.randperm(cfg.d_vocab)])
        else:
            self.linear = nn.Linear(cfg.d_model, cfg.n_experts, bias=cfg.router_bias)
        if self.kind == "switch":
            _truncated_normal_(self.linear.weight, fan_in=cfg.d_model)
        self.hook_out = HookPoint()  # [batch*pos, expert]

    def forward(
        self, x: Float[Tensor, "N D"], token: Int[Tensor, "N"]
    ) -> tuple[Float[Tensor, "N E"], Int[Tensor, "N K"]]:
        """Router distribution and chosen experts, best first."""
        if self.kind == "hash":
            chosen = F.one_hot(self.expert_of_token[token], self.n_experts).bool()
            logits = torch.where(chosen, 0.0, -torch.inf)
        else:
            logits = self._logits(x)
        prob = self.hook_out(logits).softmax(dim=-1)
        return prob, prob.topk(self.top_k, dim=-1).indices

    def _logits(self, x: Float[Tensor, "N D"]) -> Float[Tensor, "N E"]:
        with torch.autocast(x.device.type, enabled=False):
            x = x.float()
            if self.training and self.kind == "switch":
                x = x * _noise_like(x)
            logits = self.linear(x)
            if self.training and self.kind == "ungated":
                logits = logits * _noise_like(logits)
        return logits


class Experts(nn.Module):
    """`n_experts` two-layer ReLU MLPs, weights stacked so that one grouped product serves all."""

    def __init__(self, cfg: ModelConfig) -> None:
        super().__init__()
        E, D, H = cfg.n_experts, cfg.d_model, cfg.d_mlp
        self.w_in = nn.Parameter(torch.empty(E, D, H))
        self.b_in = nn.Parameter(torch.empty(E, H))
        self.w_out = nn.Parameter(torch.empty(E, H, D))
        self.b_out = nn.Parameter(torch.empty(E, D))
        with torch.no_grad():
            for weight, bias, fan_in in ((self.w_in, self.b_in, D), (self.w_out, self.b_out, H)):
                if cfg.router == "switch":
                    _truncated_normal_(weight, fan_in=fan_in)
                    bias.zero_()
                    continue
                scale = UNGATED_INIT_SCALE if cfg.router == "ungated" else 1.0
                weight.uniform_(-1, 1).mul_(scale / math.sqrt(fan_in))
                bias.uniform_(-1, 1).mul_(scale / math.sqrt(fan_in))

    def forward(
        self, x: Float[Tensor, "M D"], expert: Int[Tensor, "M"], counts: Int[Tensor, "E"]
    ) -> Float[Tensor, "M D"]:
        """Apply expert `expert[m]` to row m; rows are sorted by expert, `counts` rows for each."""
        dtype = product_dtype(x)
        # products with a one-hot matrix gather biases, and sum their gradients
        x, member = x.to(dtype), F.one_hot(expert, len(counts)).to(dtype)
        ends = counts.cumsum(0).to(torch.int32)
        # in place: what is added needs no array of its own, neither here nor for the gradient
        hidden = F.grouped_mm(x, self.w_in.to(dtype), offs=ends)
        hidden = hidden.addmm_(member, self.b_in.to(dtype)).relu_()
        out = F.grouped_mm(hidden, self.w_out.to(dtype), offs=ends)
        return out.addmm_(member, self.b_out.to(dtype))


class MoE(nn.Module):
    """Router and experts in place of an MLP.

    `balance_loss` holds the balancing loss of the last forward pass (0 for a hash router).
    """

    def __init__(self, cfg: ModelConfig) -> None:
        super().__init__()
        self.cfg = cfg
        self.gate = Router(cfg)
        self.experts = Experts(cfg)
        self.balance_loss: Tensor = torch.zeros(())
        self.hook_in = HookPoint()  # [batch, pos, d_model]
        self.hook_expert_indices = HookPoint()  # [batch*pos, top_k]
        self.hook_expert_weights = HookPoint()  # [batch*pos, expert], 0 where not chosen
        self.hook_out = HookPoint()  # [batch, pos, d_model]

    def forward(
        self, x: Float[Tensor, "batch pos d_model"], token: Int[Tensor, "batch pos"]
    ) -> Float[Tensor, "batch pos d_model"]:
        flat = self.hook_in(x).flatten(0, 1)
        prob, index = self.gate(flat, token.flatten())
        index = self.hook_expert_indices(index)
        weight = prob if self.cfg.router == "switch" else torch.ones_like(prob)
        chosen = torch.zeros_like(prob).scatter(1, index, 1.0)
        weight = self.hook_expert_weights(weight * chosen)
        if self.training:
            self.balance_loss = self._balance_loss(prob, chosen)
        counts = chosen.sum(0).long()  # `bincount` would make a GPU wait for the CPU
        return self.hook_out(self._mix(flat, index, weight, counts).view_as(x))

    def _balance_loss(self, prob: Float[Tensor, "N E"], chosen: Float[Tensor, "N E"]) -> Tensor:
        if self.cfg.router == "hash":
            return prob.new_zeros(())
        load = mean_over_ranks(chosen.mean(0)) / self.cfg.top_k
        return self.cfg.n_experts * (load * prob.mean(0)).sum()

    def _mix(
        self,
        x: Float[Tensor, "N D"],
        index: Int[Tensor, "N K"],
        weight: Float[Tensor, "N E"],
        counts: Int[Tensor, "E"],
    ) -> Float[Tensor, "N D"]:
        """Sum of the chosen experts' outputs, each times its weight."""
        K = index.shape[1]
        order = index.flatten().argsort(stable=True)  # slots by expert, then by token
        row = torch.empty_like(order).scatter(0, order, torch.arange(len(order), device=x.device))
        expert, token = index.flatten()[order], order // K  # of each row
        weight = weight.gather(1, index)
        if self.training and self.cfg.capacity_factor is not None:
            weight = weight * self._within_capacity(expert, counts)[row].view_as(weight)
        dtype = product_dtype(x)
        if K == 1:  # half the bytes to move; of several slots the gradients are added in float32
            x = x.to(dtype)
        if x.device.type == "cpu" and dtype != torch.float32:
            row, token, expert, counts = _filled_up(row, token, expert, counts)
        out = self.experts(x.index_select(0, token), expert, counts).index_select(0, row)
        out = out.view(*index.shape, -1).float() * weight[:, :, None]
        return out.squeeze(1) if K == 1 else out.sum(1)

    def _within_capacity(
        self, expert: Int[Tensor, "M"], counts: Int[Tensor, "E"]
    ) -> Float[Tensor, "M"]:
        """1 for the first `capacity` tokens of each expert, 0 for what overflows."""
        assert self.cfg.capacity_factor is not None
        n_slots = len(expert) * n_ranks()
        capacity = math.ceil(self.cfg.capacity_factor * n_slots / self.cfg.n_experts)
        before = sum_before(counts) - (counts.cumsum(0) - counts)
        place = torch.arange(len(expert), device=expert.device) + before[expert]
        return (place < capacity).float()


def _filled_up(
    row: Int[Tensor, "M"],
    token: Int[Tensor, "M"],
    expert: Int[Tensor, "M"],
    counts: Int[Tensor, "E"],
) -> tuple[Int[Tensor, "M"], Int[Tensor, "R"], Int[Tensor, "R"], Int[Tensor, "E"]]:
    """Row of each slot, token and expert of each row, rows of each expert: multiples of `ROWS`.

    A row that fills up holds any token; no slot reads it.
    """
    room = (counts + ROWS - 1) // ROWS * ROWS
    shift = (room - counts).cumsum(0) - (room - counts)
    place = torch.arange(len(row)) + shift[expert]
    token, expert = (
        of_row.new_zeros(int(room.sum())).index_copy(0, place, of_row) for of_row in (token, expert)
    )
    return place[row], token, expert, room


def _noise_like(x: Tensor) -> Tensor:
    """Noise for the rows of the whole batch, of which it takes those of this rank."""
    whole = x.new_empty(len(x) * n_ranks(), *x.shape[1:])
    return whole.uniform_(1 - ROUTER_NOISE, 1 + ROUTER_NOISE)[own_rows(len(whole))]


def _truncated_normal_(weight: Tensor, *, fan_in: int) -> None:
    """Switch initialization: sd sqrt(0.1 / fan_in), nothing beyond two of them."""
    sd = math.sqrt(0.1 / fan_in)
    nn.init.trunc_normal_(weight, std=sd, a=-2 * sd, b=2 * sd)
