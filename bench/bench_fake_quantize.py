"""fake_quantize, its multi-bit, many-tensor, affine and double-rounding forms against everybody, on real shapes.

    pytest bench/ [--mbq-json FILE] [--mbq-small] [--mbq-device cpu|cuda]
"""

import dataclasses

import pytest
import torch
from harness import BOTH, FORWARD, Case
from rivals import affine_rivals, double_rivals, foreach_rivals, functional, lsq_rivals, one_by_one, ours

from mbq_kernels import double_round, fake_quantize_affine, fake_quantize_foreach, fake_quantize_multi
from mbq_train.quantize.bits import code_range


def resnet50() -> tuple[tuple[int, int], ...]:
    """Weights of all 53 convolutions and the classifier of ResNet-50, each as (out channels, rest)."""
    shapes, inner = [(64, 3 * 49)], 64
    for width, blocks in ((64, 3), (128, 4), (256, 6), (512, 3)):
        for block in range(blocks):
            shapes += [(width, inner), (width, width * 9), (4 * width, width)]
            shapes += [(4 * width, inner)] if block == 0 else []
            inner = 4 * width
    return (*shapes, (1000, 2048))


def resnet20() -> tuple[tuple[int, ...], ...]:
    """Weights of all 19 convolutions and the classifier of ResNet-20 for CIFAR."""
    blocks = [(width, inner, 3, 3) for before, width in ((16, 16), (16, 32), (32, 64))
              for inner in (before, *[width] * 5)]
    return ((16, 3, 3, 3), *blocks, (10, 64))


SHAPES = {"resnet50": resnet50(), "resnet20": resnet20(), "512x512x3x3": ((512, 512, 3, 3),),
          "64x64x56x56": ((64, 64, 56, 56),), "1Mi": ((1024, 1024),), "4096x4096": ((4096, 4096),),
          "64Mi": ((8192, 8192),), "4x4": ((4, 4),),  # 4x4: what a call costs
          **{f"groups{size}": ((2**24 // size, size),) for size in (128, 64, 32)}}
MULTI_BITS = (8, 6, 4, 2)


def _foreach(case: Case, inputs):
    def call():
        rows = fake_quantize_foreach(inputs.xs, inputs.scales, bits=case.bits, axis=case.axis)
        return [x_hat for row in rows for x_hat in row]
    return call, inputs.parameters(case)


WORK = {  # by op: what a Case of it has
    "fake_quantize": {"ours": one_by_one(ours), "rivals": lsq_rivals},
    "fake_quantize_multi": {"bits": MULTI_BITS, "rivals": lsq_rivals, "ours": functional(
        lambda case, x, scales, zp: fake_quantize_multi(x, scales, bits=case.bits, axis=case.axis))},
    "fake_quantize_foreach": {"bits": MULTI_BITS, "rivals": foreach_rivals, "ours": _foreach},
    "double_round": {"bits": MULTI_BITS, "rivals": double_rivals, "single": "double_round", "one_scale": True,
                     "ours": functional(lambda case, x, scales, zp:
                                        double_round(x, scales[0], bits=case.bits, axis=case.axis))},
    "fake_quantize_affine": {"rivals": affine_rivals, "zero_point": True, "ours": one_by_one(
        lambda case, x, scale, zp, bits: fake_quantize_affine(
            x, scale, zp, axis=case.axis,
            **dict(zip(("quant_min", "quant_max"), code_range(bits, signed=True), strict=True))))},
}


def _cases():
    """(op, shape, dtype, what, axis): what a network or a paper would ask for, within the time there is."""
    f32, bf16 = torch.float32, torch.bfloat16
    single, multi, affine = "fake_quantize", "fake_quantize_multi", "fake_quantize_affine"
    foreach, double = "fake_quantize_foreach", "double_round"
    every = [shape for shape in SHAPES if shape != "resnet20" and not shape.startswith("groups")]
    chosen = [(single, shape, f32, what, None) for shape in every for what in (FORWARD, BOTH)]
    chosen += [(single, shape, f32, BOTH, 0) for shape in ("resnet50", "512x512x3x3", "4096x4096")]
    chosen += [(single, "64x64x56x56", f32, BOTH, 1)]
    chosen += [(single, shape, bf16, what, None) for shape in ("4096x4096", "64Mi") for what in (FORWARD, BOTH)]
    chosen += [(single, "512x512x3x3", bf16, BOTH, 0)]
    chosen += [(single, f"groups{size}", dtype, BOTH, 0) for size in (128, 64, 32) for dtype in (f32, bf16)]
    chosen += [(multi, shape, f32, BOTH, None) for shape in ("512x512x3x3", "4096x4096", "64Mi")]
    chosen += [(multi, "resnet50", f32, BOTH, 0), (multi, "4096x4096", f32, FORWARD, None),
               (multi, "4096x4096", bf16, BOTH, None)]
    chosen += [(foreach, "resnet20", f32, what, 0) for what in (FORWARD, BOTH)]
    chosen += [(foreach, "resnet20", f32, BOTH, None), (foreach, "resnet50", f32, BOTH, 0)]
    chosen += [(affine, "64Mi", f32, FORWARD, None), (affine, "4096x4096", f32, BOTH, None),
               (affine, "512x512x3x3", f32, BOTH, 0)]
    chosen += [(double, shape, f32, BOTH, 0) for shape in ("resnet50", "512x512x3x3", "4096x4096")]
    chosen += [(double, "4096x4096", f32, FORWARD, 0), (double, "4096x4096", bf16, BOTH, 0)]
    cases = [Case(op=op, shape=shape, shapes=SHAPES[shape], dtype=dtype, what=what, axis=axis, **WORK[op])
             for op, shape, dtype, what, axis in chosen]
    return cases + [dataclasses.replace(case, shape="64Mi-relu", zeros=True) for case in cases
                    if (case.op, case.shape, case.dtype) == (single, "64Mi", f32)]


CASES = _cases()


def _small(case: Case) -> Case:
    """The same case with every dimension cut to 24, and at most three layers."""
    shapes = tuple(tuple(min(size, 24) for size in shape) for shape in case.shapes[:3])
    return dataclasses.replace(case, shapes=shapes)


def _only_cuda(case: Case) -> bool:
    """64 Mi elements twice over: seconds per call for most rivals on a CPU, where 4096x4096 says the same; and zeros,
    which no CPU divides more slowly."""
    large = case.shape == "64Mi" and case.what == BOTH
    return case.zeros or large and (case.dtype != torch.float32 or len(case.bits) > 1)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_fake_quantize(case, device, pytestconfig, run_case):
    case = dataclasses.replace(case, device=device)
    if device == "cpu" and _only_cuda(case):
        pytest.skip("measured on CUDA alone")
    if pytestconfig.getoption("--mbq-small"):
        case = _small(case)
    run_case(case)
