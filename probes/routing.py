"""What the routers of a Mixture-of-Experts model decided for every token.

The router distribution is the softmax of the router's logits over all experts, before top-k [1]_.
A weight is the factor on the chosen expert's output: the gate of a Switch router, 1 where the
output is not scaled.

References
----------
.. [1] Fedus et al. (2022), Switch Transformers, arXiv:2101.03961.
"""

import re
from collections import defaultdict

import torch
import xarray as xr
from torch import Tensor

from probes.base import to_host

_HOOK = re.compile(r"blocks\.(\d+)\.mlp\.(gate\.hook_out|hook_expert_indices|hook_expert_weights)")


class RoutingProbe:
    """Records chosen experts, their weights and the whole router distribution, per MoE layer.

    Parameters
    ----------
    n_pos : positions in a sequence; routers see tokens flattened over batch and position.
    """

    group = "routing"

    def __init__(self, n_pos: int) -> None:
        self._n_pos = n_pos
        self._seen: dict[tuple[int, str], list[Tensor]] = defaultdict(list)

    def matches(self, hook_name: str) -> bool:
        return _HOOK.fullmatch(hook_name) is not None

    def record(self, tensor: Tensor, hook_name: str) -> None:
        match = _HOOK.fullmatch(hook_name)
        assert match is not None
        layer, what = int(match[1]), match[2]
        if what == "gate.hook_out":
            tensor = tensor.float().softmax(dim=-1)
        self._seen[layer, what].append(to_host(tensor.reshape(-1, self._n_pos, tensor.shape[-1])))

    def collect(self) -> xr.Dataset:
        """`expert_index`, `expert_weight` (layer, sequence, pos, top_k) and `router_prob`
        (layer, sequence, pos, expert); the `layer` coordinate names the blocks with experts."""
        layers = sorted({layer for layer, _ in self._seen})

        def stacked(what: str) -> Tensor:
            return torch.stack([torch.cat(self._seen[layer, what]) for layer in layers])

        prob, index = stacked("gate.hook_out"), stacked("hook_expert_indices").long()
        weight = stacked("hook_expert_weights").gather(-1, index)
        self._seen.clear()
        tokens = ("layer", "sequence", "pos")
        return xr.Dataset(
            {
                "expert_index": ((*tokens, "top_k"), index.short().numpy()),
                "expert_weight": ((*tokens, "top_k"), weight.half().numpy()),
                "router_prob": ((*tokens, "expert"), prob.half().numpy()),
            },
            coords={"layer": layers},
        )
