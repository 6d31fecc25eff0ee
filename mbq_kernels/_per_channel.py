"""The dtype and the shape of parameters that every channel has one of, or all of x as a plain number."""

import torch


def arithmetic_dtype(x) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def is_per_channel(parameter, x, axis: int) -> bool:
    """Return whether `parameter` has an element per channel: (C,), or what broadcasts against x along the axis alone.
    """
    shape, channels = parameter.shape, x.shape[axis]
    if len(shape) == 1 and shape[0] == channels:
        return True
    place = axis - x.dim()  # counted from the end, as in broadcasting
    return (-place <= len(shape) <= x.dim() and shape[place] == channels
            and all(size == 1 for d, size in enumerate(shape, -len(shape)) if d != place))


def is_number(value) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def filled(value, x):
    """Return a plain number as a constant of one element, in the dtype of the arithmetic; other values as they are."""
    return torch.full((), value, dtype=arithmetic_dtype(x), device=x.device) if is_number(value) else value
