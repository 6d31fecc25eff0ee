"""fake_quantize_foreach: every bit-width of every tensor of a network in one call, one fused backward."""

import torch

from .. import _checks as check
from .._library import define
from ._function import BackwardFunction, apply, needs_gradient

NAME = "fake_quantize_foreach"


def _forward_shape(xs, scales, offsets, scale_units, scale_floors, bits, signed, axes, out_dtype):
    return [torch.empty_like(x, dtype=out_dtype or x.dtype) for x in xs for _ in bits]


def _backward_shape(grads, xs, scales, offsets, scale_units, scale_floors, bits, signed, axes, grad_factor):
    return ([torch.empty_like(x) for x in xs], [scale.new_empty(scale.shape) for scale in scales],
            [offset.new_empty(offset.shape) for offset in offsets])


# Parameters of tensor t and bit-width k are at t K + k, as are results. An axis of -1: one scale for all of x.
_forward = define(NAME, "fake_quantize_foreach_forward",
                  "(Tensor[] xs, Tensor[] scales, Tensor[] offsets, Tensor[] scale_units, Tensor[] scale_floors, "
                  "SymInt[] bits, bool signed, int[] axes, ScalarType? out_dtype) -> Tensor[]", _forward_shape)
_backward = define(NAME, "fake_quantize_foreach_backward",
                   "(Tensor[] grads, Tensor[] xs, Tensor[] scales, Tensor[] offsets, Tensor[] scale_units, Tensor[] "
                   "scale_floors, SymInt[] bits, bool signed, int[] axes, float? grad_factor) "
                   "-> (Tensor[], Tensor[], Tensor[])", _backward_shape)


def _split(tensors, count, levels, given):
    """Return (xs, scales, offsets, units, floors) of a flat list; `given`: which of the last three are in it."""
    parts, first = [tensors[:count]], count
    for there in (True, *given):
        last = first + (count * levels if there else 0)
        parts.append(tensors[first:last])
        first = last
    return parts


def _values(tensors, options):
    given, bits, signed, axes, _, out_dtype = options
    return _forward(*_split(tensors, len(axes), len(bits), given), bits, signed, axes, out_dtype)


def _gradients(tensors, options):
    """Return gradients of all xs, scales and offsets, flat as they are in `tensors`, before which come the upstream
    ones."""
    given, bits, signed, axes, grad_factor, _ = options
    outputs = len(axes) * len(bits)
    return [grad for grads in _backward(tensors[:outputs], *_split(tensors[outputs:], len(axes), len(bits), given),
                                        bits, signed, axes, grad_factor) for grad in grads]


class FakeQuantizeForeachBackward(BackwardFunction):
    @staticmethod
    def forward(options, *tensors):
        return tuple(_gradients(list(tensors), options))


class FakeQuantizeForeach(torch.autograd.Function):
    """Options are (given, bits, signed, axes, grad_factor, out_dtype), given as _split takes it."""

    generate_vmap_rule = True

    @staticmethod
    def forward(options, *tensors):
        return tuple(_values(list(tensors), options))

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.options, *tensors = inputs
        ctx.save_for_backward(*tensors)

    @staticmethod
    def backward(ctx, *grads):
        tensors = (*grads, *ctx.saved_tensors)
        if torch.compiler.is_compiling():  # Dynamo takes neither *tensors in a nested Function nor a double backward
            found = _gradients(list(tensors), ctx.options)
        else:
            found = apply(FakeQuantizeForeachBackward, ctx.options, *tensors)
        return None, *found, *[None] * (len(tensors) - len(grads) - len(found))  # units and floors are constants


def _quantize(tensors, options):
    if torch.compiler.is_compiling() and not needs_gradient(tensors):  # Dynamo then counts arguments, *tensors as one
        return _values(tensors, options)
    return apply(FakeQuantizeForeach, options, *tensors)


