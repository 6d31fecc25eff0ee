"""The ops on integer codes, and the linear layer straight from them."""

import torch

import mbq_kernels as mbq

from . import code_variants
from .entry import CODES, FLOATS, Op
from .paths import PATHS
from .sweeps import over_matrices

STORED = torch.randint(-128, 128, (4, 33), dtype=torch.int8)
PLANES = torch.randint(0, 256, (8, 4, 5), dtype=torch.uint8)
X, S = torch.randn(4, 33), torch.ones(4)


def quantize(codes, scale, bits=4):
    return mbq.quantize_codes(codes.float(), scale, scale, bits=bits, axis=0)


def switch(codes, scale, bits=4):
    return mbq.switch_bits(codes, to_bits=bits)


def dequantize(codes, scale, bits=4):
    return mbq.dequantize_codes(codes, scale, to_bits=bits, axis=0, rounding="half_up")


def pack(codes, scale, bits=4):
    """Pack and unpack at a bit-width that packs whatever `bits` is."""
    packed = mbq.pack_codes(mbq.switch_bits(codes, to_bits=4), bits=4)
    return packed, mbq.unpack_codes(packed, bits=4, shape=codes.shape)


def planes(codes, scale, bits=4):
    split = mbq.to_planes(codes)
    return split, mbq.from_planes(split, bits=bits, shape=codes.shape)


def switched(x, scale, bits=4):  # not defined at 1 bit: 2 then
    codes = (torch.arange(scale.numel() * x.shape[-1], device=x.device) * 37 % 255 - 127).to(torch.int8)
    return mbq.switched_linear(x, codes.view(-1, x.shape[-1]), scale, scale * 2, bits=max(bits, 2))


