"""sample_grad_norm_conv2d and _conv1d: the gradient norm of every sample at a convolution."""

from .. import _checks as check
from .._library import define
from .._sample_checks import check_samples, check_weight_factor

NAME = "sample_grad_norm_conv2d"


def _shape(activations, grad_outputs, weight_factor, kernel_size, stride, padding, dilation, groups, bias, gram):
    return activations.new_empty(activations.shape[0], dtype=check.arithmetic_dtype(activations))


_forward = define(NAME, "sample_grad_norm_conv2d_forward",
                  "(Tensor activations, Tensor grad_outputs, Tensor? weight_factor, int[] kernel_size, int[] stride, "
                  "int[] padding, int[] dilation, int groups, bool bias, bool? gram) -> Tensor", _shape)


def _sizes(op, name, value, axes, lowest) -> list[int]:
    """`value` for every axis, from one integer or a sequence."""
    values = [value] * axes if isinstance(value, int) else value
    if not isinstance(values, (list, tuple)) or not all(type(v) is int for v in values):
        raise TypeError(f"{op}: {name} must be an integer or a sequence of integers, got {value!r}")
    if len(values) != axes or min(values) < lowest:
        raise ValueError(f"{op}: {name} must be {axes} integer{'s'[:axes - 1]} >= {lowest}, got {value!r}")
    return list(values)


def _paddings(op, padding, axes, kernel_size, stride, dilation) -> list[tuple[int, int]]:
    """(zeros before, in all) along every axis."""
    if isinstance(padding, str):
        if padding not in ("same", "valid"):
            raise ValueError(f"{op}: padding must be 'same', 'valid' or integers, got {padding!r}")
        if padding == "same" and max(stride) > 1:
            raise ValueError(f"{op}: padding 'same' must have stride 1, got {tuple(stride)}")
        totals = [d * (k - 1) if padding == "same" else 0 for d, k in zip(dilation, kernel_size, strict=True)]
        return [(total // 2, total) for total in totals]
    return [(p, 2 * p) for p in _sizes(op, "padding", padding, axes, 0)]


def _check_shapes(op, activations, grad_outputs, axes, groups) -> None:
    if activations.dim() != axes + 2 or grad_outputs.dim() != axes + 2:
        raise ValueError(f"{op}: activations and grad_outputs must be (N, C, {'H, W' if axes == 2 else 'L'}), "
                         f"got shapes {tuple(activations.shape)} and {tuple(grad_outputs.shape)}")
    for name, tensor in (("activations", activations), ("grad_outputs", grad_outputs)):
        if tensor.shape[1] % groups:
            raise ValueError(f"{op}: {name} must have a multiple of groups ({groups}) channels, got {tensor.shape[1]}")


def _check_outputs(op, activations, grad_outputs, outputs) -> None:
    """`outputs`: the size of the layer's result along every axis."""
    if grad_outputs.shape[0] != activations.shape[0] or list(grad_outputs.shape[2:]) != outputs:
        shape = ", ".join(map(str, [activations.shape[0], "C_out", *outputs]))
        raise ValueError(f"{op}: grad_outputs must be ({shape}) for activations of shape {tuple(activations.shape)}, "
                         f"got {tuple(grad_outputs.shape)}")


def _norms(op, axes, activations, grad_outputs, kernel_size, stride, padding, dilation, groups, bias, weight_factor):
    check_samples(op, activations, grad_outputs, bias)
    kernel_size = _sizes(op, "kernel_size", kernel_size, axes, 1)
    stride, dilation = _sizes(op, "stride", stride, axes, 1), _sizes(op, "dilation", dilation, axes, 1)
    (groups,) = _sizes(op, "groups", groups, 1, 1)
    paddings = _paddings(op, padding, axes, kernel_size, stride, dilation)
    _check_shapes(op, activations, grad_outputs, axes, groups)
    geometry = zip(activations.shape[2:], paddings, dilation, kernel_size, stride, strict=True)
    outputs = [max((size + total - d * (k - 1) - 1) // s + 1, 0) for size, (_, total), d, k, s in geometry]
    _check_outputs(op, activations, grad_outputs, outputs)
    shape = (grad_outputs.shape[1], activations.shape[1] // groups, *kernel_size)
    weight_factor = check_weight_factor(op, weight_factor, activations, shape)
    before = [first for first, _ in paddings]
    if axes == 1:  # a convolution in two dimensions, the first of size 1
        activations, grad_outputs = activations.unsqueeze(2), grad_outputs.unsqueeze(2)
        weight_factor = None if weight_factor is None else weight_factor.unsqueeze(2)
        kernel_size, stride, before, dilation = [1, *kernel_size], [1, *stride], [0, *before], [1, *dilation]
    return _forward(activations.detach(), grad_outputs.detach(), weight_factor, kernel_size, stride, before, dilation,
                    groups, bias, None)


def sample_grad_norm_conv2d(activations, grad_outputs, *, kernel_size, stride=1, padding=0, dilation=1, groups=1,
                            bias=True, weight_factor=None):
    """Squared norm of every sample's gradient of a convolution's parameters, which are not formed.

    norm[n] = sum_k |factor_k * (G_n U_n^T)_k|^2 + bias * sum_o (sum_l G_nol)^2
    U_n (C_in * kernel, L) are the windows that output position l saw, G_n (C_out, L), each in its group. As in
    sample_grad_norm_linear either in tiles or, where L is small, by Gram products; the windows are written out for a
    tile at a time (on a GPU not at all), never for a sample.

    Args:
        activations: (N, C_in, H, W), float32, bfloat16, float16 (float64 on CPU) - what the layer was given.
        grad_outputs: (N, C_out, H_out, W_out), floating point, float64 if activations are - gradient of the samples'
            losses, summed and not averaged, by what the layer returned.
        kernel_size, stride, dilation: an integer or two - as in torch.nn.Conv2d.
        padding: an integer or two, "same" or "valid" - zeros around activations. (Pad them for any other mode.)
        groups: divides C_in and C_out.
        bias: whether the layer has one.
        weight_factor: (C_out, C_in / groups, *kernel_size), floating point - as in sample_grad_norm_linear.

    Returns:
        norms: (N,), float32 (float64 for float64 activations), squared. A sample with NaN or infinities gets NaN or
        infinity, and the others what they would have alone.

    Gradient: none, the result does not require it.

    Raises:
        TypeError: a dtype or type is wrong. ValueError: shape, device, or a size out of range.

    Equivalent to:
        windows = torch.nn.functional.unfold(activations, kernel_size, dilation, padding, stride)  # groups=1
        grad = torch.einsum("nkl,nol->nok", windows, grad_outputs.flatten(2)) * weight_factor.flatten(1)
        grad.square().sum((1, 2)) + grad_outputs.sum((2, 3)).square().sum(1)

    Reference: Rochette et al., 2019, arXiv 1912.06015 (per-sample gradients of convolutions).
    """
    return _norms(NAME, 2, activations, grad_outputs, kernel_size, stride, padding, dilation, groups, bias,
                  weight_factor)


def sample_grad_norm_conv1d(activations, grad_outputs, *, kernel_size, stride=1, padding=0, dilation=1, groups=1,
                            bias=True, weight_factor=None):
    """Return sample_grad_norm_conv2d in one dimension.

    activations (N, C_in, L), grad_outputs (N, C_out, L_out), weight_factor (C_out, C_in / groups, kernel_size);
    kernel_size, stride, padding and dilation are an integer, or one in a sequence.
    """
    return _norms("sample_grad_norm_conv1d", 1, activations, grad_outputs, kernel_size, stride, padding, dilation,
                  groups, bias, weight_factor)
