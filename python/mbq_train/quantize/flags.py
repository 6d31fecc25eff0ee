"""Read what quantizers keep in their buffers."""

import torch


def version(tensor: torch.Tensor) -> int:
    """Return the number of writes to `tensor`; -1 for an inference tensor, which does not count them."""
    return -1 if tensor.is_inference() else tensor._version


def captured(tensor: torch.Tensor) -> bool:
    """Return whether a CUDA graph captures what is done to `tensor`, so that its values cannot be read."""
    return tensor.is_cuda and torch.cuda.is_current_stream_capturing()


def one_of_all(name: str, flags: torch.Tensor) -> list[float]:
    """Return the values of `flags`, which under torch.vmap over an ensemble of models must be those of all of them.

    Raises RuntimeError, in the name of `name`, where they are not.
    """
    functorch = torch._C._functorch
    while functorch.is_functorch_wrapped_tensor(flags):
        batch = functorch.maybe_get_bdim(flags)
        flags = functorch.get_unwrapped(flags)
        if batch >= 0:
            first = flags.select(batch, 0)
            if not torch.equal(flags, first.unsqueeze(batch).expand_as(flags)):
                raise RuntimeError(f"{name}: models of an ensemble must all have first values and signs alike, got "
                                   "different ones")
            flags = first
    return flags.tolist()
