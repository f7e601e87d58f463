"""One model on its way through the token stream: AdamW, linear warm-up and decay, clipping.

Each step is a pure function of the state before it: the batch and the router noise depend on the
step's number and the seeds alone, so resuming needs weights, moments and a number.

Loss minimized: ``cross-entropy + balance_weight * balancing loss`` (Fedus et al. 2022,
arXiv:2101.03961); AdamW: Loshchilov and Hutter (2019), arXiv:1711.05101.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from models.config import Precision, RunConfig, TrainConfig
from models.data import TokenStream, chain_hash
from models.distributed import data_parallel, mean_over_ranks, own_rows
from models.transformer import Transformer


class Trainer:
    """Model, optimizer and place in the stream of one run.

    Attributes
    ----------
    step : optimizer steps taken so far.
    model : the model after them.
    stream_hash : chained SHA-256 of every batch seen so far.
    """

    def __init__(
        self, run: RunConfig, cfg: TrainConfig, stream: TokenStream, *, device: torch.device
    ) -> None:
        self.cfg, self.run, self.stream, self.device = cfg, run, stream, device
        self.step = 0
        self.stream_hash = b""
        self.model = Transformer(run.model, seed=run.random_seed).to(device)
        self._parallel = data_parallel(self.model)
        groups = self.model.parameter_groups(cfg.learning_rate)
        self.optimizer = torch.optim.AdamW(groups, weight_decay=cfg.weight_decay, fused=True)
        self._base_rates = [group["lr"] for group in groups]

    def advance(self) -> dict[str, Tensor | float | int]:
        """Take one step; return its values for the `training` group, tensors not yet synced."""
        batch = self.stream.batch(self.step)
        self.stream_hash = chain_hash(self.stream_hash, batch)
        tokens = torch.from_numpy(batch[own_rows(len(batch))]).to(self.device, non_blocking=True)
        for group, rate in zip(self.optimizer.param_groups, self._base_rates, strict=True):
            group["lr"] = rate * learning_rate_factor(self.step, self.cfg)

        torch.manual_seed(_noise_seed(self.run, self.step))
        self.model.train()
        bf16 = self.cfg.precision == "bfloat16"
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=bf16):
            loss = self._parallel(tokens[:, :-1], tokens[:, 1:])
        balance = self.model.balance_loss
        self.optimizer.zero_grad()
        (loss + self.cfg.balance_weight * balance).backward()
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), self.cfg.gradient_clip)
        self.optimizer.step()
        self.step += 1
        return {
            "train_loss": mean_over_ranks(loss.detach()),
            "balance_loss": mean_over_ranks(balance.detach()),
            "learning_rate": self.optimizer.param_groups[0]["lr"],
            "gradient_norm": norm,
            "tokens_seen": self.step * (batch.size - len(batch)),
            "stream_hash": int.from_bytes(self.stream_hash[:8], "big"),
        }

    def state(self) -> dict[str, Any]:
        """All that resuming needs, as tensors, numbers and strings only."""
        return {
            "step": self.step,
            "stream_hash": self.stream_hash.hex(),
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continue from a `state` of the same run."""
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step = state["step"]
        self.stream_hash = bytes.fromhex(state["stream_hash"])


def learning_rate_factor(step: int, cfg: TrainConfig) -> float:
    """Share of the peak learning rate at `step` (from 0): up over the warm-up, then down."""
    if step < cfg.warmup_steps:
        return (step + 1) / cfg.warmup_steps
    decay = (step - cfg.warmup_steps) / max(1, cfg.n_steps - 1 - cfg.warmup_steps)
    return 1 - (1 - cfg.final_lr_fraction) * decay


def training_precision(device: torch.device) -> Precision:
    """ "bfloat16" where the hardware multiplies it natively, else "float32"."""
    if device.type == "cuda":
        native = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        cpu = torch.cpu.get_capabilities()
        native = device.type == "cpu" and (cpu.get("avx512_bf16") or cpu.get("amx_bf16"))
    return "bfloat16" if native else "float32"


def _noise_seed(run: RunConfig, step: int) -> int:
    return int(np.random.SeedSequence([run.random_seed, step]).generate_state(1)[0])
