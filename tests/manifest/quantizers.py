"""The quantizers with a learned scale."""

import torch

import mbq_kernels as mbq

from .entry import FLOATS, Op, row
from .paths import PATHS
from .sweeps import over_matrices, over_tensors
from .variants import MIXED, PAIR, channel_sum_variants, dynamic_variants, quantizer_variants

S, ONE, HALF = torch.ones(4), torch.ones(1), torch.ones(4).bfloat16()
X = torch.randn(4, 33)


def single(x, scale, bits=4):
    return mbq.fake_quantize(x, scale, bits=bits, axis=0)


def multi(x, scale, bits=4):
    return torch.stack(mbq.fake_quantize_multi(x, [scale, scale * 2], bits=[bits, 2], axis=0))


def affine(x, scale, bits=4):
    return mbq.fake_quantize_affine(x, scale, torch.zeros_like(scale), quant_min=-bits, quant_max=bits, axis=0)


def dynamic(x, scale, bits=4):
    return row(scale, mbq.fake_quantize_dynamic(x, quant_min=-bits, quant_max=bits)[0])


def rows(x):
    """Return x as (rows, size); no rows where it has no elements."""
    return x.float().flatten(1) if x.numel() else x.float().reshape(0, 1)


def ones(x):
    return torch.ones(len(rows(x)), device=x.device)


def _sweep_dynamic(count, size, device):
    x = torch.randn(count, size, device=device, requires_grad=True)
    x_hat, scale, zero_point = mbq.fake_quantize_dynamic(x, quant_min=-8, quant_max=7)
    symmetric = mbq.fake_quantize_dynamic(x.bfloat16(), quant_min=-8, quant_max=7, symmetric=True, grad_product=True)
    return torch.autograd.grad((x_hat + symmetric[0]).sum(), x)[0] + (scale + zero_point)[:, None]


def foreach(x, scale, bits=4):
    two = [scale, scale * 2], torch.stack([scale, scale * 2])
    outs = mbq.fake_quantize_foreach([x, x * 4], two, bits=[bits, 2], axis=0)  # 4: no rounding that a compiler may fuse
    return torch.stack([out for row in outs for out in row])


