"""Activations at chosen sites of the residual stream, at a few positions of every sequence.

They are large, hence a sub-sample; a few positions of every sequence rather than all of a few, so
that every document has its part in an interval. In float16.
"""

import re
from collections import defaultdict
from collections.abc import Sequence

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from probes.base import to_host
from store.schema import ACTIVATION_SITES


class ActivationProbe:
    """Records `blocks.{layer}.hook_{site}` for the chosen sites and positions.

    Parameters
    ----------
    sites : names of `store.schema.ACTIVATION_SITES`.
    positions : positions in a sequence, ascending.

    Raises
    ------
    ValueError
        For an unknown site, or no site or position at all.
    """

    group = "activations"

    def __init__(self, sites: Sequence[str], positions: Sequence[int]) -> None:
        unknown = sorted(set(sites) - set(ACTIVATION_SITES))
        if unknown or not sites or not len(positions):
            raise ValueError(
                f"sites {list(sites)} and {len(positions)} positions: give at least one of each, "
                f"sites from {', '.join(ACTIVATION_SITES)}"
            )
        self._positions = np.asarray(positions)
        self._hook = re.compile(rf"blocks\.(\d+)\.hook_({'|'.join(sites)})")
        self._sites = tuple(sites)
        self._seen: dict[tuple[str, int], list[Tensor]] = defaultdict(list)

    def matches(self, hook_name: str) -> bool:
        return self._hook.fullmatch(hook_name) is not None

    def record(self, tensor: Tensor, hook_name: str) -> None:
        match = self._hook.fullmatch(hook_name)
        assert match is not None
        positions = torch.from_numpy(self._positions).to(tensor.device)
        self._seen[match[2], int(match[1])].append(
            to_host(tensor.index_select(1, positions).half())
        )

    def collect(self) -> xr.Dataset:
        """One variable a site, (layer, sequence, pos, d_model), with the chosen `pos`."""
        layers = sorted({layer for _, layer in self._seen})
        stacked = {
            site: torch.stack([torch.cat(self._seen[site, layer]) for layer in layers]).numpy()
            for site in self._sites
        }
        self._seen.clear()
        dims = ("layer", "sequence", "pos", "d_model")
        return xr.Dataset(
            {site: (dims, array) for site, array in stacked.items()},
            coords={"layer": layers, "pos": self._positions},
        )
