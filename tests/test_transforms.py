"""Every public op under opcheck, torch.compile, torch.export, torch.func, autocast and CUDA graphs."""

import pytest
import test_transforms_codes
import test_transforms_norms
import torch
from torch._dynamo.testing import CompileCounterWithBackend

import mbq_kernels as mbq
from mbq_kernels._library import ops


def single(x, scale, bits=4):
    return mbq.fake_quantize(x, scale, bits=bits, axis=0)


def multi(x, scale, bits=4):
    return torch.stack(mbq.fake_quantize_multi(x, [scale, scale * 2], bits=[bits, 2], axis=0))


def affine(x, scale, bits=4):
    return mbq.fake_quantize_affine(x, scale, torch.zeros_like(scale), quant_min=-bits, quant_max=bits, axis=0)


def foreach(x, scale, bits=4):
    two = [scale, scale * 2], torch.stack([scale, scale * 2])
    outs = mbq.fake_quantize_foreach([x, x * 4], two, bits=[bits, 2], axis=0)  # 4: no rounding that a compiler may fuse
    return torch.stack([out for row in outs for out in row])


def double(x, scale, bits=4):
    return torch.stack(mbq.double_round(x, scale / 16, bits=[bits // 2 + 2, 2], axis=0))  # 2 .. 6 for 1 .. 8


def switched(x, scale, bits=4):  # not defined at 1 bit: 2 then
    codes = (torch.arange(scale.numel() * x.shape[-1], device=x.device) * 37 % 255 - 127).to(torch.int8)
    return mbq.switched_linear(x, codes.view(-1, x.shape[-1]), scale, scale * 2, bits=max(bits, 2))


def lsb_options(x, bits):
    """Those of a weight with an axis; with k below them there are no 1 and 2 bits."""
    return {"bits": max(bits, 3), "limit": x.detach().abs().amax(1), "axis": 0}


def row(scale, *results):
    """All results side by side, so that no sum but the op's own is in their gradients; scale gets 0"""
    return torch.cat([scale * 0, *(result.flatten() for result in results)])


def clamped(x, scale, bits=4):
    options = lsb_options(x, bits)
    return row(scale, mbq.round_clamp(x, **options), mbq.round_clamp(x, form="sign-magnitude", **options))


def penalty(x, scale, bits=4):
    return row(scale, *mbq.lsb_penalty(x, k=2, form="sign-magnitude", **lsb_options(x, bits)))


def clamped_lsb(x, scale, bits=4):
    return row(scale, *mbq.round_clamp_lsb(x, **lsb_options(x, bits)))


def clamped_foreach(x, scale, bits=4):
    options = lsb_options(x, bits)
    values, penalties, rates = mbq.round_clamp_lsb_foreach(
        [x, x * 2], bits=[options["bits"], 4], k=[2, 1], limits=[options["limit"], options["limit"].amax() * 2], axis=0,
        form="sign-magnitude")
    return row(scale, *values, penalties, rates)


def cross_entropy(x, scale, bits=4):
    targets = torch.arange(scale.numel(), device=x.device) * bits % x.shape[-1]
    return mbq.cross_entropy_el2n(x, targets, label_smoothing=0.1)[0] * scale


def corrected(x, scale, bits=4):
    return torch.stack(mbq.fake_quantize_corrected(x, [scale, scale * 2], bits=[bits, 2], axis=0))


def correct(x, scale, bits=4):
    return mbq.correct_weight_bias(x * bits, x.abs(), detach_stats=False)[:, 0] * scale


OPS = {"cross_entropy_el2n": cross_entropy, "correct_weight_bias": correct, "fake_quantize_corrected": corrected,
       "fake_quantize": single, "fake_quantize_multi": multi, "fake_quantize_affine": affine,
       "fake_quantize_foreach": foreach, "double_round": double, "switched_linear": switched, "round_clamp": clamped,
       "lsb_penalty": penalty, "round_clamp_lsb": clamped_lsb, "round_clamp_lsb_foreach": clamped_foreach}
every_op = pytest.mark.parametrize("op", OPS.values(), ids=OPS.keys())


def make(device, shape=(4, 33)):
    return (torch.randn(shape, device=device).requires_grad_(),
            (torch.rand(shape[0], device=device) * 0.3 + 0.1).requires_grad_())


def matrix(x):
    """x itself, or its values as rows of 33"""
    return x if x.shape == (4, 33) else torch.nn.functional.pad(x.flatten(), (0, -x.numel() % 33)).view(-1, 33)


def test_every_op_is_here():
    assert sorted([*OPS, *test_transforms_codes.OPS, *test_transforms_norms.OPS]) == sorted(ops())


def rows(x):
    """(N, C); of no elements, no rows"""
    return x.flatten(1) if x.numel() else x.reshape(0, 1)


def classes(x):
    return torch.arange(len(rows(x)), device=x.device) % rows(x).shape[1]


CODES = torch.randint(-128, 128, (4, 33), dtype=torch.int8)
PLANES = torch.randint(0, 256, (8, 4, 5), dtype=torch.uint8)


def bounded(x):
    """x and a limit for each of its rows"""
    return x, x.new_full(x.shape[:1], 9.0)


RAW = {
    "cross_entropy_el2n_forward": lambda x, s: (rows(x), classes(x), -100, 0.1),
    "cross_entropy_el2n_backward":
        lambda x, s: (rows(x).sum(1), rows(x), classes(x), rows(x)[:, :1].expand(-1, 2), -100, 0.0),
    "correct_weight_bias_forward": lambda x, s: (x, x * 2, 0, 1e-8),
    "fake_quantize_corrected_fold":
        lambda x, s: (x, torch.stack([s, s]), torch.stack([s, s]), torch.stack([s, s]), torch.stack([s * 2, s]), x * 2,
                      [4, 1], True, 0),
    "fake_quantize_corrected_forward":
        lambda x, s: (x, torch.stack([s, s]), None, None, None, torch.stack([torch.stack([s, s])] * 3), [4, 1], True,
                      0, None),
    "fake_quantize_corrected_backward":
        lambda x, s: ([x, x * 2], x, torch.stack([s, s]), torch.stack([s, s]), None, torch.stack([s * 2, s]),
                      torch.stack([torch.stack([s, s])] * 3), [4, 1], True, 0, 1.0),
    "switched_linear_forward": lambda x, s: (matrix(x), CODES.to(x.device), s, s * 2, 8, 4, True),
    "switched_linear_backward": lambda x, s: (matrix(x)[:, :4], PLANES.to(x.device), s, 33, 8, 4, False),
    "fake_quantize_forward": lambda x, s: (x, s, s * 0, s + 1, s * 2, 4, True, 0, torch.bfloat16),
    "fake_quantize_backward": lambda x, s: (x * 2, x, s, None, s + 1, None, 4, False, 0, None),
    "fake_quantize_multi_forward": lambda x, s: (x, torch.stack([s, s]), None, None, None, [4, 1], True, 0, None),
    "fake_quantize_multi_backward":
        lambda x, s: ([x, x * 2], x, torch.stack([-s, s]), torch.stack([s, s]), torch.stack([s + 1, s]),
                      torch.stack([s, s]), [4, 1], True, 0, 1.0),
    "fake_quantize_foreach_forward":
        lambda x, s: ([x, x[:2]], [s, s * 2, s[:1], s[1:2]], [], [s + 1, s, s[:1], s[1:2]],
                      [s, s * 3, s[:1], s[1:2]], [4, 1], True, [0, -1], None),
    "fake_quantize_foreach_backward":
        lambda x, s: ([x, x * 2, x[:2], x[2:]], [x, x[:2]], [s, s * 2, s[:1], s[1:2]], [s * 0, s, s[:1], s[1:2]],
                      [s + 1, s, s[:1], s[1:2]], [], [4, 1], True, [0, -1], None),
    "fake_quantize_affine_forward": lambda x, s: (x, s, s * 0, -8, 7, 0),
    "fake_quantize_affine_backward": lambda x, s: (x * 2, x, s, s * 0, -8, 7, 0, 1.0),
    "round_clamp_forward": lambda x, s: (*bounded(x), 4, 0, False),
    "lsb_penalty_forward": lambda x, s: (*bounded(x), 4, 2, 0, True),
    "lsb_penalty_backward": lambda x, s: (s[0], *bounded(x), 4, 1, 0, False, True),
    "round_clamp_lsb_forward": lambda x, s: (*bounded(x), 8, 1, 0, False),
    "round_clamp_lsb_backward": lambda x, s: (x * 2, s[0], *bounded(x), 8, 3, 0, True, False),
    "round_clamp_lsb_foreach_forward":
        lambda x, s: ([x, x[:2]], [bounded(x)[1], x.new_full((1,), 9.0)], [4, 8], [1, 2], [0, -1], True),
    "round_clamp_lsb_foreach_backward":
        lambda x, s: ([x * 2, x[2:]], s[:2], [x, x[:2]], [bounded(x)[1], x.new_full((1,), 9.0)], [4, 8], [1, 2],
                      [0, -1], True, False),
    "double_round_forward": lambda x, s: (x, s, s + 1, None, 8, [4, 2], 0, True, torch.bfloat16),
    "double_round_backward": lambda x, s: ([x, x * 2], x, s, s + 1, s * 2, 8, [4, 2], 0, False, None, True),
}


@pytest.mark.parametrize("raw", RAW)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "sliced", "empty"])
def test_opcheck(device, raw, layout):
    x = {"contiguous": torch.randn(4, 33), "sliced": torch.randn(4, 66)[:, ::2], "empty": torch.randn(4, 0),
         "channels_last": torch.randn(4, 3, 5, 2).to(memory_format=torch.channels_last)}[layout].to(device)
    scale = torch.rand(4, device=device) + 0.1
    torch.library.opcheck(getattr(torch.ops.mbq, raw).default, RAW[raw](x, scale))


X, SCALE = torch.randn(3, 700), torch.ones(3)
MALFORMED = {
    "gradient of another shape":
        ("fake_quantize_backward", (torch.randn(1), X, SCALE, None, None, None, 4, True, 0, None)),
    "gradient that would broadcast": ("fake_quantize_backward", (X[:1], X, SCALE, None, None, None, 4, True, 0, None)),
    "negative axis": ("fake_quantize_forward", (X, SCALE, None, None, None, 4, True, -2, None)),
    "axis too large": ("fake_quantize_forward", (X, SCALE, None, None, None, 4, True, 2, None)),
    "too few scales": ("fake_quantize_forward", (X, SCALE[:2], None, None, None, 4, True, 0, None)),
    "bfloat16 scale": ("fake_quantize_forward", (X, SCALE.bfloat16(), None, None, None, 4, True, 0, None)),
    "float32 scale of float64 x": ("fake_quantize_forward", (X.double(), SCALE, None, None, None, 4, True, 0, None)),
    "bfloat16 offset": ("fake_quantize_forward", (X, SCALE, SCALE.bfloat16(), None, None, 4, True, 0, None)),
    "bfloat16 floor": ("fake_quantize_forward", (X, SCALE, None, None, SCALE.bfloat16(), 4, True, 0, None)),
    "too few floors": ("fake_quantize_backward", (X, X, SCALE, None, None, SCALE[:1], 4, True, 0, None)),
    "bfloat16 unit": ("fake_quantize_backward", (X, X, SCALE, None, SCALE.bfloat16(), None, 4, True, 0, None)),
    "too few units": ("fake_quantize_forward", (X, SCALE, None, SCALE[:1], None, 4, True, 0, None)),
    "a unit per bit-width": ("double_round_forward", (X, SCALE, torch.ones(2, 3), None, 8, [4, 2], 0, False, None)),
    "a floor per bit-width": ("double_round_forward", (X, SCALE, None, torch.ones(2, 3), 8, [4, 2], 0, False, None)),
    "bits": ("fake_quantize_forward", (X, SCALE, None, None, None, 99, True, 0, None)),
    "gradients of two dtypes":
        ("fake_quantize_multi_backward",
         ([X, X.bfloat16()], X, torch.ones(2, 3), None, None, None, [4, 2], True, 0, None)),
    "a gradient too few":
        ("fake_quantize_multi_backward", ([X], X, torch.ones(2, 3), None, None, None, [4, 2], True, 0, None)),
    "a scale per bit-width": ("double_round_forward", (X, torch.ones(2, 3), None, None, 8, [4, 2], 0, False, None)),
    "bits over high_bits": ("double_round_forward", (X, SCALE, None, None, 4, [6], 0, False, None)),
    "1 bit": ("double_round_forward", (X, SCALE, None, None, 4, [1], 0, False, None)),
    "high_bits": ("double_round_forward", (X, SCALE, None, None, 99, [4], 0, False, None)),
}

FORWARD, BACKWARD = "fake_quantize_foreach_forward", "fake_quantize_foreach_backward"
MALFORMED |= {
    "foreach, a scale too few": (FORWARD, ([X, X], [SCALE] * 3, [], [], [], [4, 2], True, [0, 0], None)),
    "foreach, an axis too few": (FORWARD, ([X, X], [SCALE] * 4, [], [], [], [4, 2], True, [0], None)),
    "foreach, an offset too few": (FORWARD, ([X, X], [SCALE] * 4, [SCALE] * 2, [], [], [4, 2], True, [0, 0], None)),
    "foreach, a floor too few": (FORWARD, ([X, X], [SCALE] * 4, [], [], [SCALE] * 3, [4, 2], True, [0, 0], None)),
    "foreach, a unit too few":
        (BACKWARD, ([X] * 4, [X, X], [SCALE] * 4, [], [SCALE] * 3, [], [4, 2], True, [0, 0], None)),
    "foreach, a short unit": (FORWARD, ([X], [SCALE] * 2, [], [SCALE[:1], SCALE], [], [4, 2], True, [0], None)),
    "foreach, a short floor": (FORWARD, ([X], [SCALE] * 2, [], [], [SCALE, SCALE[:1]], [4, 2], True, [0], None)),
    "foreach, a short scale": (FORWARD, ([X, X], [*[SCALE] * 3, SCALE[:2]], [], [], [], [4, 2], True, [0, 0], None)),
    "foreach, x of two dtypes": (FORWARD, ([X, X.half()], [SCALE] * 4, [], [], [], [4, 2], True, [0, 0], None)),
    "foreach, no x": (BACKWARD, ([X], [], [], [], [], [], [4], True, [], None)),
    "foreach, no bits": (FORWARD, ([X], [], [], [], [], [], True, [0], None)),
    "foreach, a gradient too few": (BACKWARD, ([X] * 3, [X, X], [SCALE] * 4, [], [], [], [4, 2], True, [0, 0], None)),
    "foreach, gradients of two dtypes":
        (BACKWARD, ([X, X.half()], [X, X], [SCALE] * 2, [], [], [], [4], True, [0, 0], None)),
}

MALFORMED |= {
    "round_clamp, bits": ("round_clamp_forward", (X, None, 9, None, False)),
    "round_clamp, an axis without limit": ("round_clamp_forward", (X, None, 4, 0, False)),
    "lsb, k": ("lsb_penalty_forward", (X, None, 4, 4, None, False)),
    "lsb, too few limits": ("lsb_penalty_forward", (X, SCALE[:2], 4, 1, 0, False)),
    "lsb, bfloat16 limit": ("round_clamp_lsb_forward", (X, SCALE.bfloat16(), 4, 1, 0, False)),
    "lsb, bfloat16 gradient": ("lsb_penalty_backward", (SCALE[0].bfloat16(), X, SCALE, 4, 1, 0, False, False)),
    "lsb, gradient of another shape": ("round_clamp_lsb_backward", (X[:1], SCALE[0], X, SCALE, 4, 1, 0, False, False)),
    "lsb, gradient of another dtype":
        ("round_clamp_lsb_backward", (X.half(), SCALE[0], X, SCALE, 4, 1, 0, False, False)),
    "lsb foreach, no x": ("round_clamp_lsb_foreach_backward", ([], SCALE[:0], [], [], [], [], [], False, False)),
    "lsb foreach, bits too few": ("round_clamp_lsb_foreach_forward", ([X, X], [], [4], [1, 1], [-1, -1], False)),
    "lsb foreach, x of two dtypes":
        ("round_clamp_lsb_foreach_forward", ([X, X.half()], [], [4, 4], [1, 1], [-1, -1], False)),
    "lsb foreach, a penalty too few":
        ("round_clamp_lsb_foreach_backward", ([X, X], SCALE[:1], [X, X], [], [4, 4], [1, 1], [-1, -1], False, False)),
    "lsb foreach, no gradients":
        ("round_clamp_lsb_foreach_backward", ([], SCALE[:2], [X, X], [], [4, 4], [1, 1], [-1, -1], False, False)),
}

FORWARD, BACKWARD = "switched_linear_forward", "switched_linear_backward"
ROWS = torch.randn(3, 33)
MALFORMED |= {
    "codes of other columns": (FORWARD, (ROWS[:, :32], CODES, torch.ones(4), None, 8, 4, True)),
    "planes of other columns": (FORWARD, (torch.randn(3, 41), PLANES, torch.ones(4), None, 8, 4, True)),
    "too few planes": (FORWARD, (ROWS, PLANES[:4], torch.ones(4), None, 8, 4, True)),
    "too few planes for half_even": (FORWARD, (ROWS, PLANES[:7], torch.ones(4), None, 8, 4, False)),
    "float store": (FORWARD, (ROWS, CODES.float(), torch.ones(4), None, 8, 4, True)),
    "store of one row": (FORWARD, (ROWS, CODES[0], torch.ones(4), None, 8, 4, True)),
    "one bit": (FORWARD, (ROWS, CODES, torch.ones(4), None, 8, 1, True)),
    "more bits than stored": (FORWARD, (ROWS, CODES, torch.ones(4), None, 4, 5, True)),
    "more high bits than there are": (FORWARD, (ROWS, CODES, torch.ones(4), None, 9, 5, True)),
    "a scale too few": (FORWARD, (ROWS, CODES, torch.ones(3), None, 8, 4, True)),
    "a bias too few": (FORWARD, (ROWS, CODES, torch.ones(4), torch.ones(3), 8, 4, True)),
    "float64 bias": (FORWARD, (ROWS, CODES, torch.ones(4), torch.ones(4).double(), 8, 4, True)),
    "float64 x": (FORWARD, (ROWS.double(), CODES, torch.ones(4), None, 8, 4, True)),
    "x of one row": (FORWARD, (ROWS[0], CODES, torch.ones(4), None, 8, 4, True)),
    "gradient of other columns": (BACKWARD, (ROWS, CODES, torch.ones(4), 33, 8, 4, True)),
    "gradient for other columns": (BACKWARD, (ROWS[:, :4], CODES, torch.ones(4), 34, 8, 4, True)),
    "negative columns": (BACKWARD, (ROWS[:, :4], CODES, torch.ones(4), -1, 8, 4, True)),
}


@pytest.mark.parametrize("raw, arguments", MALFORMED.values(), ids=MALFORMED.keys())
def test_compiled_code_reads_nothing_it_was_not_given(raw, arguments):
    """Raw operators are private, but what reaches them wrongly is an error, not a read outside memory."""
    with pytest.raises(RuntimeError, match="^((fake_quantize|double_round)(_multi|_foreach)?|switched_linear|"
                                           "round_clamp(_lsb(_foreach)?)?|lsb_penalty): "):
        getattr(torch.ops.mbq, raw)(*arguments)


def test_every_raw_operator_is_checked():
    from mbq_kernels._library import _raw_names

    every = sorted(name for names in _raw_names.values() for name in names)
    assert sorted([*RAW, *test_transforms_codes.RAW, *test_transforms_norms.RAW]) == every


@every_op
def test_compile_fullgraph(device, op):
    x, scale = make(device)
    compiled = torch.compile(op, fullgraph=True)
    grads = [torch.autograd.grad(f(x, scale).square().sum(), (x, scale)) for f in (op, compiled)]
    assert torch.equal(compiled(x, scale), op(x, scale))
    assert torch.equal(grads[0][0], grads[1][0]) and torch.equal(grads[0][1], grads[1][1])
    with torch.no_grad():
        assert torch.equal(compiled(x, scale), op(x, scale))


def test_compile_takes_scales_in_any_layout(device):
    x, scales = torch.randn(5, 7, device=device), torch.rand(7, 3, device=device).add(0.1).t().requires_grad_()
    f = lambda x, s: sum(t.square().sum() for t in mbq.fake_quantize_multi(x, s, bits=[2, 3, 4], axis=1))  # noqa: E731
    expected = torch.autograd.grad(f(x, scales), scales)[0]
    assert torch.equal(torch.autograd.grad(torch.compile(f, fullgraph=True)(x, scales), scales)[0], expected)


@every_op
def test_bits_change_without_recompiles(device, op):
    counter = CompileCounterWithBackend("eager")
    compiled = torch.compile(op, fullgraph=True, backend=counter)
    x, scale = (t.detach() for t in make(device))
    for bits in range(1, 9):
        assert torch.equal(compiled(x, scale, bits), op(x, scale, bits))
    assert counter.frame_count <= 2


@every_op
def test_export(device, op):
    class Module(torch.nn.Module):
        def forward(self, x, scale):
            return op(x, scale)

    x, scale = (t.detach() for t in make(device))
    for strict in (False, True):
        exported = torch.export.export(Module(), (x, scale), strict=strict)
        assert "mbq" in str(exported.graph)
        assert torch.equal(exported.module()(x, scale), op(x, scale))


@every_op
def test_func_grad(device, op):
    x, scale = make(device)
    loss = lambda x, scale: op(x, scale).square().sum()  # noqa: E731
    expected = torch.autograd.grad(loss(x, scale), (x, scale))
    actual = torch.func.grad(loss, argnums=(0, 1))(x.detach(), scale.detach())
    assert torch.equal(actual[0], expected[0]) and torch.equal(actual[1], expected[1])


@every_op
def test_vmap_of_grad_is_a_loop_over_samples(device, op):
    x, scale = make(device, (3, 4, 17))
    x, scale = x.detach(), torch.rand(4, device=device) + 0.1
    loss = lambda x, scale: op(x, scale).square().sum()  # noqa: E731
    for dim in (0, 2):
        moved = x.movedim(0, dim)
        actual = torch.func.vmap(torch.func.grad(loss, argnums=(0, 1)), in_dims=(dim, None))(moved, scale)
        for i in range(3):
            expected = torch.func.grad(loss, argnums=(0, 1))(x[i], scale)
            torch.testing.assert_close(actual[0][i], expected[0], rtol=0, atol=0)
            torch.testing.assert_close(actual[1][i], expected[1])


@every_op
def test_double_backward_is_an_error(device, op):
    x, scale = make(device)
    (grad,) = torch.autograd.grad(op(x, scale).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="double backward is not supported"):
        grad.sum().backward()
    with pytest.raises(RuntimeError, match="double backward is not supported"):
        torch.func.jacrev(torch.func.grad(lambda x: op(x, scale.detach()).square().sum()))(x.detach())


@every_op
def test_autocast_leaves_dtypes_alone(device, op):
    x, scale = make(device)
    with torch.autocast(device, dtype=torch.bfloat16):
        out = op(x, scale)
    assert out.dtype == torch.float32 and torch.equal(out, op(x, scale))


def test_float_weight_becomes_bfloat16_in_one_pass_under_autocast(device):
    x, scale = make(device)
    with torch.autocast(device, dtype=torch.bfloat16):
        out = mbq.fake_quantize(x, scale, bits=4, axis=0, out_dtype=torch.get_autocast_dtype(device))
        out.sum().backward()
    assert out.dtype == torch.bfloat16 and x.grad.dtype == torch.float32


@every_op
def test_cuda_graph(device, op):
    if device != "cuda":
        pytest.skip("CUDA graphs need a CUDA device")
    x, scale = make(device)
    static = x.detach().clone()
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):  # warm-up off the default stream, as capture wants
        for _ in range(3):
            op(static.requires_grad_(), scale).sum().backward()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    leaf = static.detach().requires_grad_()
    with torch.cuda.graph(graph):
        out = op(leaf, scale)
        grads = torch.autograd.grad(out.square().sum(), (leaf, scale))
    with torch.no_grad():
        leaf.copy_(torch.randn_like(leaf))
    graph.replay()
    expected = op(leaf, scale)
    assert torch.equal(out, expected)
    assert torch.equal(grads[1], torch.autograd.grad(expected.square().sum(), scale)[0])
