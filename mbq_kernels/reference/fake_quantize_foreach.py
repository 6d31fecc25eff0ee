"""fake_quantize_foreach in plain PyTorch: fake_quantize_multi tensor after tensor."""

import torch

from ._channels import check_scale
from .fake_quantize_multi import fake_quantize_multi_backward, fake_quantize_multi_forward


def stacked(parameters, count, levels):
    """Per tensor its `levels` parameters as (levels, C); None for every one of `count` tensors where there are none."""
    if not parameters:
        return [None] * count
    return [torch.stack([row.reshape(-1) for row in parameters[first:first + levels]])
            for first in range(0, len(parameters), levels)]


def _each(xs, parameters, levels, axes):
    """Return (x, its scales, offsets, units and floors, its axis) for every x"""
    return zip(xs, zip(*(stacked(rows, len(xs), levels) for rows in parameters), strict=True),
               [None if axis < 0 else axis for axis in axes], strict=True)


def forward_each(multi, xs, scales, offsets, scale_units, scale_floors, bits, signed, axes, out_dtype):
    """Return `multi`, a fake_quantize_multi_forward, of every tensor: one flat list."""
    return [out for x, rows, axis in _each(xs, (scales, offsets, scale_units, scale_floors), len(bits), axes)
            for out in multi(x, *rows, bits, signed, axis, out_dtype)]


def backward_each(multi, grads, xs, scales, offsets, scale_units, scale_floors, bits, signed, axes, grad_factor):
    """Return `multi`, a fake_quantize_multi_backward, of every tensor: flat lists of gradients of xs, scales and
    offsets."""
    grad_xs, grad_scales, grad_offsets = [], [], []
    for t, (x, rows, axis) in enumerate(_each(xs, (scales, offsets, scale_units, scale_floors), len(bits), axes)):
        grad_x, grad_scale, grad_offset = multi(grads[t * len(bits):(t + 1) * len(bits)], x, *rows, bits, signed, axis,
                                                grad_factor)
        grad_xs.append(grad_x)
        grad_scales += grad_scale.unbind()
        grad_offsets += grad_offset.unbind() if offsets else []
    # each in memory of its own and in its parameter's shape
    return (grad_xs, [grad.clone().view(scale.shape) for grad, scale in zip(grad_scales, scales, strict=True)],
            [grad.clone().view(offset.shape) for grad, offset in zip(grad_offsets, offsets, strict=True)])


def _check_scales(xs, scales, scale_units, scale_floors, bits):
    rows = (stacked(parameters, len(xs), len(bits)) for parameters in (scales, scale_units, scale_floors))
    for t, parameters in enumerate(zip(*rows, strict=True)):
        check_scale("fake_quantize_foreach", *parameters, f", tensor {t}")


@torch.no_grad()
def fake_quantize_foreach_forward(xs, scales, offsets, scale_units, scale_floors, bits, signed, axes, out_dtype):
    _check_scales(xs, scales, scale_units, scale_floors, bits)
    return forward_each(fake_quantize_multi_forward, xs, scales, offsets, scale_units, scale_floors, bits, signed,
                        axes, out_dtype)


@torch.no_grad()
def fake_quantize_foreach_backward(grads, xs, scales, offsets, scale_units, scale_floors, bits, signed, axes,
                                   grad_factor):
    _check_scales(xs, scales, scale_units, scale_floors, bits)
    return backward_each(fake_quantize_multi_backward, grads, xs, scales, offsets, scale_units, scale_floors, bits,
                         signed, axes, grad_factor)
