"""The instrument protocol, and one pass over the probe set with any number of instruments attached.

A probe names the hooks it reads and records what passes; its hook returns nothing, so it cannot
change the forward pass. It knows hook names only, so it reads any `HookedRootModule` of this
project and any model booted with TransformerLens' bridge.
"""

from collections.abc import Callable, Sequence
from typing import Any, Protocol, runtime_checkable

import torch
import xarray as xr
from jaxtyping import Int
from torch import Tensor

# Of a forward pass: many, for what probes take each time, and few, for the memory of their logits.
TOKENS_AT_ONCE = 2**13


@runtime_checkable
class Probe(Protocol):
    """A read-only instrument for one group of the store.

    `record` is called once for every matching hook and batch, batches in order; what it keeps it
    leaves on the device, or hands to `to_host`. `collect` is called after the pass and returns
    everything since the last `collect`, labelled as `store.schema` says, without `step`.
    """

    group: str

    def matches(self, hook_name: str) -> bool: ...

    def record(self, tensor: Tensor, hook_name: str) -> None: ...

    def collect(self) -> xr.Dataset: ...


def observe(
    model: Any,
    tokens: Int[Tensor, "sequence pos"],
    probes: Sequence[Probe],
    *,
    n_batches: int | None = None,
) -> dict[str, xr.Dataset]:
    """Run the model once over the probe set and return what each probe saw, by group.

    The pass is in eval mode, without gradients, in the precision of the weights (no autocast);
    the model is left in the mode it was in.

    Parameters
    ----------
    model : a `HookedRootModule` or a TransformerLens bridge.
    tokens : input token ids (sequence, pos), on any device.
    probes : instruments, one for each group.
    n_batches : number of forward passes, `n_passes` if None. Ranks that share a model must all make
        as many.

    An exception on the way leaves part of a pass in the probes: make new ones.

    Raises
    ------
    ValueError
        If two probes record the same group, or a probe matches no hook of the model.
    """
    groups = [probe.group for probe in probes]
    if len(set(groups)) != len(groups):
        raise ValueError(f"two probes record the same group: {groups}; give one for each")
    hooks = []
    for probe in probes:
        names = [name for name in model.hook_dict if probe.matches(name)]
        if not names:
            raise ValueError(
                f"the probe for {probe.group!r} matches no hook of {type(model).__name__}; "
                "leave it out for this model"
            )
        hooks += [(name, _recording(probe, name)) for name in names]

    device = next(model.parameters()).device
    was_training = model.training
    model.eval()
    try:
        with (
            torch.no_grad(),
            torch.autocast(device.type, enabled=False),
            model.hooks(fwd_hooks=hooks),
        ):
            for batch in tokens.tensor_split(n_batches or n_passes(*tokens.shape)):
                model(batch.to(device))
    finally:
        model.train(was_training)
    if device.type != "cpu":
        torch.accelerator.synchronize(device)  # what `to_host` began is there now
    return {probe.group: probe.collect() for probe in probes}


def n_passes(n_sequences: int, n_pos: int) -> int:
    """Forward passes over so many sequences: as few as take `TOKENS_AT_ONCE` tokens at most."""
    return -(-n_sequences // max(1, TOKENS_AT_ONCE // n_pos))


def to_host(tensor: Tensor) -> Tensor:
    """The tensor in the CPU's memory by the end of the pass: a GPU computes on while it copies."""
    return tensor.to("cpu", non_blocking=True)


def _recording(probe: Probe, hook_name: str) -> Callable[..., None]:
    """A hook that records under the name asked for: a bridge fires aliases under another."""

    def hook_function(tensor: Tensor, hook: Any) -> None:
        probe.record(tensor, hook_name)

    return hook_function


def spread_positions(n_ctx: int, n_positions: int) -> list[int]:
    """The middles of `n_positions` equal stretches of a sequence, where large things are recorded.

    Raises
    ------
    ValueError
        If there are more than the sequence has.
    """
    if n_positions > n_ctx:
        raise ValueError(f"{n_positions} positions in a sequence of {n_ctx}; use {n_ctx} or fewer")
    return [(2 * i + 1) * n_ctx // (2 * n_positions) for i in range(n_positions)]
