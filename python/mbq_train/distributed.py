"""Several processes that train one network on parts of each batch (torchrun), through torch.distributed."""

import contextlib
import os

import torch
import torch.distributed as dist
from torch import nn

_AVAILABLE = dist.is_available()
_BUCKET = 32 * 2**20  # bytes averaged in one message


def world_size() -> int:
    """Return how many processes train together, 1 without a process group."""
    return dist.get_world_size() if _AVAILABLE and dist.is_initialized() else 1


def rank() -> int:
    """Return this process's number among them, from 0."""
    return dist.get_rank() if world_size() > 1 else 0


def is_first() -> bool:
    """Return whether this is torchrun's first process, or the only one; with or without a process group."""
    return int(os.environ.get("RANK", "0")) == 0


@contextlib.contextmanager
def process_group(device: str):
    """Have the process group that torchrun's environment describes inside the block; none where it describes one
    process.

    Yields the name of this process's device: with several, 'cuda' becomes that of its LOCAL_RANK.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or dist.is_initialized():
        yield device
        return
    if device == "cuda":
        device = f"cuda:{os.environ['LOCAL_RANK']}"
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if device.startswith("cuda") else "gloo")
    try:
        yield device
    finally:
        dist.destroy_process_group()


def mean(value: torch.Tensor) -> torch.Tensor:
    """Return the mean of a tensor over all processes."""
    return value if world_size() == 1 else _reduced(value / world_size(), dist.ReduceOp.SUM)


def total(value: torch.Tensor) -> torch.Tensor:
    """Return the sum of a tensor over all processes."""
    return value if world_size() == 1 else _reduced(value, dist.ReduceOp.SUM)


def minimum(value: torch.Tensor) -> torch.Tensor:
    """Return the smallest of a tensor's values over all processes."""
    return value if world_size() == 1 else _reduced(value, dist.ReduceOp.MIN)


def largest(values: list[int], device) -> list[int]:
    """Return the largest of each value over all processes."""
    return values if world_size() == 1 else (-minimum(-torch.tensor(values, device=device))).tolist()


def share_error(action) -> None:
    """Call `action` in the first process; its ValueError or OSError is raised in all of them."""
    failure = [None]
    if rank() == 0:
        try:
            action()
        except (ValueError, OSError) as error:
            failure = [error]
    if world_size() > 1:
        dist.broadcast_object_list(failure)
    if failure[0] is not None:
        raise failure[0]


def _reduced(value, operation):
    value = value.clone()
    dist.all_reduce(value, operation)
    return value


@torch.no_grad()
def share_from_first(model: nn.Module) -> None:
    """Give every process the parameters and buffers of the first."""
    if world_size() > 1:
        for tensor in (*model.parameters(), *model.buffers()):
            dist.broadcast(tensor.detach(), 0)


@torch.no_grad()
def average_gradients(model: nn.Module) -> None:
    """Replace every gradient by its mean over all processes, in few messages.

    Which parameters have a gradient depends on the bit-width alone, so it is the same in every process.
    DistributedDataParallel is not used: its hooks see neither a bit-width's idle scales nor a WeightBank's weights.
    """
    if world_size() > 1:
        average([parameter.grad for parameter in model.parameters() if parameter.grad is not None])


@torch.no_grad()
def average(tensors: list[torch.Tensor], group=None) -> None:
    """Replace every tensor by its mean over the processes of `group` [default all], in few messages."""
    for bucket in _buckets(tensors):
        flat = torch.cat([tensor.reshape(-1) for tensor in bucket]) / dist.get_world_size(group)
        dist.all_reduce(flat, group=group)
        for tensor, part in zip(bucket, flat.split([tensor.numel() for tensor in bucket]), strict=True):
            tensor.copy_(part.view_as(tensor))


def _buckets(tensors):
    """Yield `tensors` in their order, cut where the dtype changes or a bucket is full."""
    bucket, size = [], 0
    for tensor in tensors:
        if bucket and (tensor.dtype != bucket[0].dtype or size + tensor.nbytes > _BUCKET):
            yield bucket
            bucket, size = [], 0
        bucket.append(tensor)
        size += tensor.nbytes
    if bucket:
        yield bucket
