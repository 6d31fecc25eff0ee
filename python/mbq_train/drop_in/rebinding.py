"""Run other people's code with some of the functions it calls replaced, without touching theirs."""

import functools
from collections.abc import Callable, Mapping
from types import FunctionType


def rebound(function: Callable, replacements: Mapping[str, object]) -> Callable:
    """Return `function` with other values for some of its global names; whatever else it does stays its own."""
    return _rebound(function, tuple(replacements.items()))


@functools.cache
def _rebound(function: Callable, replacements: tuple) -> Callable:
    names = {**function.__globals__, **dict(replacements)}
    copy = FunctionType(function.__code__, names, function.__name__, function.__defaults__, function.__closure__)
    copy.__kwdefaults__ = function.__kwdefaults__
    return copy
