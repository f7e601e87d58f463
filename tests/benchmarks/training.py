"""Training speed beside a nanoGPT-style GPT and `transformers`, a step of each in turn.

    python tests/benchmarks/training.py [--size quick|wide] [--precision float32|bfloat16]
                                        [--threads 1] [--rounds 10] [--warm-up 12] [--same-memory]

All models of a table have the same width, depth, context, batch, vocabulary and precision (without
`--precision`, the one that training takes here by default; bfloat16 is autocast's), and active
parameters that differ by 3% at most: the experts of OLMoE and Mixtral are SwiGLU, with three
matrices, so 8/3 instead of 4 times as wide inside. All drop no token; dense peers take ReLU, as
ours do, which costs less than GELU; embeddings are untied, dropout is 0. Each takes whole optimizer
steps: loss, gradient, clipping, fused AdamW.

Each model has a process of its own. Ours keep freed memory, as in training; peers do with
`--same-memory`. In each round every model of a table takes one step on the same new tokens, so that
a busy machine slows them alike; medians over rounds after those of the warm-up, in which memory
grows and products are compiled. A ratio is one of processor seconds, which other work disturbs less
than the clock. FLOP are those of the linear maps, 6 a token and active weight, beside the best rate
at which this run multiplied two square matrices. Exits with 1 if an aim is missed.
"""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import argparse
import dataclasses
import functools
import statistics
import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context

import torch
import torch.nn.functional as F
import transformers
from peers import PlainGPT, gpt2, mixture
from rich.console import Console
from rich.table import Table
from sizes import WARM_UP, seconds, sizes
from torch import Tensor, nn

from models.config import ModelConfig, Precision
from models.memory import keep_freed_memory
from models.optimization import training_precision
from models.transformer import Transformer

Build = Callable[[ModelConfig], nn.Module]
Aims = dict[str, tuple[float, float]]  # by name: the ratio found, and the least

SWITCH = "switch, every block"
OLMOE, MIXTRAL = "OLMoE (transformers)", "Mixtral (transformers)"


@dataclass(frozen=True)
class Setting:
    """What all models of a table have in common."""

    size: str
    batch: int
    precision: Precision
    threads: int
    rounds: int
    warm_up: int  # rounds before those that count
    peers_keep_memory: bool


class Training:
    """A model with its optimizer; ours as `models.optimization` trains it."""

    def __init__(self, cfg: ModelConfig, build: Build, setting: Setting) -> None:
        torch.set_num_threads(setting.threads)
        if build is Transformer or setting.peers_keep_memory:
            keep_freed_memory()
        torch.manual_seed(0)
        self.cfg, self.setting, self.model = cfg, setting, build(cfg)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-4, fused=True)

    @property
    def n_active(self) -> int:
        """Parameters that a token's prediction uses."""
        sizes = {name: p.numel() for name, p in self.model.named_parameters()}
        of_experts = sum(n for name, n in sizes.items() if ".experts." in name)
        n_unused = of_experts * (1 - self.cfg.top_k / self.cfg.n_experts) if of_experts else 0
        return sum(sizes.values()) - int(n_unused)

    def loss(self, inputs: Tensor, target: Tensor) -> Tensor:
        if isinstance(self.model, Transformer):
            return self.model(inputs, target) + 0.0625 * self.model.balance_loss
        out = self.model(inputs)
        logits = out if isinstance(out, Tensor) else out.logits
        return F.cross_entropy(logits.float().flatten(0, 1), target.flatten())

    def step(self, tokens: Tensor) -> None:
        self.optimizer.zero_grad()
        in_bfloat16 = self.setting.precision == "bfloat16"
        with torch.autocast("cpu", torch.bfloat16, enabled=in_bfloat16):
            loss = self.loss(tokens[:, :-1], tokens[:, 1:])
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 0.9)
        self.optimizer.step()


training: Training  # of this process


def begin(cfg: ModelConfig, build: Build, setting: Setting) -> None:
    global training
    training = Training(cfg, build, setting)


def n_active() -> int:
    return training.n_active


def take_step(seed: int) -> tuple[float, float]:
    """Seconds by the clock, and of all processors."""
    cfg, generator = training.cfg, torch.Generator().manual_seed(seed)
    shape = (training.setting.batch, cfg.n_ctx + 1)
    tokens = torch.randint(0, cfg.d_vocab, shape, generator=generator)
    return seconds(lambda: training.step(tokens))


@dataclass
class Contender:
    """A model in a process of its own, and how long its steps took."""

    cfg: ModelConfig
    process: ProcessPoolExecutor
    n_active: int
    seconds: list[float] = dataclasses.field(default_factory=list)
    processor_seconds: list[float] = dataclasses.field(default_factory=list)


def contender(cfg: ModelConfig, build: Build, setting: Setting) -> Contender:
    process = ProcessPoolExecutor(
        1, mp_context=get_context("spawn"), initializer=begin, initargs=(cfg, build, setting)
    )
    return Contender(cfg, process, process.submit(n_active).result())


