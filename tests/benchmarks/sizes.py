"""Sizes at which training is measured, and training on tokens drawn at random."""

import dataclasses

import numpy as np
import torch

from models.config import ModelConfig, RunConfig, quick, reference
from models.data import TokenStream
from models.optimization import Trainer, training_precision


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