def fake_quantize_foreach(xs, scales, offsets=None, *, bits, signed=True, axis=None, grad_factor=None, out_dtype=None,
                          scale_units=None, scale_floors=None):
    """Quantize T tensors to K bit-widths each in one call: one launch forward and two backward, whatever T and K are.

    x_hats[t] = fake_quantize_multi(xs[t], scales[t], offsets[t], bits=bits, ...), the same bits, gradients included.
    For the weights of a network, where a call per layer and bit-width takes longer than its arithmetic. On CPU threads
    share the elements of all tensors; on CUDA a launch takes some 65 tensors; Triton launches once per tensor.

    Args:
        xs: T tensors of any shapes and strides, of one dtype and device - what to quantize, as in fake_quantize.
        scales: T entries, each as fake_quantize_multi takes them: (K,), (K, C) or a sequence of K tensors - steps, > 0.
            Sequences are the fast form: nothing is stacked, and every tensor gets its own gradient.
        offsets: like scales - real values of code 0; None is 0, for all tensors.
        bits: K integers in 1..8, in any order, K <= 8; the same for all tensors.
        signed, axis, grad_factor, out_dtype: as in fake_quantize, the same for all tensors; a negative axis counts
            from the end of each. A scale of one element serves the whole of its tensor.
        scale_units, scale_floors: like scales - fake_quantize's scale_unit and scale_floor for each of them, constants;
            None: without, for all tensors.

    Returns:
        list of T tuples of K tensors, each of its x's shape, strides of torch.empty_like(x), `out_dtype`.

    Gradient: as T calls of fake_quantize_multi. LSQ's factor is each tensor's own. An output that is not used gets a
    zero gradient (which NaN in x turns into NaN for its scale). xs and parameters are all that is saved.

    Raises:
        TypeError, ValueError, RuntimeError: as fake_quantize_multi, and where T, the dtypes or the devices differ.

    Equivalent to:
        [fake_quantize_multi(x, s, bits=bits) for x, s in zip(xs, scales)], and so on with the other arguments

    Reference: Esser et al., 2020, arXiv 1902.08153, eq. 1-3, for every tensor and bit-width.
    """
    bits = check.check_bit_widths(NAME, bits)
    check.check_flag(NAME, "signed", signed)
    check.check_factor(NAME, grad_factor)
    xs = check.check_entries(NAME, "xs", xs)
    for t, x in enumerate(xs):
        check.check_like_first(NAME, t, x, xs[0])
    if not xs:
        return []
    check.check_out_dtype(NAME, xs[0], out_dtype)
    counted = [check.check_axis(NAME, x, axis, "an x") for x in xs]
    scales = _parameters("scales", scales, xs, counted, len(bits))
    axes = [-1 if axis is None or rows[0].numel() == 1 else axis for axis, rows in zip(counted, scales, strict=True)]
    flat = [*xs, *(scale for rows in scales for scale in rows)]
    if offsets is not None:
        flat += _beside(scales, "offsets", offsets, xs, counted, len(bits))
    for name, constants in (("scale_units", scale_units), ("scale_floors", scale_floors)):
        if constants is not None:
            flat += map(check.constant, _beside(scales, name, constants, xs, counted, len(bits)))
    given = tuple(parameters is not None for parameters in (offsets, scale_units, scale_floors))
    outs = _quantize(flat, (given, bits, signed, axes, grad_factor, out_dtype))
    return [tuple(outs[i:i + len(bits)]) for i in range(0, len(outs), len(bits))]


def _beside(scales, name, parameters, xs, axes, count):
    """Return parameters that go with the scales, in one flat list."""
    parameters = _parameters(name, parameters, xs, axes, count)
    for t, (rows, others) in enumerate(zip(scales, parameters, strict=True)):
        if rows[0].numel() != others[0].numel():
            names = (f"scales[{t}]", f"{name}[{t}]")
            check.check_pair(NAME, names, rows[0].reshape(-1), others[0].reshape(-1))
    return [parameter for rows in parameters for parameter in rows]


def _parameters(name, parameters, xs, axes, count):
    """Per tensor its parameters, one per bit-width, in the dtype of the arithmetic."""
    parameters = check.check_entries(NAME, name, parameters, len(xs))
    return [rows if _ready(rows, x, axis, count) else check.check_rows(NAME, f"{name}[{t}]", rows, x, axis, count)
            for t, (rows, x, axis) in enumerate(zip(parameters, xs, axes, strict=True))]


def _ready(rows, x, axis, count) -> bool:
    """Return whether `rows` plainly are what check_rows would give: that takes 2 us a parameter, a third of the call.
    """
    if not isinstance(rows, (list, tuple)) or len(rows) != count:
        return False
    dtype, device, shape = check.arithmetic_dtype(x), x.device, (1,) if axis is None else (x.shape[axis],)
    for row in rows:
        if not isinstance(row, torch.Tensor) or row.dtype != dtype or row.shape != shape or row.device != device:
            return False
    return True