def compared(
    title: str, models: dict[str, tuple[ModelConfig, Build]], setting: Setting
) -> dict[str, Contender]:
    """Let all take a step in each round, and show how long they took."""
    found = {name: contender(*model, setting) for name, model in models.items()}
    a, b = torch.randn(2, 1536, 1536).to(getattr(torch, setting.precision))
    best = 0.0  # FLOP/s of a product
    for round_ in range(setting.warm_up + setting.rounds):
        for one in found.values():
            wall, processor = one.process.submit(take_step, round_).result()
            if round_ >= setting.warm_up:
                one.seconds.append(wall)
                one.processor_seconds.append(processor)
        best = max(best, 2 * 1536**3 / seconds(lambda: a @ b)[1])
    for one in found.values():
        one.process.shutdown()
    show(f"{setting.size}, {setting.precision}: {title}", found, setting.batch, best)
    return found


def ratio(one: Contender, other: Contender) -> float:
    """How many times as fast `one` is."""
    pairs = zip(other.processor_seconds, one.processor_seconds, strict=True)
    return statistics.median(theirs / ours for theirs, ours in pairs)


def matmul_share(one: Contender, n_tokens: int, best: float) -> float:
    """FLOP/s of the linear maps as a share of `best`; looking up embeddings takes none."""
    looked_up = one.cfg.d_vocab * one.cfg.d_model
    flops = 6 * (one.n_active - looked_up) * n_tokens
    return flops / statistics.median(one.processor_seconds) / best


def show(title: str, contenders: dict[str, Contender], batch: int, best: float) -> None:
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
    first = next(iter(contenders.values()))
    for name, one in contenders.items():
        n_tokens = batch * one.cfg.n_ctx
        table.add_row(
            name,
            f"{one.n_active:,}",
            f"{n_tokens / statistics.median(one.seconds):,.0f}",
            f"{n_tokens / statistics.median(one.processor_seconds):,.0f}",
            f"{ratio(one, first):.2f}",
            f"{matmul_share(one, n_tokens, best):.0%}",
        )
    Console(width=120).print(table)


def dense_aims(cfg: ModelConfig, setting: Setting) -> Aims:
    """Dense models."""
    models: dict[str, tuple[ModelConfig, Build]] = {
        "dense": (cfg, Transformer),
        "nanoGPT-style": (cfg, PlainGPT),
        "GPT-2 (transformers)": (cfg, gpt2),
    }
    found = compared(f"dense, width {cfg.d_model}", models, setting)
    return {"dense / nanoGPT-style": (ratio(found["dense"], found["nanoGPT-style"]), 1.1)}


def moe_aims(cfg: ModelConfig, setting: Setting) -> Aims:
    """Models with experts, beside a dense one of the same active FLOP and beside peers."""
    dense = dataclasses.replace(cfg, router=None, moe_layers=(), n_experts=0, top_k=0)
    everywhere = dataclasses.replace(cfg, moe_layers=tuple(range(cfg.n_layers)))
    title = f"8 experts, top 1, width {cfg.d_model}"
    ours: dict[str, tuple[ModelConfig, Build]] = {
        "dense": (dense, Transformer),
        "switch, every other block": (cfg, Transformer),
        SWITCH: (everywhere, Transformer),
    }
    all_with_experts: dict[str, tuple[ModelConfig, Build]] = {
        SWITCH: (everywhere, Transformer),
        OLMOE: (cfg, functools.partial(mixture, "OLMoE")),
        MIXTRAL: (cfg, functools.partial(mixture, "Mixtral")),
    }
    beside_dense = compared(f"{title}, beside dense", ours, setting)
    beside_peers = compared(f"{title}, beside peers", all_with_experts, setting)
    return {
        "switch / dense of the same active FLOP": (
            ratio(beside_dense["switch, every other block"], beside_dense["dense"]),
            0.85,
        ),
        **{
            f"switch / {name}, experts in every block": (
                ratio(beside_peers[SWITCH], beside_peers[name]),
                1.5,
            )
            for name in (OLMOE, MIXTRAL)
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", choices=("quick", "wide"), default="quick")
    parser.add_argument("--precision", choices=("float32", "bfloat16"))
    parser.add_argument("--threads", type=int, default=1, help="of one run, as the presets have it")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument(
        "--warm-up", type=int, default=WARM_UP, help="rounds before those that count"
    )
    parser.add_argument(
        "--same-memory", action="store_true", help="let peers keep freed memory as ours do"
    )
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    precision = args.precision or training_precision(torch.device("cpu"))
    Console().print(
        f"torch {torch.__version__}, transformers {transformers.__version__}, {precision}, "
        f"{args.threads} threads, memory kept by {'all' if args.same_memory else 'ours'}"
    )
    dense, moe, batch = sizes(args.size)
    setting = Setting(
        args.size, batch, precision, args.threads, args.rounds, args.warm_up, args.same_memory
    )
    aims = dense_aims(dense, setting) | moe_aims(moe, setting)
    for name, (found, least) in aims.items():
        Console().print(f"{name}: {found:.2f}, {least} or more is the aim")
    sys.exit(int(any(found < least for found, least in aims.values())))


if __name__ == "__main__":
    main()