def random_planes(codes):
    return torch.randint(0, 256, (8, *codes.shape[:-1], (codes.shape[-1] + 7) // 8), dtype=torch.uint8,
                         device=codes.device)


def matrix(x):
    """Return x, or its values as rows of 33."""
    return x if x.shape == (4, 33) else torch.nn.functional.pad(x.flatten(), (0, -x.numel() % 33)).view(-1, 33)


def random_codes(rows, columns, device):
    return torch.randint(-128, 128, (rows, columns), device=device, dtype=torch.int8), torch.full((rows,), 0.1,
                                                                                                   device=device)


def _sweep_quantize(rows, columns, device):
    codes, scale = random_codes(rows, columns, device)
    weight = mbq.dequantize_codes(codes, scale, to_bits=5, axis=0, rounding="half_up")
    assert torch.equal(mbq.quantize_codes(weight, scale * 8, bits=5, axis=0),
                       mbq.switch_bits(codes, to_bits=5, rounding="half_up"))
    return weight


def _sweep_pack(rows, columns, device):
    codes = mbq.switch_bits(random_codes(rows, columns, device)[0], to_bits=4)
    packed = mbq.pack_codes(codes, bits=4)
    assert torch.equal(mbq.unpack_codes(packed, bits=4, shape=codes.shape), codes)
    return packed


def _sweep_planes(rows, columns, device):
    codes, _ = random_codes(rows, columns, device)
    split = mbq.to_planes(codes)
    assert torch.equal(mbq.from_planes(split, bits=8, shape=codes.shape), codes)
    assert torch.equal(mbq.from_planes(split, bits=3, shape=codes.shape),
                       mbq.switch_bits(codes, to_bits=3, rounding="half_up"))
    return split


def _sweep_linear(rows, columns, device):
    codes, scale = random_codes(rows, columns, device)
    weight = mbq.dequantize_codes(codes, scale, to_bits=5, axis=0, rounding="half_up")
    for count in (1, 3, 17):
        x = torch.randn(count, columns, device=device, requires_grad=True)
        for store in (codes, mbq.to_planes(codes)):
            y = mbq.switched_linear(x, store, scale, bits=5)
            torch.autograd.grad(y.sum(), x)
            torch.testing.assert_close(y, x @ weight.T, rtol=1e-2, atol=1e-1 * columns**0.5)
    return y


QUANTIZE_CODES = Op(
    name="quantize_codes", call=quantize, data=CODES, bits=range(2, 9),
    raw={"quantize_codes_forward": lambda c, s: dict(x=c.float(), scale=s, offset=s, bits=4, signed=False, axis=0)},
    malformed={
        "too few scales": ("quantize_codes_forward", {"scale": S[:2]}),
        "integer x": ("quantize_codes_forward", {"x": STORED})},
    aot=code_variants.quantize_codes,
    on_host="no: its loop is fake_quantize's forward, which writes another type",
    paths=PATHS["quantize_codes"],
    sanitize=over_matrices(_sweep_quantize))

SWITCH_BITS = Op(
    name="switch_bits", call=switch, data=CODES, bits=range(2, 9),
    raw={"switch_bits_forward": lambda c, s: dict(codes=c, from_bits=8, to_bits=4, half_even=True)},
    malformed={
        "float codes": ("switch_bits_forward", {"codes": X}),
        "to 1 bit": ("switch_bits_forward", {"to_bits": 1}),
        "upwards": ("switch_bits_forward", {"from_bits": 4, "to_bits": 8})},
    aot=code_variants.switch_bits,
    on_host="test_codes_on_host.test_codes_one_by_one",
    paths=PATHS["switch_bits"],
    sanitize=over_matrices(_sweep_quantize))

DEQUANTIZE_CODES = Op(
    name="dequantize_codes", call=dequantize, data=CODES, bits=range(2, 9),
    raw={"dequantize_codes_forward": lambda c, s: dict(
        codes=c, scale=s, from_bits=8, to_bits=4, axis=0, dtype=torch.bfloat16, half_even=False)},
    malformed={
        "from 9 bits": ("dequantize_codes_forward", {"from_bits": 9, "to_bits": 8}),
        "too few scales": ("dequantize_codes_forward", {"scale": S[:2]}),
        "bfloat16 scale": ("dequantize_codes_forward", {"scale": S.bfloat16()}),
        "negative axis": ("dequantize_codes_forward", {"axis": -2}),
        "integer result": ("dequantize_codes_forward", {"dtype": torch.int32})},
    aot=code_variants.dequantize_codes,
    on_host="test_codes_on_host.test_codes_one_by_one",
    paths=PATHS["dequantize_codes"],
    sanitize=over_matrices(_sweep_quantize))

PACK_CODES = Op(
    name="pack_codes", also=("unpack_codes",), call=pack, data=CODES, bits=range(2, 9),
    raw={
        "pack_codes_forward": lambda c, s: dict(codes=c.clamp(-8, 7), bits=4, signed=True),
        "unpack_codes_forward": lambda c, s: dict(packed=random_planes(c)[0], bits=1, signed=False,
                                                  shape=list(c.shape))},
    malformed={
        "3 bits": ("pack_codes_forward", {"bits": 3}),
        "signed codes as unsigned": ("pack_codes_forward", {"signed": False}),
        "no axis": ("pack_codes_forward", {"codes": STORED[0, 0]}),
        "too few bytes": ("unpack_codes_forward", {"bits": 2}),
        "0 bits": ("unpack_codes_forward", {"bits": 0})},
    aot=code_variants.pack_codes,
    on_host="test_codes_on_host.test_packing",
    paths=PATHS["pack_codes"],
    sanitize=over_matrices(_sweep_pack))

TO_PLANES = Op(
    name="to_planes", also=("from_planes",), call=planes, data=CODES, bits=range(2, 9),
    raw={
        "to_planes_forward": lambda c, s: dict(codes=c, bits=8),
        "from_planes_forward": lambda c, s: dict(planes=random_planes(c), high_bits=8, bits=4, half_even=False,
                                                 shape=list(c.shape))},
    malformed={
        "9 planes": ("to_planes_forward", {"bits": 9}),
        "too few planes": ("from_planes_forward", {"planes": PLANES[:4]}),
        "too few planes for half_even": ("from_planes_forward", {"planes": PLANES[:7], "half_even": True}),
        "planes of another shape": ("from_planes_forward", {"shape": [4, 41]}),
        "planes that are codes": ("from_planes_forward", {"planes": STORED})},
    aot=code_variants.to_planes,
    on_host="test_codes_on_host.test_from_planes",
    paths=PATHS["to_planes"],
    sanitize=over_matrices(_sweep_planes))

SWITCHED_LINEAR = Op(
    name="switched_linear", call=switched, data=FLOATS, differentiable=True,
    raw={
        "switched_linear_forward": lambda x, s: dict(
            x=matrix(x), store=STORED.to(x.device), scale=s, bias=s * 2, high_bits=8, bits=4, half_up=True),
        "switched_linear_backward": lambda x, s: dict(
            grad=matrix(x)[:, :4], store=PLANES.to(x.device), scale=s, in_features=33, high_bits=8, bits=4,
            half_up=False)},
    malformed={
        "codes of other columns": ("switched_linear_forward", {"x": X[:, :32]}),
        "planes of other columns": ("switched_linear_forward", {"store": PLANES, "x": torch.randn(4, 41)}),
        "too few planes": ("switched_linear_forward", {"store": PLANES[:4]}),
        "too few planes for half_even": ("switched_linear_forward", {"store": PLANES[:7], "half_up": False}),
        "float store": ("switched_linear_forward", {"store": X}),
        "store of one row": ("switched_linear_forward", {"store": STORED[0]}),
        "one bit": ("switched_linear_forward", {"bits": 1}),
        "more bits than stored": ("switched_linear_forward", {"high_bits": 4, "bits": 5}),
        "more high bits than there are": ("switched_linear_forward", {"high_bits": 9, "bits": 5}),
        "a scale too few": ("switched_linear_forward", {"scale": S[:3]}),
        "a bias too few": ("switched_linear_forward", {"bias": S[:3]}),
        "float64 bias": ("switched_linear_forward", {"bias": S.double()}),
        "float64 x": ("switched_linear_forward", {"x": X.double()}),
        "x of one row": ("switched_linear_forward", {"x": X[0]}),
        "gradient of other columns": ("switched_linear_backward", {"grad": X}),
        "gradient for other columns": ("switched_linear_backward", {"store": STORED, "in_features": 34}),
        "negative columns": ("switched_linear_backward", {"store": STORED, "in_features": -1})},
    aot=code_variants.switched_linear,
    on_host="test_switched_linear_on_host.test_cuda_loops_on_the_host",
    paths=PATHS["switched_linear"],
    sanitize=over_matrices(_sweep_linear))

OPS = [QUANTIZE_CODES, SWITCH_BITS, DEQUANTIZE_CODES, PACK_CODES, TO_PLANES, SWITCHED_LINEAR]
