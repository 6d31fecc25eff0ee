"""Argument checks in the house wording: `<op>: <argument> must <constraint>, got <value>`."""

import torch

from ._per_channel import arithmetic_dtype, filled, is_per_channel

FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
MAX_BITS = 8
MAX_LSBS = 3
MAX_LEVELS = 8  # bit-widths at once: kernels keep one set of sums for each in registers


def check_float(op: str, name: str, tensor) -> None:
    if not isinstance(tensor, torch.Tensor):
        raise TypeError(f"{op}: {name} must be a tensor, got {type(tensor).__name__}")
    if tensor.dtype not in FLOATS:
        raise TypeError(f"{op}: {name} must be float32, bfloat16, float16 or float64, got {tensor.dtype}")


def check_x(op: str, x, name: str = "x") -> None:
    check_float(op, name, x)
    if x.layout != torch.strided:
        raise TypeError(f"{op}: {name} must be a dense tensor, got layout {x.layout}")
    if x.dtype == torch.float64 and x.device.type == "cuda":
        raise TypeError(f"{op}: {name} must be float32, bfloat16 or float16 on {x.device} (float64 is for the CPU), "
                        "got torch.float64")


def check_entries(op: str, name: str, values, count=None) -> list:
    """Return `values`, one per tensor, as a list."""
    if isinstance(values, torch.Tensor) or not hasattr(values, "__iter__"):
        raise TypeError(f"{op}: {name} must be a sequence with an entry per tensor, got {type(values).__name__}")
    values = list(values)
    if count is not None and len(values) != count:
        raise ValueError(f"{op}: {name} must have one entry per tensor ({count}), got {len(values)}")
    return values


def check_like_first(op: str, t: int, x, first) -> None:
    """Check xs[t], beside the first of xs."""
    check_x(op, x, f"xs[{t}]")
    if x.dtype != first.dtype:
        raise TypeError(f"{op}: xs[{t}] must have the dtype of xs[0], {first.dtype}, got {x.dtype}")
    if x.device != first.device:
        raise ValueError(f"{op}: xs[{t}] must be on the device of xs[0], {first.device}, got {x.device}")


def check_out_dtype(op: str, x, out_dtype) -> None:
    if out_dtype is None:
        return
    if out_dtype not in FLOATS:
        raise TypeError(f"{op}: out_dtype must be float32, bfloat16, float16 or float64, got {out_dtype}")
    if (out_dtype == torch.float64) != (x.dtype == torch.float64):
        raise TypeError(f"{op}: out_dtype must be float64 exactly when x is, got {out_dtype} for x of {x.dtype}")


def check_bits(op: str, bits, lowest: int = 1, name: str = "bits") -> None:
    if isinstance(bits, bool) or not isinstance(bits, (int, torch.SymInt)):
        raise TypeError(f"{op}: {name} must be an integer, got {bits!r}")
    if bits < lowest or bits > MAX_BITS:
        raise ValueError(f"{op}: {name} must be between {lowest} and {MAX_BITS}, got {bits}")


def check_lsbs(op: str, bits, k) -> None:
    """Check that there are k low bits of `bits`, with one or more above them."""
    check_bits(op, bits)
    if isinstance(k, bool) or not isinstance(k, (int, torch.SymInt)):
        raise TypeError(f"{op}: k must be an integer, got {k!r}")
    if k < 1 or k > MAX_LSBS or k >= bits:
        raise ValueError(f"{op}: k must be between 1 and {MAX_LSBS} and less than bits, {bits}, got {k}")


def check_bit_widths(op: str, bits) -> list[int]:
    """Several bit-widths, as a list."""
    if isinstance(bits, (int, torch.SymInt)) or not hasattr(bits, "__iter__"):
        raise TypeError(f"{op}: bits must be a sequence of integers, got {bits!r}")
    bits = list(bits)
    if not 1 <= len(bits) <= MAX_LEVELS:
        raise ValueError(f"{op}: bits must name 1 to {MAX_LEVELS} bit-widths, got {len(bits)}")
    for b in bits:
        check_bits(op, b)
    return bits


