"""Squared norms of per-sample weight gradients G^T A in Triton, which are not formed: by tiles or by Gram products.

A program owns one tile of one sample and leaves one number; torch adds a sample's numbers in float64: a fixed order, no
atomics. Products go through tensor cores, of float32 as three TensorFloat-32 products, which leaves float32's accuracy.
The windows of a convolution are not written out: a load finds its place in the image.
"""

from dataclasses import dataclass

import torch
import triton

from .._checks import arithmetic_dtype
from ._sample_kernels import bias_kernel, gram_kernel, tiles_kernel
from ._tiling import OPTIONS

PREFERENCE = 0.9  # Gram products round more: they must be cheaper by this factor


@dataclass(frozen=True)
class Problem:
    """Samples, each of `groups` groups of channels; strides as the kernels want them, sizes of one group."""
    activations: torch.Tensor
    grad_outputs: torch.Tensor
    weight_factor: torch.Tensor | None
    bias: bool
    groups: int
    positions: int
    inputs: int
    outputs: int
    a_strides: tuple[int, ...]
    g_strides: tuple[int, ...]
    image: tuple[int, int, int] = (1, 1, 1)
    windows: tuple[int, ...] | None = None

    @property
    def samples(self) -> int:
        return self.activations.shape[0] * self.groups

    def arguments(self) -> dict:
        tf32 = torch.backends.cuda.matmul.fp32_precision == "tf32"
        return {"a_ptr": self.activations, "g_ptr": self.grad_outputs, "positions": self.positions,
                "groups": self.groups, "a_strides": self.a_strides, "g_strides": self.g_strides, "image": self.image,
                "INPUTS": self.inputs, "OUTPUTS": self.outputs, "WINDOWS": self.windows,
                "PRECISION": "tf32" if tf32 else "tf32x3"}


def side(size: int, most: int) -> int:
    """Of a block: a power of two that tensor cores take."""
    return min(most, max(16, triton.next_power_of_2(size)))


def tile_blocks(positions: int, inputs: int, outputs: int, float32: bool) -> dict:
    """128 x 128 would spill where there is a factor."""
    return {"BLOCK_O": side(outputs, 64 if float32 else 128), "BLOCK_I": side(inputs, 64),
            "BLOCK_T": side(positions, 32)}


def bias_blocks(positions: int, outputs: int) -> dict:
    return {"BLOCK_O": side(outputs, 64), "BLOCK_T": side(positions, 32)}


def gram_blocks(positions: int, inputs: int, outputs: int, float32: bool) -> dict:
    """32 columns of float32 windows would spill on sm_90."""
    return {"BLOCK_T": side(positions, 64), "BLOCK_C": side(max(inputs, outputs), 16 if float32 else 32)}


def gram_is_cheaper(positions: int, inputs: int, outputs: int, float32: bool) -> bool:
    """Whether the multiplications of the blocks that are launched are fewer."""
    tile, gram = (blocks(positions, inputs, outputs, float32) for blocks in (tile_blocks, gram_blocks))
    rows = triton.cdiv(positions, gram["BLOCK_T"])
    of_gram = rows * (rows + 1) // 2 * gram["BLOCK_T"] ** 2 * (inputs + outputs)
    of_tiles = (triton.cdiv(outputs, tile["BLOCK_O"]) * tile["BLOCK_O"] * triton.cdiv(inputs, tile["BLOCK_I"])
                * tile["BLOCK_I"] * triton.cdiv(positions, tile["BLOCK_T"]) * tile["BLOCK_T"])
    return of_gram < PREFERENCE * of_tiles


def _launch_tiles(problem: Problem, float32: bool):
    tile = tile_blocks(problem.positions, problem.inputs, problem.outputs, float32)
    rows, columns = triton.cdiv(problem.outputs, tile["BLOCK_O"]), triton.cdiv(problem.inputs, tile["BLOCK_I"])
    bias = bias_blocks(problem.positions, problem.outputs)
    blocks = triton.cdiv(problem.outputs, bias["BLOCK_O"]) if problem.bias else 0
    slots = rows * columns + blocks
    sums = problem.activations.new_empty(problem.samples, slots, dtype=torch.float64)
    arguments = {**problem.arguments(), "sums_ptr": sums, "slots": slots,
                 "STEPS": triton.cdiv(problem.positions, tile["BLOCK_T"])}
    factor = problem.weight_factor
    if columns:
        tiles_kernel[(problem.samples * rows * columns,)](
            **arguments, factor_ptr=None if factor is None else factor.contiguous(), **tile, **OPTIONS)
    if problem.bias:
        wanted = ("g_ptr", "sums_ptr", "positions", "groups", "slots", "g_strides", "OUTPUTS", "STEPS")
        bias_kernel[(problem.samples * blocks,)](**{name: arguments[name] for name in wanted}, **bias, **OPTIONS)
    return sums


def _launch_gram(problem: Problem, float32: bool):
    blocks = gram_blocks(problem.positions, problem.inputs, problem.outputs, float32)
    rows = triton.cdiv(problem.positions, blocks["BLOCK_T"])
    slots = rows * (rows + 1) // 2
    sums = problem.activations.new_empty(problem.samples, slots, dtype=torch.float64)
    gram_kernel[(problem.samples * slots,)](
        **problem.arguments(), sums_ptr=sums, slots=slots, BIAS=problem.bias, **blocks, **OPTIONS)
    return sums


def squared_norms(op: str, problem: Problem, gram: bool | None):
    """(N,) float32; `gram` None: the way that costs less"""
    if arithmetic_dtype(problem.activations) == torch.float64:
        raise TypeError(f"{op}: activations must be float32, bfloat16 or float16 for Triton kernels, got torch.float64")
    if gram and problem.weight_factor is not None:
        raise RuntimeError(f"{op}: Gram products must have no weight_factor")
    samples = problem.activations.shape[0]
    if 0 in (samples, problem.positions, problem.outputs):
        return problem.activations.new_zeros(samples, dtype=torch.float32)
    float32 = torch.float32 in (problem.activations.dtype, problem.grad_outputs.dtype)
    if gram is None:
        gram = problem.weight_factor is None and gram_is_cheaper(
            problem.positions, problem.inputs, problem.outputs, float32)
    with torch.cuda.device_of(problem.activations):
        sums = _launch_gram(problem, float32) if gram else _launch_tiles(problem, float32)
    norms = sums.view(samples, -1).sum(1)
    return (norms.clamp(min=0.0) if gram else norms).float()
