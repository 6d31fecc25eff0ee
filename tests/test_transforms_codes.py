"""The ops without a gradient, of codes and of scores, under opcheck, torch.compile, torch.export and vmap."""

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend

import mbq_kernels as mbq


def quantize(codes, scale, bits=4):
    return mbq.quantize_codes(codes.float(), scale, scale, bits=bits, axis=0)


def switch(codes, scale, bits=4):
    return mbq.switch_bits(codes, to_bits=bits)


def dequantize(codes, scale, bits=4):
    return mbq.dequantize_codes(codes, scale, to_bits=bits, axis=0, rounding="half_up")


def residual(codes, scale, bits=4):
    return mbq.extract_lsb(codes.float(), bits=bits, limit=scale + 128, axis=0)


def pack(codes, scale, bits=4):
    """There and back, at a bit-width that packs whatever `bits` is."""
    packed = mbq.pack_codes(mbq.switch_bits(codes, to_bits=4), bits=4)
    return packed, mbq.unpack_codes(packed, bits=4, shape=codes.shape)


def planes(codes, scale, bits=4):
    split = mbq.to_planes(codes)
    return split, mbq.from_planes(split, bits=bits, shape=codes.shape)


def error_norms(codes, scale, bits=4):
    return mbq.el2n(codes.float(), torch.arange(len(codes), device=codes.device) % codes.shape[-1])


def of_embedding(codes, scale, bits=4):
    return mbq.sample_grad_norm_embedding(codes.int() % bits, codes.unsqueeze(-1) * scale, padding_idx=0)


def of_layer_norm(codes, scale, bits=4):
    return mbq.sample_grad_norm_layer_norm(codes.float(), codes * scale[0], normalized_shape=codes.shape[-1])


def of_batch_norm(codes, scale, bits=4):
    if codes.shape[1] < 1000:  # every channel is a program, and the interpreter, which gets no more, is slow
        codes = codes[:, :9]
    return mbq.sample_grad_norm_batch_norm(codes.float(), codes * scale[0])


OPS = {"el2n": error_norms, "sample_grad_norm_embedding": of_embedding, "sample_grad_norm_layer_norm": of_layer_norm,
       "sample_grad_norm_batch_norm": of_batch_norm, "quantize_codes": quantize, "switch_bits": switch,
       "dequantize_codes": dequantize, "pack_codes": pack, "to_planes": planes, "extract_lsb": residual}
every_op = pytest.mark.parametrize("op", OPS.values(), ids=OPS.keys())


def random_planes(codes):
    return torch.randint(0, 256, (8, *codes.shape[:-1], (codes.shape[-1] + 7) // 8), dtype=torch.uint8,
                         device=codes.device)


def rows(codes):
    """(N, C) in float; of no codes, no rows"""
    return codes.float().flatten(1) if codes.numel() else codes.float().reshape(0, 1)


def cube(codes):
    """(N, P, 1) in float"""
    return codes.float().flatten(1).unsqueeze(-1)


RAW = {
    "el2n_forward": lambda c, s: (rows(c), torch.zeros(len(rows(c)), dtype=torch.int64, device=c.device), -100),
    "sample_grad_norm_embedding_forward": lambda c, s: (cube(c)[..., 0].long(), cube(c) * s, 3),
    "sample_grad_norm_layer_norm_forward": lambda c, s: (cube(c), cube(c) * 2, True, True),
    "sample_grad_norm_batch_norm_forward": lambda c, s: (cube(c)[:, :9], cube(c)[:, :9] * 2, True, False),
    "quantize_codes_forward": lambda c, s: (c.float(), s, s, 4, False, 0),
    "switch_bits_forward": lambda c, s: (c, 8, 4, True),
    "dequantize_codes_forward": lambda c, s: (c, s, 8, 4, 0, torch.bfloat16, False),
    "extract_lsb_forward": lambda c, s: (c.float(), s + 128, 4, 2, 0, True),
    "pack_codes_forward": lambda c, s: (c.clamp(-8, 7), 4, True),
    "unpack_codes_forward": lambda c, s: (random_planes(c)[0], 1, False, list(c.shape)),
    "to_planes_forward": lambda c, s: (c, 8),
    "from_planes_forward": lambda c, s: (random_planes(c), 8, 4, False, list(c.shape)),
}


def make(device, shape=(4, 33)):
    return torch.randint(-128, 128, shape, dtype=torch.int8, device=device), torch.rand(4, device=device) + 0.1


def same(one, other):
    one, other = ((t,) if isinstance(t, torch.Tensor) else t for t in (one, other))
    return all(a.dtype == b.dtype and torch.equal(a, b) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("raw", RAW)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "sliced", "empty"])
def test_opcheck(device, raw, layout):
    shape = {"contiguous": (4, 33), "sliced": (4, 66), "empty": (4, 0), "channels_last": (4, 3, 5, 2)}[layout]
    codes, scale = make(device, shape)
    codes = codes[:, ::2] if layout == "sliced" else codes
    codes = codes.to(memory_format=torch.channels_last) if layout == "channels_last" else codes
    torch.library.opcheck(getattr(torch.ops.mbq, raw).default, RAW[raw](codes, scale))