def check_flag(op: str, name: str, value) -> None:
    if not isinstance(value, bool):
        raise TypeError(f"{op}: {name} must be True or False, got {value!r}")


def check_choice(op: str, name: str, value, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"{op}: {name} must be {' or '.join(map(repr, choices))}, got {value!r}")


def check_form(op: str, form) -> bool:
    """Return whether it is the sign-magnitude form."""
    check_choice(op, "form", form, ("offset", "sign-magnitude"))
    return form == "sign-magnitude"


def check_factor(op: str, grad_factor) -> None:
    if grad_factor is not None and (isinstance(grad_factor, bool) or not isinstance(grad_factor, (int, float))):
        raise TypeError(f"{op}: grad_factor must be a number, got {grad_factor!r}")


def check_axis(op: str, x, axis, name: str = "x", argument: str = "axis"):
    """Return `axis` counted from the front, or None."""
    if axis is None:
        return None
    if isinstance(axis, bool) or not isinstance(axis, int):
        raise TypeError(f"{op}: {argument} must be an integer or None, got {axis!r}")
    dims = x.dim()
    if not -dims <= axis < dims:
        raise ValueError(f"{op}: {argument} must be in [{-dims}, {dims}) for {name} of shape {tuple(x.shape)}, "
                         f"got {axis}")
    return axis % dims


def check_parameter(op: str, name: str, parameter, x, axis, of: str = "x"):
    """Return `parameter` (a scale, offset, zero point) in the arithmetic's dtype, once its shape and device fit x, or
    `of`."""
    if (isinstance(parameter, torch.Tensor) and parameter.dtype == arithmetic_dtype(x) and parameter.device == x.device
            and (parameter.numel() == 1 or axis is not None and is_per_channel(parameter, x, axis))):
        return parameter  # plainly right: a quarter of the time of what follows
    check_float(op, name, parameter)
    check_fit(op, name, parameter, x, axis, of)
    return to_arithmetic(parameter, x)


def check_fit(op: str, name: str, parameter, x, axis, of: str = "x") -> None:
    """Check the shape and device of a parameter of x, or of `of`."""
    if parameter.device != x.device:
        raise ValueError(f"{op}: {name} must be on {of}'s device {x.device}, got {parameter.device}")
    count = parameter.numel()
    if axis is None and count != 1:
        raise ValueError(f"{op}: {name} must have 1 element without axis, got {count} "
                         f"(shape {tuple(parameter.shape)}; pass axis for one per channel)")
    if count == 1 or is_per_channel(parameter, x, axis):
        return
    channels, where = x.shape[axis], f"({of} has shape {tuple(x.shape)}, axis {axis})"
    if count != channels:
        raise ValueError(f"{op}: {name} must have 1 or {channels} elements {where}, got {count} "
                         f"(shape {tuple(parameter.shape)})")
    raise ValueError(f"{op}: {name} must have shape {(channels,)} or {(channels, *[1] * (x.dim() - 1 - axis))} "
                     f"{where}, got {tuple(parameter.shape)}")


def check_limit(op: str, limit, x, axis, name: str = "limit"):
    """Return (limit as a constant in the dtype of the arithmetic, the axis it needs); (None, None) where there is none
    """
    axis = check_axis(op, x, axis)
    if limit is None:
        return None, None
    limit = check_parameter(op, name, limit, x, axis).detach()
    return limit, None if limit.numel() == 1 else axis


