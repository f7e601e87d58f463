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
from models.distributed import (
    copy_on_first,
    data_parallel,
    from_first,
    from_first_as,
    mean_over_ranks,
    own_rows,
    shard,
    whole,
)
from models.transformer import Transformer


class Trainer:
    """Model, optimizer and place in the stream of one run.

    Parameters
    ----------
    sharded : whether each rank holds a share of the model and not the whole; it is then made in the
        CPU's memory first.
    compiled : whether training passes go through `torch.compile`, which draws other router noise.

    Attributes
    ----------
    step : optimizer steps taken so far.
    model : the model after them.
    stream_hash : chained SHA-256 of every batch seen so far.
    """

    def __init__(
        self,
        run: RunConfig,
        cfg: TrainConfig,
        stream: TokenStream,
        *,
        device: torch.device,
        sharded: bool = False,
        compiled: bool = False,
    ) -> None:
        self.cfg, self.run, self.stream, self.device = cfg, run, stream, device
        self.step = 0
        self.stream_hash = b""
        self.model = Transformer(run.model, seed=run.random_seed)
        if sharded:
            shard(self.model, self.model.blocks, device)
        self.model.to(device)
        # observation goes through the model itself, whose hooks a compiled one would not heed
        in_training = self.model if sharded else data_parallel(self.model)
        self._in_training = torch.compile(in_training) if compiled else in_training
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
            loss = self._in_training(tokens[:, :-1], tokens[:, 1:])
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
            "gradient_norm": whole(norm),
            "tokens_seen": self.step * (batch.size - len(batch)),
            "stream_hash": int.from_bytes(self.stream_hash[:8], "big"),
        }

    def state(self) -> dict[str, Any]:
        """A copy of all that resuming needs, as tensors, numbers and strings only.

        All ranks must ask, the first gets it; it is the same whether they share the model or not.
        """
        optimizer = self.optimizer.state_dict()
        optimizer["state"] = {
            i: {name: copy_on_first(value) for name, value in kept.items()}
            for i, kept in optimizer["state"].items()
        }
        weights = {name: copy_on_first(value) for name, value in self.model.state_dict().items()}
        return {
            "step": self.step,
            "stream_hash": self.stream_hash.hex(),
            "model": weights,
            "optimizer": optimizer,
        }

    def restore(self, state: Mapping[str, Any] | None) -> None:
        """Continue from the `state` of the same run that rank 0 gives; others give None."""
        plain: dict[str, Any] = from_first(_without_tensors(state) if state else {})
        weights = {
            name: from_first_as(state["model"][name] if state else None, own)
            for name, own in self.model.state_dict().items()
        }
        self.model.load_state_dict(weights)
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        kept = {
            i: {
                name: from_first_as(
                    state["optimizer"]["state"][i][name] if state else None,
                    parameters[i] if ndim else torch.empty(()),
                )
                for name, ndim in of_parameter.items()
            }
            for i, of_parameter in plain["kept"].items()
        }
        self.optimizer.load_state_dict({"state": kept, "param_groups": plain["param_groups"]})
        self.step = plain["step"]
        self.stream_hash = bytes.fromhex(plain["stream_hash"])


def _without_tensors(state: Mapping[str, Any]) -> dict[str, Any]:
    """Of tensors that the optimizer keeps for a parameter their dimensions: as its, or none."""
    optimizer = state["optimizer"]
    return {
        "step": state["step"],
        "stream_hash": state["stream_hash"],
        "param_groups": optimizer["param_groups"],
        "kept": {
            i: {name: value.ndim for name, value in of_parameter.items()}
            for i, of_parameter in optimizer["state"].items()
        },
    }


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
