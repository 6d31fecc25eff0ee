"""What a family of fake-quantizers says of a module: nothing, that it can be replaced, or that it is left alone.

A family is a function from a module to a Verdict, None where the module is not of the family. It imports no library:
modules of a library that nobody imported cannot be there.
"""

from collections.abc import Callable
from dataclasses import dataclass

from torch import nn


@dataclass(frozen=True)
class Replace:
    """The module can be replaced.

    forward: a function of a Python module, called as forward(module, ...) in the place of the original's. It reads
    from the module, at every call, whatever its owner may change (flags, scales, modes) and calls original_forward in
    a state that it does not support. plan: what it needs to know beyond the module, constant and picklable. bound: how
    results may differ from the original's and why; empty: outputs and gradients are the same bit for bit. whole:
    submodules belong to it and are not looked at.
    """

    library: str
    forward: Callable
    plan: object = None
    bound: str = ""
    whole: bool = True


@dataclass(frozen=True)
class Leave:
    """The module fake-quantizes, and is left as it is."""

    library: str
    reason: str


Verdict = Replace | Leave | None
Family = Callable[[nn.Module], Verdict]
