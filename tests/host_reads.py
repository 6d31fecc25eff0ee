"""Refuse what makes the host wait for a GPU: reading a tensor's values. On the CPU nothing else would show it."""

import contextlib

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

aten = torch.ops.aten
# Their results' shapes, or their results, are values of tensors.
READS = {aten._local_scalar_dense, aten.is_nonzero, aten.equal, aten.nonzero, aten.masked_select, aten._unique2,
         aten.unique_dim, aten.unique_consecutive, aten.bincount, aten.repeat_interleave}
# Of a CPU tensor these reach no operator.
METHODS = {torch.Tensor.tolist, torch.Tensor.numpy, torch.Tensor.cpu, torch.Tensor.item, torch.Tensor.__array__}


class HostRead(AssertionError):
    pass


class _Operators(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.kernels = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        masked = function.overloadpacket is aten.index and any(
            index is not None and index.dtype in (torch.bool, torch.uint8) for index in args[1])
        if masked or function.overloadpacket in READS:
            raise HostRead(f"{function} reads a tensor")
        if function.namespace == "mbq":
            self.kernels.append(function.overloadpacket.__name__)
        return function(*args, **(kwargs or {}))


class as_on_a_gpu(TorchFunctionMode):
    """Have tensors say that they are not on the CPU, so that what reads them because they are there does not."""

    refused = frozenset()

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function in self.refused:
            raise HostRead(f"{function.__name__} reads a tensor")
        return False if function == torch.Tensor.is_cpu.__get__ else function(*args, **(kwargs or {}))


class _Methods(as_on_a_gpu):
    refused = METHODS


@contextlib.contextmanager
def no_host_reads():
    """Raise HostRead wherever a value of a tensor is read, in forward and backward; give the list of kernels called."""
    with _Methods(), _Operators() as operators:
        yield operators.kernels
