"""Give a module that somebody else made another forward, while all else of it stays.

The module becomes an instance of a subclass of its class, which adds no more than the forward. Parameters, buffers,
names in state dicts, hooks and the training mode are the module's, and isinstance holds. The subclass has two
attributes of ours, mbq_original, the class that the module had, and mbq_plan, what the forward needs to know beyond
the module, which is an attribute of every module that has one.
"""

import copyreg
import functools
import types
from collections.abc import Callable

from torch import nn


def replace(module: nn.Module, forward: Callable, plan: object = None) -> None:
    """Make `forward(module, ...)`, a function of a Python module, what `module` computes."""
    module.__class__ = _subclass(type(module), forward)
    if plan is not None:
        module.mbq_plan = plan


def is_replaced(module: nn.Module) -> bool:
    """Return whether `module` has a forward of ours."""
    return "mbq_original" in vars(type(module))


def undo(module: nn.Module) -> None:
    """Give `module` back the class that it had."""
    module.__class__ = type(module).mbq_original
    vars(module).pop("mbq_plan", None)


def original_forward(module: nn.Module, *args, **kwargs):
    """Return what the original class computes, where a forward meets a state that it does not support."""
    return type(module).mbq_original.forward(module, *args, **kwargs)


@functools.cache
def _subclass(original: type[nn.Module], forward: Callable) -> type[nn.Module]:
    namespace = {"forward": forward, "mbq_original": original, "mbq_plan": None, "__reduce_ex__": _reduce,
                 "__doc__": original.__doc__, "__module__": original.__module__, "__qualname__": original.__qualname__}
    return types.new_class(original.__name__, (original,), exec_body=lambda body: body.update(namespace))


def _reduce(module: nn.Module, protocol: int):
    """Pickle and copy by the original class and the forward, because no module of Python holds the subclass."""
    kind = type(module)
    make, args, *state = super(kind, module).__reduce_ex__(max(protocol, 2))
    if make is not copyreg.__newobj__:
        return make, args, *state  # the original has a way of its own
    return _new, (kind.mbq_original, kind.forward, *args[1:]), *state


def _new(original: type[nn.Module], forward: Callable, *args) -> nn.Module:
    subclass = _subclass(original, forward)
    return subclass.__new__(subclass, *args)
