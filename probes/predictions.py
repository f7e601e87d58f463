"""What the model predicts: its whole distribution over the next token, at a few positions.

A per-token loss is one number out of that distribution. Two models may agree on it and disagree on
all the rest, which a divergence of the distributions sees. They are large, hence a sub-sample:
a few positions of every sequence, so that every document has its part in an interval. Logarithms
are kept in float16, which leaves an error of at most 0.2% in a probability above e^-8 and of 0.4%
above e^-16; probabilities themselves would vanish below 6e-8.
"""

from collections.abc import Sequence

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from probes.base import to_host


class PredictionProbe:
    """Records ln softmax(logits) at chosen positions of every sequence.

    Parameters
    ----------
    positions : positions in a sequence, ascending.

    Raises
    ------
    ValueError
        If there is none.
    """

    group = "predictions"

    def __init__(self, positions: Sequence[int]) -> None:
        if not len(positions):
            raise ValueError(
                "no position to record predictions at; give one or leave the probe out"
            )
        self._positions = np.asarray(positions)
        self._log_probs: list[Tensor] = []

    def matches(self, hook_name: str) -> bool:
        return hook_name == "unembed.hook_out"

    def record(self, tensor: Tensor, hook_name: str) -> None:
        positions = torch.from_numpy(self._positions).to(tensor.device)
        log_prob = tensor.index_select(1, positions).float().log_softmax(dim=-1)
        self._log_probs.append(to_host(log_prob.half()))

    def collect(self) -> xr.Dataset:
        """`log_prob (sequence, pos, d_vocab)`, float16, nats, with the chosen `pos`."""
        log_prob = torch.cat(self._log_probs).numpy()
        self._log_probs = []
        return xr.Dataset(
            {"log_prob": (("sequence", "pos", "d_vocab"), log_prob)},
            coords={"pos": self._positions},
        )
