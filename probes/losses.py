"""Per-token cross-entropy, in nats, computed in float32 from the logits.

``loss[s, t] = -ln softmax(logits[s, t])[target[s, t]]`` (Shannon 1948,
doi:10.1002/j.1538-7305.1948.tb01338.x).
"""

import torch
import torch.nn.functional as F
import xarray as xr
from jaxtyping import Int
from torch import Tensor

# Logits looked at together: as many as stay in the cache of a processor, or as fill a GPU.
_TOGETHER = {"cpu": 2**17, "cuda": 2**26}


class LossProbe:
    """Records the loss of every token of the probe set.

    Parameters
    ----------
    target : token id to be predicted at each position (sequence, pos).
    """

    group = "losses"

    def __init__(self, target: Int[Tensor, "sequence pos"]) -> None:
        self._target = target
        self._losses: list[Tensor] = []

    def matches(self, hook_name: str) -> bool:
        return hook_name == "unembed.hook_out"

    def record(self, tensor: Tensor, hook_name: str) -> None:
        n_done = sum(len(loss) for loss in self._losses)
        target = self._target[n_done : n_done + len(tensor)].to(tensor.device)
        n_rows = max(1, _TOGETHER.get(tensor.device.type, 2**26) // tensor.shape[-1])
        losses = [
            F.cross_entropy(logits.float(), expected, reduction="none")
            for logits, expected in zip(
                tensor.flatten(0, 1).split(n_rows), target.flatten().split(n_rows), strict=True
            )
        ]
        self._losses.append(torch.cat(losses).view_as(target))

    def collect(self) -> xr.Dataset:
        """`loss (sequence, pos)`, float32, nats."""
        loss = torch.cat(self._losses).cpu().numpy()
        self._losses = []
        return xr.Dataset({"loss": (("sequence", "pos"), loss)})
