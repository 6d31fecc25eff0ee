"""Read what quantizers keep in their buffers."""

import torch
from torch import nn


class Watching(nn.Module):
    """A module that keeps in Python what some of its buffers say, and reads them again after they changed.

    What a copy, an average or load_state_dict writes to them counts from the next look on.

    _watched: names of the buffers, each with a method that reads it.
    """

    _watched: dict[str, str] = {}

    def __init__(self):
        super().__init__()
        self._seen = {}  # by name: the buffer that was read, and how often it had been written to
        self.register_load_state_dict_post_hook(_look_again)

    def __getstate__(self):
        return {**self.__dict__, "_seen": {}}  # a copy reads its own buffers

    def look(self) -> None:
        """Read the watched buffers that were replaced or written to; never while a graph is captured."""
        if torch.compiler.is_compiling():
            return
        for name, read in self._watched.items():
            flags, (seen, writes) = self._buffers[name], self._seen.get(name, (None, 0))
            if (flags is seen and writes == version(flags)) or flags.is_meta or captured(flags):
                continue
            self.saw(name)
            getattr(self, read)()

    def look_again(self) -> None:
        """Read all watched buffers, changed or not."""
        self._seen = {}
        self.look()

    def saw(self, name: str) -> None:
        """Note that Python knows what the buffer `name` says now."""
        flags = self._buffers[name]
        self._seen = {**self._seen, name: (flags, version(flags))}  # another dict: replicas share the one before


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


def _look_again(module: Watching, incompatible_keys) -> None:
    module.look_again()  # now: compiled graphs do not; in inference mode nothing counts writes
