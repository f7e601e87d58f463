"""Tokens a second of our models beside plain PyTorch of the same size, alternating in one process.

    python tests/benchmarks/training.py [--steps 20] [--rounds 5]

The plain model is what a minimal GPT is usually written as: learned positions, one projection for
query, key and value, fused causal attention, pre-norm blocks, no hooks, no windows. Rounds
alternate between models, so that a busy machine slows them alike; figures are medians over rounds
and their ratio to the plain model's.
"""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import argparse
import statistics
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from models.config import ModelConfig, quick
from models.transformer import Transformer, n_active_parameters, n_parameters

BATCH_SIZE = 16


class PlainBlock(nn.Module):
    """Causal attention and a ReLU MLP."""

    def __init__(self, d_model: int, n_heads: int) -> None:
        super().__init__()
        self.n_heads = n_heads
        self.ln1, self.ln2 = nn.LayerNorm(d_model), nn.LayerNorm(d_model)
        self.qkv = nn.Linear(d_model, 3 * d_model)
        self.out = nn.Linear(d_model, d_model)
        self.mlp = nn.Sequential(
            nn.Linear(d_model, 4 * d_model), nn.ReLU(), nn.Linear(4 * d_model, d_model)
        )

    def forward(self, x: Tensor) -> Tensor:
        B, T, D = x.shape
        q, k, v = self.qkv(self.ln1(x)).view(B, T, 3, self.n_heads, -1).permute(2, 0, 3, 1, 4)
        z = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(z.transpose(1, 2).reshape(B, T, D))
        return x + self.mlp(self.ln2(x))


class PlainGPT(nn.Module):
    """Dense decoder of the sizes of a `ModelConfig`."""

    def __init__(self, cfg: ModelConfig) -> None:
        super().__init__()
        self.embed = nn.Embedding(cfg.d_vocab, cfg.d_model)
        self.position = nn.Parameter(torch.randn(cfg.n_ctx, cfg.d_model))
        self.blocks = nn.Sequential(
            *(PlainBlock(cfg.d_model, cfg.n_heads) for _ in range(cfg.n_layers))
        )
        self.ln = nn.LayerNorm(cfg.d_model)
        self.unembed = nn.Linear(cfg.d_model, cfg.d_vocab)

    def forward(self, token: Tensor) -> Tensor:
        return self.unembed(self.ln(self.blocks(self.embed(token) + self.position)))


def training_step(model: nn.Module, tokens: Tensor) -> Callable[[], None]:
    """One optimizer step as training takes it; the balancing loss where the model has one."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)

    def step() -> None:
        logits = model(tokens[:, :-1])
        loss = F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())
        if isinstance(model, Transformer):
            loss = loss + 0.0625 * model.balance_loss
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 0.9)
        optimizer.step()

    return step


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=20, help="steps a round")
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()

    by_arm = {run.arm: run.model for run in quick().runs}
    dense, switch = by_arm["dense"], by_arm["switch"]
    models = {
        "plain PyTorch": PlainGPT(dense),
        "dense": Transformer(dense),
        "switch": Transformer(switch),
    }
    counts = {
        "plain PyTorch": (sum(p.numel() for p in models["plain PyTorch"].parameters()),) * 2,
        "dense": (n_parameters(dense), n_active_parameters(dense)),
        "switch": (n_parameters(switch), n_active_parameters(switch)),
    }
    tokens = torch.randint(0, dense.d_vocab, (BATCH_SIZE, dense.n_ctx + 1))
    steps = {name: training_step(model, tokens) for name, model in models.items()}
    seconds: dict[str, list[float]] = {name: [] for name in models}
    for round_ in range(args.rounds + 1):
        for name, step in steps.items():
            start = time.perf_counter()
            for _ in range(args.steps):
                step()
            if round_ > 0:  # the first round warms up
                seconds[name].append(time.perf_counter() - start)

    n_tokens = args.steps * BATCH_SIZE * dense.n_ctx
    rate = {name: n_tokens / statistics.median(taken) for name, taken in seconds.items()}
    table = Table(
        title=f"training, {torch.get_num_threads()} threads, float32, torch {torch.__version__}"
    )
    for column in ("model", "parameters", "active", "tokens/s", "ratio"):
        table.add_column(column, justify="left" if column == "model" else "right")
    for name, (total, active) in counts.items():
        ratio = rate[name] / rate["plain PyTorch"]
        table.add_row(name, f"{total:,}", f"{active:,}", f"{rate[name]:,.0f}", f"{ratio:.2f}")
    Console().print(table)


if __name__ == "__main__":
    main()