CODES, PLANES, SCALE = torch.zeros(3, 700, dtype=torch.int8), torch.zeros(8, 3, 88, dtype=torch.uint8), torch.ones(3)
MALFORMED = {
    "float codes": ("switch_bits_forward", (CODES.float(), 8, 4, True)),
    "switch to 1 bit": ("switch_bits_forward", (CODES, 8, 1, True)),
    "switch upwards": ("switch_bits_forward", (CODES, 4, 8, True)),
    "switch from 9 bits": ("dequantize_codes_forward", (CODES, SCALE, 9, 8, 0, torch.float32, True)),
    "too few scales": ("dequantize_codes_forward", (CODES, SCALE[:2], 8, 4, 0, torch.float32, True)),
    "bfloat16 scale": ("dequantize_codes_forward", (CODES, SCALE.bfloat16(), 8, 4, 0, torch.float32, True)),
    "negative axis": ("dequantize_codes_forward", (CODES, SCALE, 8, 4, -2, torch.float32, True)),
    "integer result": ("dequantize_codes_forward", (CODES, SCALE, 8, 4, 0, torch.int32, True)),
    "too few scales for x": ("quantize_codes_forward", (CODES.float(), SCALE[:2], None, 4, True, 0)),
    "integer x": ("quantize_codes_forward", (CODES, SCALE, None, 4, True, 0)),
    "3 bits packed": ("pack_codes_forward", (CODES, 3, True)),
    "signed codes as unsigned": ("pack_codes_forward", (CODES, 4, False)),
    "k": ("extract_lsb_forward", (CODES.float(), SCALE + 128, 4, 4, 0, False)),
    "no axis": ("pack_codes_forward", (CODES[0, 0], 4, True)),
    "too few bytes": ("unpack_codes_forward", (PLANES[0], 2, True, [3, 700])),
    "0 bits": ("unpack_codes_forward", (PLANES[0], 0, True, [3, 700])),
    "9 planes": ("to_planes_forward", (CODES, 9)),
    "too few planes": ("from_planes_forward", (PLANES[:4], 8, 4, False, [3, 700])),
    "too few planes for half_even": ("from_planes_forward", (PLANES[:7], 8, 4, True, [3, 700])),
    "planes of another shape": ("from_planes_forward", (PLANES, 8, 4, False, [3, 705])),
    "planes that are codes": ("from_planes_forward", (CODES, 8, 4, False, [3, 700])),
}


@pytest.mark.parametrize("raw, arguments", MALFORMED.values(), ids=MALFORMED.keys())
def test_compiled_code_reads_nothing_it_was_not_given(raw, arguments):
    """Raw operators are private, but what reaches them wrongly is an error, not a read outside memory."""
    with pytest.raises(RuntimeError, match="^(quantize_codes|switch_bits|dequantize_codes|(un)?pack_codes|to_planes|"
                                           "from_planes|extract_lsb): "):
        getattr(torch.ops.mbq, raw)(*arguments)


@every_op
def test_compile_fullgraph(device, op):
    codes, scale = make(device)
    assert same(torch.compile(op, fullgraph=True)(codes, scale), op(codes, scale))


@every_op
def test_bits_change_without_recompiling(device, op):
    counter = CompileCounterWithBackend("eager")
    compiled = torch.compile(op, fullgraph=True, backend=counter)
    codes, scale = make(device)
    for bits in range(2, 9):
        assert same(compiled(codes, scale, bits), op(codes, scale, bits))
    assert counter.frame_count <= 2


@every_op
def test_shapes_change_without_recompiling(device, op):
    counter = CompileCounterWithBackend("eager")
    compiled = torch.compile(op, fullgraph=True, backend=counter, dynamic=True)
    for n in (33, 34, 47, 64):
        codes, scale = make(device, (4, n))
        assert same(compiled(codes, scale), op(codes, scale))
    assert counter.frame_count <= 2


@every_op
def test_export(device, op):
    class Module(torch.nn.Module):
        def forward(self, codes, scale):
            return op(codes, scale)

    codes, scale = make(device)
    for strict in (False, True):
        exported = torch.export.export(Module(), (codes, scale), strict=strict)
        assert "mbq" in str(exported.graph)
        assert same(exported.module()(codes, scale), op(codes, scale))


@every_op
def test_vmap_is_a_loop(device, op):
    codes, scale = make(device, (3, 4, 33))
    actual = torch.func.vmap(lambda c: op(c, scale))(codes)
    expected = [op(one, scale) for one in codes]
    expected = ([torch.stack(column) for column in zip(*expected, strict=True)] if isinstance(expected[0], tuple)
                else torch.stack(expected))
    assert same(actual, expected)


@every_op
def test_result_repeats_whatever_the_threads(device, backend, op):
    interpreted = backend == "triton" and device == "cpu"  # where only the sums behind a kernel have threads
    codes, scale = make(device, (4, 411 if interpreted else 40011))
    first, threads = op(codes, scale), torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        assert same(first, op(codes, scale))
    finally:
        torch.set_num_threads(threads)
