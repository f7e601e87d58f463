"""The type that products of activations and weights are made in."""

import torch
from torch import Tensor


def product_dtype(x: Tensor) -> torch.dtype:
    """Of products with `x`: autocast's where it is enabled, else its own."""
    device = x.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype
