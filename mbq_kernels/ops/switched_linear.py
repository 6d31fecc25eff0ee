"""switched_linear: a linear layer at any bit-width straight from int8 codes or from bit planes."""

import math

import torch

from .. import _checks as check
from .._library import define
from ._function import BackwardFunction, apply

NAME = "switched_linear"
ROUNDINGS = ("half_up", "half_even")


def _forward_shape(x, store, scale, bias, high_bits, bits, half_up):
    return x.new_empty(x.shape[0], store.shape[-2])


def _backward_shape(grad, store, scale, in_features, high_bits, bits, half_up):
    return grad.new_empty(grad.shape[0], in_features)


_forward = define(NAME, "switched_linear_forward",
                  "(Tensor x, Tensor store, Tensor scale, Tensor? bias, int high_bits, SymInt bits, bool half_up) "
                  "-> Tensor", _forward_shape)
_backward = define(NAME, "switched_linear_backward",
                   "(Tensor grad, Tensor store, Tensor scale, SymInt in_features, int high_bits, SymInt bits, "
                   "bool half_up) -> Tensor", _backward_shape)


class SwitchedLinearBackward(BackwardFunction):
    """The gradients of x, scale and bias; of those that are not wanted, no elements."""

    @staticmethod
    def forward(grad, x, store, scale, options, wanted):
        to_x, to_scale, to_bias = wanted
        grad_x = grad_scale = grad_bias = scale.new_empty(0)
        if to_x:
            grad_x = _backward(grad, store, scale, x.shape[1], *options)
        if to_scale:  # y = unit * scale + bias; float32, because unit is larger than y and rounded to no storage
            unit = _forward(x.float(), store, torch.ones_like(scale), None, *options)
            terms = grad.double() * unit
            grad_scale = (terms.sum() if scale.numel() == 1 else terms.sum(0)).to(scale.dtype).reshape(scale.shape)
        if to_bias:
            grad_bias = grad.double().sum(0).to(scale.dtype)
        return grad_x, grad_scale, grad_bias


class SwitchedLinear(torch.autograd.Function):
    """Options are (high_bits, bits, half_up)."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x, store, scale, bias, options):
        return _forward(x, store, scale, bias, *options)

    @staticmethod
    def setup_context(ctx, inputs, output):
        x, store, scale, _, ctx.options = inputs
        ctx.save_for_backward(x, store, scale)

    @staticmethod
    def backward(ctx, grad):
        x, store, scale = ctx.saved_tensors
        wanted = (ctx.needs_input_grad[0], ctx.needs_input_grad[2], ctx.needs_input_grad[3])
        grads = apply(SwitchedLinearBackward, grad, x, store, scale, ctx.options, wanted)
        grad_x, grad_scale, grad_bias = (g if want else None for g, want in zip(grads, wanted, strict=True))
        return grad_x, None, grad_scale, grad_bias, None


def _check_x(x) -> None:
    check.check_float(NAME, "x", x)
    if x.dtype == torch.float64:
        raise TypeError(f"{NAME}: x must be float32, bfloat16 or float16, got torch.float64")
    if x.dim() == 0:
        raise ValueError(f"{NAME}: x must be (..., K), got a 0-dim tensor")


def _check_bits(high_bits, bits) -> None:
    if isinstance(high_bits, bool) or not isinstance(high_bits, int):
        raise TypeError(f"{NAME}: high_bits must be an integer, got {high_bits!r}")
    if not 2 <= high_bits <= check.MAX_BITS:
        raise ValueError(f"{NAME}: high_bits must be between 2 and {check.MAX_BITS}, got {high_bits}")
    check.check_bits(NAME, bits, lowest=2)
    if bits > high_bits:
        raise ValueError(f"{NAME}: bits must be at most high_bits ({high_bits}), got {bits}")


def _check_store(store, in_features, high_bits, bits, half_up) -> None:
    if not isinstance(store, torch.Tensor):
        raise TypeError(f"{NAME}: store must be a tensor, got {type(store).__name__}")
    if (store.dtype, store.dim()) not in ((torch.int8, 2), (torch.uint8, 3)):
        raise TypeError(f"{NAME}: store must be int8 codes (N, K) or uint8 planes (planes, N, ceil(K / 8)), "
                        f"got {store.dtype} of shape {tuple(store.shape)}")
    planes = store.dtype == torch.uint8
    if store.shape[-1] != ((in_features + 7) // 8 if planes else in_features):
        raise ValueError(f"{NAME}: store must have rows for {in_features} inputs, got shape {tuple(store.shape)}")
    if planes and not half_up and store.shape[0] != high_bits:
        raise ValueError(f"{NAME}: store must have all {high_bits} planes with rounding half_even (a tie shows only in "
                         f"the last of them; half_up needs {min(bits + 1, high_bits)}), got {store.shape[0]}")
    if planes and (store.shape[0] > high_bits or store.shape[0] < min(bits + 1, high_bits)):
        raise ValueError(f"{NAME}: store must have {min(bits + 1, high_bits)} to {high_bits} planes at {bits} of "
                         f"{high_bits} bits, got {store.shape[0]}")


def _check_vector(name, vector, x, counts) -> torch.Tensor:
    """Return a scale or bias in float32, once its size and device fit."""
    check.check_float(NAME, name, vector)
    if vector.device != x.device:
        raise ValueError(f"{NAME}: {name} must be on x's device {x.device}, got {vector.device}")
    if vector.numel() not in counts or (vector.numel() != 1 and vector.dim() != 1):
        raise ValueError(f"{NAME}: {name} must have {' or '.join(map(str, counts))} elements, "
                         f"got shape {tuple(vector.shape)}")
    return vector.float()


def switched_linear(x, store, scale, bias=None, *, high_bits=8, bits, rounding="half_up"):
    """Apply a linear layer whose weight is stored once, at `high_bits` bits, at the lower bit-width `bits`.

    y = x @ x_hat.T + bias;  x_hat = code_l * scale * 2^D;  code_l = clamp(round(code / 2^D), lo, hi),
    D = high_bits - bits
    The weight is rounded again in registers; no dequantized weight is in memory. Products and sums are float32, in an
    order that depends on neither threads nor instruction set. Made for 1 to 64 rows of x, where reading the weight is
    the cost; for many more a dequantized weight and torch.nn.functional.linear are faster.

    Args:
        x: (..., K), float32, bfloat16 or float16.
        store: the weight of N outputs and K inputs: (N, K) int8 codes; or (planes, N, ceil(K / 8)) uint8 bit planes,
            the codes' two's complement bits, most significant plane first, low bits first in a byte. half_up reads
            the first min(bits + 1, high_bits) planes, and more need not be given; half_even reads all.
        scale: (N,) or one element, floating point - step of the stored codes, > 0. On CPU a value that is not finite
            and > 0 raises; on CUDA values are not looked at.
        bias: (N,), floating point, or None.
        high_bits: 2..8 - bit-width of the store. On CPU int8 codes outside it raise; on CUDA they are clamped.
        bits: 2..high_bits - may change from call to call without a recompile.
        rounding: "half_up", (code + 2^(D-1)) >> D, or "half_even": what the weight was trained with.

    Returns:
        y: (..., N), x's dtype, rounded to once.

    Gradient: x gets grad @ x_hat, straight from the store; scale and bias theirs, summed in float64. The store has
    none. NaN and infinities in x go where a matrix product takes them.

    Raises:
        TypeError: a dtype or type is wrong. ValueError: bits, shape, device, too few planes. RuntimeError: on CPU,
        scale not finite and > 0, or codes out of range; double backward.

    Equivalent to:
        code_l = (store.int() + 2**D // 2 >> D).clamp(max=2 ** (bits - 1) - 1)
        torch.nn.functional.linear(x, code_l * scale[:, None] * 2**D, bias)

    Reference: Huang et al., "Nearly Lossless Adaptive Bit Switching", 2025, arXiv 2502.01199, eq. 1-3.
    """
    _check_x(x)
    _check_bits(high_bits, bits)
    if rounding not in ROUNDINGS:
        raise ValueError(f"{NAME}: rounding must be 'half_up' or 'half_even', got {rounding!r}")
    _check_store(store, x.shape[-1], high_bits, bits, rounding == "half_up")
    if store.device != x.device:
        raise ValueError(f"{NAME}: store must be on x's device {x.device}, got {store.device}")
    outputs = store.shape[-2]
    scale = _check_vector("scale", scale, x, (1, outputs))
    bias = None if bias is None else _check_vector("bias", bias, x, (outputs,))
    rows = x.reshape(math.prod(x.shape[:-1]), x.shape[-1])
    y = apply(SwitchedLinear, rows, store, scale, bias, (high_bits, bits, rounding == "half_up"))
    return y.reshape(*x.shape[:-1], outputs)
