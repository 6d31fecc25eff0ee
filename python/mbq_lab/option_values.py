"""Values of options: their types and limits."""

import math
import numbers
import os


def typed(option, value):
    """Return `value` in the option's type where that loses nothing: an int as a float, a list as a tuple, a path as
    text."""
    kind = type(option.default)
    if kind is tuple and isinstance(value, (list, tuple)):
        return tuple(value)
    if kind is float and isinstance(value, numbers.Real) and not isinstance(value, bool):
        return float(value)
    if kind is str and isinstance(value, os.PathLike):
        return os.fspath(value)
    if type(value) is not kind:
        raise ValueError(f"options: {option.name} must be of type {kind.__name__}, got {value!r}")
    return value


def check_number(name: str, number, limits) -> None:
    """Raise ValueError where `number` is not finite or not within the option's limits."""
    inside = {"low": lambda limit: number >= limit, "high": lambda limit: number <= limit,
              "above": lambda limit: number > limit, "below": lambda limit: number < limit}
    words = {"low": "at least", "high": "at most", "above": "above", "below": "below"}
    for kind, holds in inside.items():
        if kind in limits and not (math.isfinite(number) and holds(limits[kind])):
            raise ValueError(f"options: {name} must be finite and {words[kind]} {limits[kind]}, got {number}")
