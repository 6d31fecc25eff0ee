"""Gradients of parameters that only some bit-widths use, where DistributedDataParallel or FSDP2 trains the model.

DistributedDataParallel waits for a gradient of every parameter, and FSDP2 shards no scalars. The parameters of scales,
and under DistributedDataParallel of a BatchNorm per bit-width, are therefore left out there and averaged here.
"""

import functools
import inspect
import weakref

import torch
from torch import nn
from torch.distributed import _composable_state
from torch.nn.parallel import DistributedDataParallel

from .. import distributed


def follow_wrappers() -> None:
    """Have DistributedDataParallel leave the parameters that only some bit-widths use to `_Averages`.

    Wraps its constructor, once a process. With find_unused_parameters=True it averages them itself.
    """
    if not hasattr(DistributedDataParallel.__init__, "_mbq_follows"):
        DistributedDataParallel.__init__ = _with_averages(DistributedDataParallel.__init__)
        DistributedDataParallel.__init__._mbq_follows = True


def averaged(parameter: torch.Tensor) -> torch.Tensor:
    """Return `parameter` of a quantizer, with a gradient that is averaged over all processes inside of FSDP2."""
    if distributed.world_size() == 1 or not parameter.requires_grad or not _inside_fsdp():
        return parameter
    return _Averaged.apply(parameter)


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


def _with_averages(init):
    signature = inspect.signature(init)

    @functools.wraps(init)
    def with_averages(self, module, *args, **kwargs):
        given = signature.bind(self, module, *args, **kwargs).arguments
        own = {} if given.get("find_unused_parameters") else dict(_of_bit_widths(module))
        before = list(getattr(module, "_ddp_params_and_buffers_to_ignore", ()))
        if not own:
            return init(self, module, *args, **kwargs)
        module._ddp_params_and_buffers_to_ignore = [*before, *own]
        try:
            init(self, module, *args, **kwargs)
        finally:
            module._ddp_params_and_buffers_to_ignore = before  # another wrapper may find unused parameters
        _Averages(self, own.values())
    return with_averages


class _Averages:
    """Average gradients that `wrapper` leaves alone over its processes, in one message at the end of a backward.

    All processes must use the same parameters, as `wrapper` asks of the others. Construction gives all processes the
    values of the first, as `wrapper` does with its own.

    Args:
        wrapper: a DistributedDataParallel; nothing is averaged once it is gone, nor within its no_sync().
        tensors: parameters and buffers.
    """

    def __init__(self, wrapper: DistributedDataParallel, tensors):
        self.wrapper, self.group = weakref.ref(wrapper), wrapper.process_group
        self.due, self.task = {}, None  # parameters with gradients to average, in their order; the backward that will
        for tensor in tensors:
            torch.distributed.broadcast(tensor.detach(), torch.distributed.get_global_rank(self.group, 0), self.group)
            if tensor.requires_grad:
                tensor.register_post_accumulate_grad_hook(self._note)

    def _note(self, parameter: torch.Tensor) -> None:
        wrapper = self.wrapper()
        if wrapper is None:
            return
        self.due[parameter] = None
        task = torch._C._current_graph_task_id()  # of a backward within a backward its own
        if wrapper.require_backward_grad_sync and self.task != task:
            self.task = task
            torch.autograd.Variable._execution_engine.queue_callback(self._average)

    def _average(self) -> None:
        gradients = [parameter.grad for parameter in self.due if parameter.grad is not None]
        self.due = {}
        distributed.average(gradients, self.group)


def _of_bit_widths(model: nn.Module):
    """Yield name and tensor of the parameters that only some bit-widths use, and of the buffers of quantizers."""
    for prefix, module in model.named_modules():
        if hasattr(module, "bit_state"):
            yield from module.named_parameters(prefix)
            if hasattr(module, "scales"):
                yield from module.named_buffers(prefix)


def _inside_fsdp() -> bool:
    """Return whether a module that torch.distributed.fsdp.fully_shard has sharded is running."""
    states = (reference() for reference in list(_composable_state._module_state_mapping.values()))
    return any(getattr(state, "_training_state", None) is not None and state._training_state.name != "IDLE"
               for state in states)
