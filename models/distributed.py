"""One run, trained by several processes, its ranks, each of which takes its rows of every batch.

`torchrun` starts the ranks and tells each its number. Without it there is one rank, and every
function here returns what it was given. What depends on the whole batch is asked of all ranks, so
that a step is that of one process but for the order of a sum:

* gradients are the mean over ranks of those of their rows, of which all have equally many;
* the load of an expert, of which the balancing loss is made, is the mean over ranks;
* router noise is drawn for the whole batch, and each rank takes that of its rows;
* an expert's capacity is that of the whole batch, filled in the order of its rows.

Every rank holds the whole model, or where that does not fit a share of it: of each weight, of its
gradient and of what the optimizer keeps [1]_. Then ranks lend each other the weights of a block for
as long as it computes, forward and backward, so that all must make as many passes.

References
----------
.. [1] Rajbhandari et al. (2020), ZeRO, arXiv:1910.02054; Zhao et al. (2023), arXiv:2304.11277.
"""

import os
import signal
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import TYPE_CHECKING, TypeGuard, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

if TYPE_CHECKING:  # elsewhere imported where it is needed: it takes half a second
    from torch.distributed.tensor import DTensor

T = TypeVar("T")
_FROM_TORCHRUN = {"RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"}


def rank() -> int:
    """Number of this process among the ranks of its run, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def n_ranks() -> int:
    """Number of processes that train one run together."""
    return dist.get_world_size() if dist.is_initialized() else 1


def launched() -> bool:
    """Whether torchrun started this process."""
    return os.environ.keys() >= _FROM_TORCHRUN


def own_device(device: torch.device) -> torch.device:
    """The device of this rank: of a machine's GPUs, that of the rank's number on the machine."""
    if launched() and device.type == "cuda":
        return torch.device("cuda", int(os.environ["LOCAL_RANK"]))
    return device


@contextmanager
def joined_ranks(device: torch.device) -> Iterator[None]:
    """Be one of the ranks that torchrun started, within the block; alone if it did not.

    A request to terminate, as torchrun sends when another rank has failed, is an interrupt.

    Raises
    ------
    OSError
        If another rank ends or cannot be reached.
    """
    if not launched():
        yield
        return
    signal.signal(signal.SIGTERM, _interrupt)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    dist.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo")
    try:
        yield
    except RuntimeError as error:
        if not (isinstance(error, dist.DistError) or "gloo" in str(error)):
            raise
        reason = str(error).splitlines()[0]
        raise OSError(f"another rank has ended or cannot be reached ({reason})") from error
    dist.destroy_process_group()


def _interrupt(signum: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def data_parallel(model: nn.Module) -> nn.Module:
    """The model to train through: it averages gradients over ranks, in place."""
    if n_ranks() == 1:
        return model
    return DistributedDataParallel(model, forward_sync_buffers=False, gradient_as_bucket_view=True)


def shard(model: nn.Module, parts: Iterable[nn.Module], device: torch.device) -> None:
    """Leave each rank its share of the model, in place, on its device.

    Parameters
    ----------
    parts : modules whose weights are lent whole, one after another; the model's others stay whole
        between its forward and backward pass.
    """
    from torch.distributed.fsdp import fully_shard

    mesh = dist.init_device_mesh(device.type, (n_ranks(),))
    for part in (*parts, model):
        fully_shard(part, mesh=mesh)


def whole(value: Tensor) -> Tensor:
    """The whole of a tensor of which ranks hold shares, on every rank; of any other, itself."""
    return value.full_tensor() if _is_shared(value) else value


def copy_on_first(value: Tensor) -> Tensor:
    """A copy in the CPU's memory on rank 0, whole where ranks hold shares; nothing on others."""
    value = whole(value.detach())
    return value.to("cpu", copy=True) if rank() == 0 else value.new_empty(0)


def from_first_as(value: Tensor | None, own: Tensor) -> Tensor:
    """The tensor that rank 0 gives; where ranks hold shares of `own`, this rank's share of it."""
    if not _is_shared(own):
        given = from_first(value)
        assert given is not None
        return given
    from torch.distributed.tensor import distribute_tensor

    if value is None:
        value = torch.empty(own.shape, dtype=own.dtype, device=own.device)
    return distribute_tensor(value.to(own.device), own.device_mesh, own.placements)


def _is_shared(value: Tensor) -> "TypeGuard[DTensor]":
    if not dist.is_initialized():
        return False
    from torch.distributed.tensor import DTensor

    return isinstance(value, DTensor)


def own_rows(n: int) -> slice:
    """Which of `n` rows are this rank's: consecutive, as many for each rank, or one more."""
    return slice(n * rank() // n_ranks(), n * (rank() + 1) // n_ranks())


def from_first(value: T) -> T:
    """What rank 0 gives, on every rank."""
    if n_ranks() == 1:
        return value
    values = [value]
    dist.broadcast_object_list(values, src=0)
    return values[0]


def gathered(value: T) -> list[T]:
    """What all ranks give, in their order, on rank 0; nothing on the others."""
    if n_ranks() == 1:
        return [value]
    values: list = [None] * n_ranks() if rank() == 0 else []
    dist.gather_object(value, values or None)
    return values


def mean_over_ranks(value: Tensor) -> Tensor:
    """Mean of the ranks' values, on every rank, without a gradient."""
    if n_ranks() == 1:
        return value
    total = value.detach().clone()
    dist.all_reduce(total)
    return total / n_ranks()


def sum_before(value: Tensor) -> Tensor:
    """Sum of the values of the ranks before this one."""
    if n_ranks() == 1:
        return torch.zeros_like(value)
    values = [torch.empty_like(value) for _ in range(n_ranks())]
    dist.all_gather(values, value)
    return torch.stack([torch.zeros_like(value), *values[: rank()]]).sum(0)
