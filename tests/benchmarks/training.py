"""Training speed beside a nanoGPT-style GPT and `transformers`, alternating in one process.

    python tests/benchmarks/training.py [--size quick|wide] [--precision float32|bfloat16]
                                        [--threads 1] [--rounds 10]

All models of a table have the same width, depth, context, batch, vocabulary and precision (without
`--precision`, the one that training takes here by default; bfloat16 is autocast's), and active
parameters that differ by 3% at most: the experts of OLMoE and Mixtral are SwiGLU, with three
matrices, so 8/3 instead of 4 times as wide inside. All drop no token; dense peers take ReLU, as
ours do, which costs less than GELU; embeddings are untied, dropout is 0. Each takes whole optimizer
steps: loss, gradient, clipping, fused AdamW.

In each round every model takes one step on the same new tokens, so that a busy machine slows them
alike; medians over rounds. A ratio is one of processor seconds, which other work disturbs less than
the clock. FLOP are those of the linear maps, 6 a token and active weight, beside the best rate at
which this run multiplied two square matrices. Exits with 1 if an aim is missed.
"""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import argparse
import dataclasses
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
import transformers
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from models.config import ModelConfig, Precision, quick, reference
from models.optimization import training_precision
from models.transformer import Transformer

ADAMW = {"lr": 1e-4, "fused": True}


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
        by_head = (B, T, self.n_heads, -1)
        q, k, v = (y.view(by_head).transpose(1, 2) for y in self.qkv(self.ln1(x)).split(D, dim=2))
        z = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(z.transpose(1, 2).reshape(B, T, D))
        return x + self.mlp(self.ln2(x))


class PlainGPT(nn.Module):
    """A GPT as nanoGPT writes it: learned positions, fused projection, causal kernel, pre-norm."""

    def __init__(self, cfg: ModelConfig) -> None:
        super().__init__()
        self.embed = nn.Embedding(cfg.d_vocab, cfg.d_model)
        self.position = nn.Parameter(torch.randn(cfg.n_ctx, cfg.d_model))
        self.blocks = nn.Sequential(
            *(PlainBlock(cfg.d_model, cfg.n_heads) for _ in range(cfg.n_layers))
        )
        self.ln = nn.LayerNorm(cfg.d_model)
        self.unembed = nn.Linear(cfg.d_model, cfg.d_vocab, bias=False)

    def forward(self, token: Tensor) -> Tensor:
        return self.unembed(self.ln(self.blocks(self.embed(token) + self.position)))


def gpt2(cfg: ModelConfig) -> nn.Module:
    """GPT-2 of `transformers`."""
    config = transformers.GPT2Config(
        vocab_size=cfg.d_vocab, n_positions=cfg.n_ctx, n_embd=cfg.d_model, n_layer=cfg.n_layers,
        n_head=cfg.n_heads, activation_function="relu", resid_pdrop=0, embd_pdrop=0, attn_pdrop=0,
        tie_word_embeddings=False, use_cache=False, bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    return transformers.GPT2LMHeadModel(config)


def mixture(name: str, cfg: ModelConfig) -> nn.Module:
    """OLMoE or Mixtral of `transformers`, experts in every block, with its default kernels."""
    sizes = {
        "vocab_size": cfg.d_vocab,
        "max_position_embeddings": cfg.n_ctx,
        "hidden_size": cfg.d_model,
        "intermediate_size": 8 * round(cfg.d_model / 3),  # rows of whole 16-byte blocks
        "num_hidden_layers": cfg.n_layers,
        "num_attention_heads": cfg.n_heads,
        "num_key_value_heads": cfg.n_heads,
        "num_experts_per_tok": cfg.top_k,
        "use_cache": False,
    }
    tokens = {"pad_token_id": None, "bos_token_id": 0, "eos_token_id": 0}
    if name == "OLMoE":
        config = transformers.OlmoeConfig(num_experts=cfg.n_experts, **sizes, **tokens)
        return transformers.OlmoeForCausalLM(config)
    config = transformers.MixtralConfig(num_local_experts=cfg.n_experts, **sizes, **tokens)
    return transformers.MixtralForCausalLM(config)


@dataclass
class Contender:
    """A model in training, and how long its steps took."""

    name: str
    model: nn.Module
    active: int  # parameters that a token's prediction uses
    step: Callable[[Tensor], None]
    seconds: list[float] = dataclasses.field(default_factory=list)
    processor_seconds: list[float] = dataclasses.field(default_factory=list)


def contender(name: str, model: nn.Module, cfg: ModelConfig, precision: Precision) -> Contender:
    """A model with its optimizer; ours as `models.optimization` trains it."""
    optimizer = torch.optim.AdamW(model.parameters(), **ADAMW)
    n_parameters = sum(p.numel() for p in model.parameters())
    experts = [p for key, p in model.named_parameters() if ".experts." in key]
    unused = sum(p.numel() for p in experts) * (1 - cfg.top_k / cfg.n_experts) if experts else 0

    def loss(inputs: Tensor, target: Tensor) -> Tensor:
        if isinstance(model, Transformer):
            return model(inputs, target) + 0.0625 * model.balance_loss
        out = model(inputs)
        logits = out if isinstance(out, Tensor) else out.logits
        return F.cross_entropy(logits.float().flatten(0, 1), target.flatten())

    def step(tokens: Tensor) -> None:
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bfloat16"):
            of_batch = loss(tokens[:, :-1], tokens[:, 1:])
        of_batch.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 0.9)
        optimizer.step()

    return Contender(name, model, n_parameters - int(unused), step)


