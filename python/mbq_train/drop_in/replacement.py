"""Give a module that somebody else made another forward, while all else of it stays."""

import copyreg
import functools
from collections.abc import Callable

from torch import nn


class Accelerated:
    """Mixin of the subclasses which modules become.

    Parameters, buffers, names in state dicts, hooks and the training mode are the module's, and isinstance holds.
    mbq_original: the class that the module had; mbq_plan: what the forward needs to know beyond the module, an
    attribute of every module that has one.
    """

    mbq_original: type[nn.Module]
    mbq_plan = None

    def __reduce_ex__(self, protocol):
        """Pickle and copy by the original class and the forward, because no module of Python holds the subclass."""
        make, args, *state = super().__reduce_ex__(max(protocol, 2))
        if make is not copyreg.__newobj__:
            return make, args, *state  # the original has a way of its own
        return _new, (self.mbq_original, type(self).forward, *args[1:]), *state


def replace(module: nn.Module, forward: Callable, plan: object = None) -> None:
    """Make `forward(module, ...)`, a function of a Python module, what `module` computes."""
    module.__class__ = _subclass(type(module), forward)
    if plan is not None:
        module.mbq_plan = plan


def undo(module: nn.Module) -> None:
    """Give `module` back the class that it had."""
    module.__class__ = type(module).mbq_original
    vars(module).pop("mbq_plan", None)


def original_forward(module: nn.Module, *args, **kwargs):
    """Return what the original class computes, where a forward meets a state that it does not support."""
    return type(module).mbq_original.forward(module, *args, **kwargs)


@functools.cache
def _subclass(original: type[nn.Module], forward: Callable) -> type[nn.Module]:
    namespace = {"forward": forward, "mbq_original": original, "__doc__": original.__doc__,
                 "__module__": original.__module__, "__qualname__": original.__qualname__}
    return type(original.__name__, (Accelerated, original), namespace)


def _new(original: type[nn.Module], forward: Callable, *args) -> nn.Module:
    subclass = _subclass(original, forward)
    return subclass.__new__(subclass, *args)
