"""Gradients of parameters that only some bit-widths use, where DistributedDataParallel or FSDP2 trains the model.

DistributedDataParallel waits for a gradient of every parameter, and FSDP2 shards no scalars. Both leave the parameters
of scales, and of a BatchNorm per bit-width, to the functions here.
"""

import weakref

import torch
from torch import nn
from torch.distributed import _composable_state
from torch.nn.parallel import DistributedDataParallel

from .. import distributed

_seen = weakref.WeakKeyDictionary()  # DistributedDataParallel: the ids of the parameters that it leaves to us


class _Averaged(torch.autograd.Function):
    """The parameter itself; its gradient is the mean over all processes."""

    @staticmethod
    def forward(parameter):
        return parameter.view_as(parameter)

    @staticmethod
    def setup_context(ctx, inputs, output):
        pass

    @staticmethod
    def backward(ctx, grad):
        return distributed.mean(grad)


def leave_to_us(model: nn.Module) -> None:
    """Tell DistributedDataParallel, should it wrap `model`, to leave alone what only some bit-widths use."""
    own = dict(_of_bit_widths(model))
    DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(model, list(own))


def averaged(parameter: torch.Tensor, *, sharded: bool = False) -> torch.Tensor:
    """Return `parameter`, with a gradient that is averaged over processes where a wrapper leaves that to us.

    Args:
        parameter: of a quantizer, or of a BatchNorm per bit-width.
        sharded: FSDP2 takes care of it.

    Raises RuntimeError where DistributedDataParallel would wait for gradients that some bit-width does not have.
    """
    if distributed.world_size() == 1 or not torch.is_grad_enabled() or not parameter.requires_grad:
        return parameter
    wrapper = DistributedDataParallel._active_ddp_module
    left = id(parameter) in _left_by(wrapper) if wrapper is not None else not sharded and _inside_fsdp()
    return _Averaged.apply(parameter) if left else parameter


def _of_bit_widths(model: nn.Module):
    """Yield name and tensor of the parameters that only some bit-widths use, and of the buffers of quantizers."""
    for prefix, module in model.named_modules():
        if hasattr(module, "bit_state"):
            yield from module.named_parameters(prefix)
            if hasattr(module, "scales"):
                yield from module.named_buffers(prefix)


def _left_by(wrapper: DistributedDataParallel) -> set[int]:
    """Return the ids of the parameters that `wrapper` leaves to us; at the first call all processes get those of the
    first, as the wrapper does with its own."""
    if wrapper not in _seen:
        own = dict(_of_bit_widths(wrapper.module))
        left = {name: tensor for name, tensor in own.items() if name in wrapper.parameters_to_ignore}
        if len(left) < len(own) and not wrapper.find_unused_parameters:
            raise RuntimeError("convert: DistributedDataParallel must wrap the converted model itself, or be given "
                               "find_unused_parameters=True, because a bit-width leaves the scales of the others "
                               "without a gradient, got a model that holds the converted one and False")
        for tensor in left.values():
            torch.distributed.broadcast(tensor.detach(), 0, group=wrapper.process_group)
        _seen[wrapper] = {id(tensor) for tensor in left.values()}
    return _seen[wrapper]


def _inside_fsdp() -> bool:
    """Return whether a module that torch.distributed.fsdp.fully_shard has sharded is running."""
    states = (reference() for reference in list(_composable_state._module_state_mapping.values()))
    return any(getattr(state, "_training_state", None) is not None and state._training_state.name != "IDLE"
               for state in states)
