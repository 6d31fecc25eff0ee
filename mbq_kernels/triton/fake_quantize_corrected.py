"""fake_quantize_corrected in Triton: moments of all bit-widths from one read, results from another."""

import torch
import triton
import triton.language as tl

from ..reference._channels import effective
from ..reference._correction import fold
from ..reference.quant_math import bounds, default_grad_factor
from ._elementwise import launch_backward, load_parameter, load_scale, tile_of
from ._sums import moments_of_codes_and_values
from ._tiling import contiguous, dense, tiling_of
from .quant_math import decode, encode, fake_quantize_terms, from_storage, scaled, to_storage


@triton.jit
def corrected_forward_kernel(x_ptr, out_ptrs, scale_ptr, shift_ptr, unit_ptr, floor_ptr, new_scale_ptr, new_shift_ptr,
                             levels, rows, cols, col_tiles, channels, inner, BY_ROW: tl.constexpr,
                             BLOCK_ROWS: tl.constexpr, BLOCK_COLS: tl.constexpr):
    """out[k] = code * scale'[k] + offset'[k], code = clamp(rint((x - offset[k]) / step), lo, hi),
    step = max(scale[k] * unit[k], floor[k])"""
    offsets, mask, channel, exists, slot = tile_of(
        rows, cols, col_tiles, channels, inner, BY_ROW, BLOCK_ROWS, BLOCK_COLS)
    x = from_storage(tl.load(x_ptr + offsets, mask=mask, other=0.0))
    for k in tl.static_range(len(out_ptrs)):
        scale = load_scale(scale_ptr, unit_ptr, floor_ptr, k * channels, channel, exists, BY_ROW)
        shift = load_parameter(shift_ptr, k * channels, channel, exists, 0.0, BY_ROW)
        lo, hi = levels[k]
        code = encode(scaled(x, scale, shift), lo, hi)
        value = decode(code, load_parameter(new_scale_ptr, k * channels, channel, exists, 1.0, BY_ROW),
                       load_parameter(new_shift_ptr, k * channels, channel, exists, 0.0, BY_ROW))
        tl.store(out_ptrs[k] + offsets, to_storage(value, out_ptrs[k].dtype.element_ty), mask=mask)


def _ranges(bits, signed):
    return [bounds(b, signed) for b in bits]


def fake_quantize_corrected_fold(x, scales, offsets, scale_units, scale_floors, reference, bits, signed, axis):
    if x.dtype == torch.float64:
        raise TypeError("fake_quantize_corrected: x must be float32, bfloat16 or float16 for Triton kernels, "
                        "got torch.float64")
    codes, kept = moments_of_codes_and_values(x, scales, offsets, _ranges(bits, signed), axis, reference is None,
                                              scale_units, scale_floors)
    if reference is not None:
        _, kept = moments_of_codes_and_values(reference, None, None, [], axis, True)
    return fold(codes, kept, effective(scales, scale_units, scale_floors))


def fake_quantize_corrected_forward(x, scales, offsets, scale_units, scale_floors, folded, bits, signed, axis,
                                    out_dtype):
    x = dense(x)
    outs = [torch.empty_like(x, dtype=out_dtype or x.dtype) for _ in bits]
    if x.numel():
        tiling = tiling_of(x, axis, out_dtype)
        with torch.cuda.device_of(x):
            corrected_forward_kernel[tiling.grid](
                x_ptr=x, out_ptrs=tuple(outs), scale_ptr=scales.contiguous(), shift_ptr=contiguous(offsets),
                unit_ptr=contiguous(scale_units), floor_ptr=contiguous(scale_floors),
                new_scale_ptr=folded[1].contiguous(), new_shift_ptr=folded[2].contiguous(),
                levels=tuple(_ranges(bits, signed)), **tiling.arguments)
    return outs


def fake_quantize_corrected_backward(grads, x, scales, offsets, scale_units, scale_floors, folded, bits, signed, axis,
                                     grad_factor):
    ranges, count = _ranges(bits, signed), x.numel() // max(scales.shape[1], 1)
    factors = [default_grad_factor(count, hi) if grad_factor is None else grad_factor for _, hi in ranges]
    return launch_backward(fake_quantize_terms, grads, x, scales, offsets, ranges, factors, axis, folded[0],
                           scale_units, scale_floors)
