"""What benchmarks of training share: sizes, tokens drawn at random to train on, a clock."""

import dataclasses
import time
from collections.abc import Callable

import numpy as np
import torch

from models.config import (
    ModelConfig,
    RunConfig,
    quick,
    reference,
    reference_dense,
    reference_moe_switch,
)
from models.data import TokenStream
from models.optimization import Trainer, training_precision

WARM_UP = 12  # steps in which memory grows and products are compiled


def sizes(name: str) -> tuple[ModelConfig, ModelConfig, int]:
    """A dense model, an MoE, and sequences in a batch."""
    if name == "quick":
        by_arm = {run.arm: run.model for run in quick().runs}
        return by_arm["dense"], by_arm["switch"], quick().train.batch_size
    dense = dataclasses.replace(reference_dense(), n_layers=2)
    moe = dataclasses.replace(reference_moe_switch(), n_layers=2, moe_layers=(1,))
    return dense, moe, reference().train.batch_size


def trainer_of(run: RunConfig, *, batch_size: int) -> Trainer:
    """A run as the study `quick` trains it, on a CPU, in the precision that it takes there."""
    cpu, n_ctx = torch.device("cpu"), run.model.n_ctx
    cfg = dataclasses.replace(
        quick().train, batch_size=batch_size, precision=training_precision(cpu)
    )
    n_tokens = 40 * batch_size * (n_ctx + 1)
    tokens = np.random.default_rng(0).integers(0, run.model.d_vocab, n_tokens).astype(np.uint16)
    stream = TokenStream(tokens, n_ctx=n_ctx, batch_size=batch_size, order_seed=0, max_epochs=10**6)
    return Trainer(run, cfg, stream, device=cpu)


def seconds(do: Callable[[], object]) -> tuple[float, float]:
    """By the clock, and of all processors."""
    wall, processor = time.perf_counter(), time.process_time()
    do()
    return time.perf_counter() - wall, time.process_time() - processor