def double(x, scale, bits=4):
    return torch.stack(mbq.double_round(x, scale / 16, bits=[bits // 2 + 2, 2], axis=0))  # 2 .. 6 for 1 .. 8


def two(one, other):
    return torch.stack([one, other])


FAKE_QUANTIZE = Op(
    name="fake_quantize", call=single, data=FLOATS, differentiable=True,
    raw={
        "fake_quantize_forward": lambda x, s: dict(
            x=x, scale=s, offset=s * 0, scale_unit=s + 1, scale_floor=s * 2, bits=4, signed=True, axis=0,
            out_dtype=torch.bfloat16),
        "fake_quantize_backward": lambda x, s: dict(
            grad=x * 2, x=x, scale=s, offset=None, scale_unit=s + 1, scale_floor=None, bits=4, signed=False, axis=0,
            grad_factor=None)},
    malformed={
        "gradient of another shape": ("fake_quantize_backward", {"grad": X[:1, 0]}),
        "gradient that would broadcast": ("fake_quantize_backward", {"grad": X[:1]}),
        "negative axis": ("fake_quantize_forward", {"axis": -2}),
        "axis too large": ("fake_quantize_forward", {"axis": 2}),
        "too few scales": ("fake_quantize_forward", {"scale": S[:2]}),
        "bfloat16 scale": ("fake_quantize_forward", {"scale": HALF}),
        "float32 scale of float64 x": ("fake_quantize_forward", {"x": X.double()}),
        "bfloat16 offset": ("fake_quantize_forward", {"offset": HALF}),
        "bfloat16 floor": ("fake_quantize_forward", {"scale_floor": HALF}),
        "too few floors": ("fake_quantize_backward", {"scale_floor": S[:1]}),
        "bfloat16 unit": ("fake_quantize_backward", {"scale_unit": HALF}),
        "too few units": ("fake_quantize_forward", {"scale_unit": S[:1]}),
        "bits": ("fake_quantize_forward", {"bits": 99})},
    aot=quantizer_variants("fake_quantize", levels=(1,), shifts=(False, True)),
    on_host="test_cuda_on_host.test_fake_quantize",
    paths=PATHS["fake_quantize"],
    sanitize=over_tensors(lambda x, axis, scale, offset, unit, floor: [
        mbq.fake_quantize(x, scale, offset, bits=4, axis=axis), mbq.fake_quantize(x, scale, bits=1, axis=axis),
        mbq.fake_quantize(x, scale, offset, bits=4, axis=axis, scale_unit=unit, scale_floor=floor)]))

FAKE_QUANTIZE_MULTI = Op(
    name="fake_quantize_multi", call=multi, data=FLOATS, differentiable=True,
    raw={
        "fake_quantize_multi_forward": lambda x, s: dict(
            x=x, scales=two(s, s), offsets=None, scale_units=None, scale_floors=None, bits=[4, 1], signed=True,
            axis=0, out_dtype=None),
        "fake_quantize_multi_backward": lambda x, s: dict(
            grads=[x, x * 2], x=x, scales=two(-s, s), offsets=two(s, s), scale_units=two(s + 1, s),
            scale_floors=two(s, s), bits=[4, 1], signed=True, axis=0, grad_factor=1.0)},
    malformed={
        "gradients of two dtypes": ("fake_quantize_multi_backward", {"grads": [X, X.bfloat16()]}),
        "a gradient too few": ("fake_quantize_multi_backward", {"grads": [X]})},
    aot=lambda: (*quantizer_variants("fake_quantize", levels=(4,), shifts=(False, True), in_units=(True,))(),
                 *channel_sum_variants()),
    on_host="test_cuda_on_host.test_fake_quantize",
    paths=PATHS["fake_quantize_multi"],
    sanitize=over_tensors(lambda x, axis, scale, offset, unit, floor:
                          mbq.fake_quantize_multi(x, [scale] * 3, bits=(8, 4, 2), axis=axis)))

FAKE_QUANTIZE_FOREACH = Op(
    name="fake_quantize_foreach", call=foreach, data=FLOATS, differentiable=True,
    raw={
        "fake_quantize_foreach_forward": lambda x, s: dict(
            xs=[x, x[:2]], scales=[s, s * 2, s[:1], s[1:2]], offsets=[], scale_units=[s + 1, s, s[:1], s[1:2]],
            scale_floors=[s, s * 3, s[:1], s[1:2]], bits=[4, 1], signed=True, axes=[0, -1], out_dtype=None),
        "fake_quantize_foreach_backward": lambda x, s: dict(
            grads=[x, x * 2, x[:2], x[2:]], xs=[x, x[:2]], scales=[s, s * 2, s[:1], s[1:2]],
            offsets=[s * 0, s, s[:1], s[1:2]], scale_units=[s + 1, s, s[:1], s[1:2]], scale_floors=[], bits=[4, 1],
            signed=True, axes=[0, -1], grad_factor=None)},
    malformed={
        "a scale too few": ("fake_quantize_foreach_forward", {"scales": [S, S, ONE]}),
        "an axis too few": ("fake_quantize_foreach_forward", {"axes": [0]}),
        "an offset too few": ("fake_quantize_foreach_forward", {"offsets": [S, S, ONE]}),
        "a floor too few": ("fake_quantize_foreach_forward", {"scale_floors": [S, S, ONE]}),
        "a unit too few": ("fake_quantize_foreach_backward", {"scale_units": [S, S, ONE]}),
        "a short unit": ("fake_quantize_foreach_forward", {"scale_units": [ONE, S, ONE, ONE]}),
        "a short floor": ("fake_quantize_foreach_forward", {"scale_floors": [S, ONE, ONE, ONE]}),
        "a short scale": ("fake_quantize_foreach_forward", {"scales": [S, S[:2], ONE, ONE]}),
        "x of two dtypes": ("fake_quantize_foreach_forward", {"xs": [X, X[:2].half()]}),
        "no x": ("fake_quantize_foreach_backward",
                 {"grads": [X], "axes": []} | dict.fromkeys(("xs", "scales", "offsets", "scale_units"), [])),
        "no bits": ("fake_quantize_foreach_forward",
                    dict.fromkeys(("bits", "scales", "scale_units", "scale_floors"), [])),
        "a gradient too few": ("fake_quantize_foreach_backward", {"grads": [X, X, X[:2]]}),
        "gradients of two dtypes": ("fake_quantize_foreach_backward", {"grads": [X, X.half(), X[:2], X[:2]]})},
    aot="fake_quantize_multi",
    on_host="test_cuda_on_host.test_every_block_works_for_its_item",
    paths=PATHS["fake_quantize_foreach"],
    sanitize=over_tensors(lambda x, axis, scale, offset, unit, floor: [
        *mbq.fake_quantize_foreach([x] * 100, [[scale]] * 100, [[offset]] * 100, bits=[4], axis=axis)[99],
        *mbq.fake_quantize_foreach([x] * 100, [[scale]] * 100, bits=[4], axis=axis, scale_units=[[unit]] * 100,
                                   scale_floors=[[floor]] * 100)[99]]))

DOUBLE_ROUND = Op(
    name="double_round", call=double, data=FLOATS, differentiable=True,
    raw={
        "double_round_forward": lambda x, s: dict(
            x=x, scale=s, scale_unit=s + 1, scale_floor=None, high_bits=8, bits=[4, 2], axis=0, half_up=True,
            out_dtype=torch.bfloat16),
        "double_round_backward": lambda x, s: dict(
            grads=[x, x * 2], x=x, scale=s, scale_unit=s + 1, scale_floor=s * 2, high_bits=8, bits=[4, 2], axis=0,
            half_up=False, grad_factor=None, scale_chain=True)},
    malformed={
        "a unit per bit-width": ("double_round_forward", {"scale_unit": torch.ones(2, 4)}),
        "a floor per bit-width": ("double_round_forward", {"scale_floor": torch.ones(2, 4)}),
        "a scale per bit-width": ("double_round_forward", {"scale": torch.ones(2, 4)}),
        "bits over high_bits": ("double_round_forward", {"high_bits": 4, "bits": [6]}),
        "1 bit": ("double_round_forward", {"high_bits": 4, "bits": [1]}),
        "high_bits": ("double_round_forward", {"high_bits": 99, "bits": [4]})},
    aot=quantizer_variants("double_round", level=(*PAIR, ("fp32",) * 3), levels=(1, 4), shifts=(False,),
                           in_units=(False,), one_scale=True),
    on_host="test_cuda_on_host.test_double_round",
    paths=PATHS["double_round"],
    sanitize=over_tensors(lambda x, axis, scale, offset, unit, floor: [
        *mbq.double_round(x, scale, bits=(8, 4, 2), axis=axis),
        *mbq.double_round(x, scale, bits=(8, 4, 2), axis=axis, scale_unit=unit, scale_floor=floor)]))

FAKE_QUANTIZE_AFFINE = Op(
    name="fake_quantize_affine", call=affine, data=FLOATS, differentiable=True,
    raw={
        "fake_quantize_affine_forward": lambda x, s: dict(
            x=x, scale=s, zero_point=s * 0, quant_min=-8, quant_max=7, axis=0, form=0),
        "fake_quantize_affine_backward": lambda x, s: dict(
            grad=x * 2, x=x, scale=s, zero_point=s * 0, quant_min=-8, quant_max=7, axis=0, grad_factor=1.0,
            form=0)},
    malformed={
        "too few zero points": ("fake_quantize_affine_forward", {"zero_point": S[:2]}),
        "float32 zero points of float64 x": ("fake_quantize_affine_forward", {"x": X.double(), "scale": S.double()}),
        "int64 zero points": ("fake_quantize_affine_backward", {"zero_point": S.long()}),
        "form": ("fake_quantize_affine_forward", {"form": 64})},
    aot=lambda: (*quantizer_variants("fake_quantize_affine", levels=(1,), shifts=(True,), storage=MIXED[:3])(),
                 *quantizer_variants("general_affine", level=(*PAIR, ("fp32",) * 6), levels=(1,), shifts=(True,),
                                     storage=MIXED[:1])()),
    on_host="test_cuda_on_host.test_fake_quantize_affine",
    paths=PATHS["fake_quantize_affine"],
    sanitize=over_tensors(lambda x, axis, scale, offset, unit, floor: [
        mbq.fake_quantize_affine(x, scale, offset, quant_min=-8, quant_max=7, axis=axis),
        mbq.fake_quantize_affine(x, scale, offset, quant_min=-8, quant_max=7, axis=axis, quotient="division",
                                 zero_point_form="before_rounding", mask="position", grad_product=True)]))

FAKE_QUANTIZE_DYNAMIC = Op(
    name="fake_quantize_dynamic", call=dynamic, data=FLOATS, differentiable=True, cuda=False,
    raw={
        "fake_quantize_dynamic_forward": lambda x, s: dict(
            x=rows(x), quant_min=-8, quant_max=7, symmetric=False, eps=1e-6),
        "fake_quantize_dynamic_backward": lambda x, s: dict(
            grad=rows(x) * 2, x=rows(x), scale=ones(x), zero_point=ones(x), quant_min=-8, quant_max=7, product=True)},
    malformed={
        "no rows": ("fake_quantize_dynamic_forward", {"x": X[0]}),
        "a gradient too few": ("fake_quantize_dynamic_backward", {"grad": X[:3]}),
        "a scale too few": ("fake_quantize_dynamic_backward", {"scale": S[:3]}),
        "a zero point too few": ("fake_quantize_dynamic_backward", {"zero_point": S[:3]})},
    aot=dynamic_variants,
    sanitize=over_matrices(_sweep_dynamic))

OPS = [FAKE_QUANTIZE, FAKE_QUANTIZE_MULTI, FAKE_QUANTIZE_FOREACH, DOUBLE_ROUND, FAKE_QUANTIZE_AFFINE,
       FAKE_QUANTIZE_DYNAMIC]