def check_rows(op: str, name: str, parameters, x, axis, count: int) -> list[torch.Tensor]:
    """Return one parameter per bit-width of (count,), (count, C) or a sequence, as check_parameter gives them."""
    if isinstance(parameters, torch.Tensor) and parameters.dim() == 0:
        raise ValueError(f"{op}: {name} must be ({count},), ({count}, C) or a sequence, got a 0-dim tensor")
    if not isinstance(parameters, (torch.Tensor, list, tuple, torch.nn.ParameterList)):
        raise TypeError(f"{op}: {name} must be a tensor or a sequence of tensors, got {type(parameters).__name__}")
    if len(parameters) != count:
        raise ValueError(f"{op}: {name} must have one entry per bit-width ({count}), got {len(parameters)}")
    rows = [check_parameter(op, f"{name}[{k}]", filled(p, x), x, axis) for k, p in enumerate(parameters)]
    if len({row.numel() for row in rows}) != 1:
        raise ValueError(f"{op}: {name} must all have 1 or all have {x.shape[axis]} elements, "
                         f"got {[row.numel() for row in rows]}")
    return rows


def check_stacked(op: str, name: str, parameters, x, axis, count: int) -> torch.Tensor:
    """Return check_rows' parameters as (count, C) or (count, 1); a tensor needs no copy for that."""
    if isinstance(parameters, torch.Tensor) and parameters.dim() and len(parameters) == count:
        check_parameter(op, f"{name}[0]", parameters[0], x, axis)
        return to_arithmetic(parameters, x).reshape(count, -1).contiguous()
    return torch.stack([row.reshape(-1) for row in check_rows(op, name, parameters, x, axis, count)])


def check_beside(op: str, name: str, parameter, scale, x, axis):
    """Return a unit or floor of `scale`, which is checked, as a constant in the dtype of the arithmetic; None stays."""
    if parameter is None:
        return None
    if not is_like(parameter, scale):
        parameter = check_parameter(op, name, parameter, x, axis)
        if scale.numel() != parameter.numel():
            check_pair(op, ("scale", name), scale, parameter)
    return constant(parameter)


def check_stacked_beside(op: str, name: str, parameters, scales, x, axis):
    """Do as check_beside, for `scales` as check_stacked gives them."""
    if parameters is None:
        return None
    if not is_like(parameters, scales):
        parameters = check_stacked(op, name, parameters, x, axis, len(scales))
        check_pair(op, ("scales", name), scales, parameters)
    return constant(parameters)


def is_like(parameter, scale) -> bool:
    """Return whether `parameter` plainly goes with a checked `scale`: that takes a quarter of the time of the checks.
    """
    return (isinstance(parameter, torch.Tensor) and parameter.dtype == scale.dtype and parameter.shape == scale.shape
            and parameter.device == scale.device)


def constant(parameter):
    return parameter.detach() if parameter.requires_grad else parameter


def to_arithmetic(parameter, x):
    """Return `parameter` in the dtype of the arithmetic on x."""
    return parameter.to(arithmetic_dtype(x))


def check_pair(op: str, names: tuple[str, str], first, second) -> None:
    if second is not None and first.shape != second.shape:
        raise ValueError(f"{op}: {names[1]} must have the shape of {names[0]}, {tuple(first.shape)}, "
                         f"got {tuple(second.shape)}")


def check_rounding(op: str, rounding) -> bool:
    """Return whether it is half to even."""
    if rounding not in ("half_even", "half_up"):
        raise ValueError(f"{op}: rounding must be 'half_even' or 'half_up', got {rounding!r}")
    return rounding == "half_even"


def check_same_arithmetic(op: str, names: tuple[str, str], first, second) -> None:
    """Check that `second` is on first's device, and float64 exactly when it is."""
    if second.device != first.device:
        raise ValueError(f"{op}: {names[1]} must be on {names[0]}'s device {first.device}, got {second.device}")
    if (first.dtype == torch.float64) != (second.dtype == torch.float64):
        raise TypeError(f"{op}: {names[1]} must be float64 exactly when {names[0]} is, got {second.dtype} beside "
                        f"{first.dtype}")