def compare(
    contenders: list[Contender], cfg: ModelConfig, batch: int, precision: Precision, rounds: int
) -> float:
    """Let all take a step in each round, the first to warm up; return the best FLOP/s of a product.

    Also multiplies two square matrices in each round.
    """
    a, b = torch.randn(2, 1536, 1536).to(getattr(torch, precision))
    best = 0.0
    for round_ in range(rounds + 1):
        tokens = torch.randint(0, cfg.d_vocab, (batch, cfg.n_ctx + 1))
        for one in contenders:
            start, start_processor = time.perf_counter(), time.process_time()
            one.step(tokens)
            if round_:
                one.processor_seconds.append(time.process_time() - start_processor)
                one.seconds.append(time.perf_counter() - start)
        start_processor = time.process_time()
        a @ b
        best = max(best, 2 * 1536**3 / (time.process_time() - start_processor))
    return best


def ratio(one: Contender, other: Contender) -> float:
    """How many times as fast `one` is."""
    pairs = zip(other.processor_seconds, one.processor_seconds, strict=True)
    return statistics.median(theirs / ours for theirs, ours in pairs)


def sizes(name: str) -> tuple[ModelConfig, ModelConfig, int]:
    """A dense model, an MoE, and sequences in a batch."""
    if name == "quick":
        by_arm = {run.arm: run.model for run in quick().runs}
        return by_arm["dense"], by_arm["switch"], quick().train.batch_size
    dense = ModelConfig(d_model=1100, n_layers=2, n_heads=11, n_ctx=840, d_vocab=2048)
    moe = dataclasses.replace(
        dense, d_model=792, router="switch", moe_layers=(1,), n_experts=8, top_k=1
    )
    return dense, moe, reference().train.batch_size


def matmul_share(one: Contender, cfg: ModelConfig, n_tokens: int, best: float) -> float:
    """FLOP/s of the linear maps as a share of `best`; looking up embeddings takes none."""
    looked_up = cfg.d_vocab * cfg.d_model
    flops = 6 * (one.active - looked_up) * n_tokens
    return flops / statistics.median(one.processor_seconds) / best


def show(
    title: str, contenders: list[Contender], cfg: ModelConfig, batch: int, best: float
) -> None:
    n_tokens = batch * cfg.n_ctx
    table = Table(title=title)
    headings = (
        "active parameters",
        "tokens/s",
        "tokens/processor s",
        "speed",
        "share of best matmul",
    )
    table.add_column("model")
    for heading in headings:
        table.add_column(heading, justify="right")
    for one in contenders:
        table.add_row(
            one.name,
            f"{one.active:,}",
            f"{n_tokens / statistics.median(one.seconds):,.0f}",
            f"{n_tokens / statistics.median(one.processor_seconds):,.0f}",
            f"{ratio(one, contenders[0]):.2f}",
            f"{matmul_share(one, cfg, n_tokens, best):.0%}",
        )
    Console(width=120).print(table)


def dense_aims(size: str, precision: Precision, rounds: int) -> dict[str, tuple[float, float]]:
    """Run and show the dense models; for each aim its name, the ratio found, the least."""
    cfg, _, batch = sizes(size)
    models = {
        "dense": Transformer(cfg),
        "nanoGPT-style": PlainGPT(cfg),
        "GPT-2 (transformers)": gpt2(cfg),
    }
    found = [contender(n, m, cfg, precision) for n, m in models.items()]
    best = compare(found, cfg, batch, precision, rounds)
    show(f"{size}, {precision}: dense, width {cfg.d_model}", found, cfg, batch, best)
    return {"dense / nanoGPT-style": (ratio(*found[:2]), 1.1)}


def moe_aims(size: str, precision: Precision, rounds: int) -> dict[str, tuple[float, float]]:
    """The same of models with experts, and of a dense one of the same active FLOP."""
    _, cfg, batch = sizes(size)
    dense = dataclasses.replace(cfg, router=None, moe_layers=(), n_experts=0, top_k=0)
    everywhere = dataclasses.replace(cfg, moe_layers=tuple(range(cfg.n_layers)))
    models = {
        "dense": Transformer(dense),
        "switch, every other block": Transformer(cfg),
        "switch, every block": Transformer(everywhere),
        "OLMoE (transformers)": mixture("OLMoE", cfg),
        "Mixtral (transformers)": mixture("Mixtral", cfg),
    }
    found = [contender(n, m, cfg, precision) for n, m in models.items()]
    best = compare(found, cfg, batch, precision, rounds)
    show(f"{size}, {precision}: 8 experts, top 1, width {cfg.d_model}", found, cfg, batch, best)
    dense_, switch, switch_everywhere, olmoe, mixtral = found
    return {
        "switch / dense of the same active FLOP": (ratio(switch, dense_), 0.85),
        "switch / OLMoE, experts in every block": (ratio(switch_everywhere, olmoe), 1.5),
        "switch / Mixtral, experts in every block": (ratio(switch_everywhere, mixtral), 1.5),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", choices=("quick", "wide"), default="quick")
    parser.add_argument("--precision", choices=("float32", "bfloat16"))
    parser.add_argument("--threads", type=int, default=1, help="of one run, as the presets have it")
    parser.add_argument("--rounds", type=int, default=10)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    precision = args.precision or training_precision(torch.device("cpu"))
    Console().print(
        f"torch {torch.__version__}, transformers {transformers.__version__}, {precision}, "
        f"{args.threads} threads"
    )
    missed = False
    for measure in (dense_aims, moe_aims):
        for name, (found, least) in measure(args.size, precision, args.rounds).items():
            missed |= found < least
            Console().print(f"{name}: {found:.2f}, {least} or more is the aim")
    sys.exit(int(missed))


if __name__ == "__main__":
    main()
