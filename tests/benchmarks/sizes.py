"""Sizes at which training is measured."""

import dataclasses

from models.config import ModelConfig, quick, reference


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
