"""fake_quantize_foreach: many tensors in one call have the bits of one call of fake_quantize_multi each."""

import oracles
import pytest
import torch
from running import lines_by_instruction_set

import mbq_kernels as mbq

BITS = (8, 4, 1, 2)
LEVELS = len(BITS)
SHAPES = [(16, 3, 3, 3), (7,), (4, 0), (4, 1031), (5, 64), (3, 50, 3), (2, 5, 6), (0, 3), (70, 65), (1, 2500), (6, 1)]
dtypes = pytest.mark.parametrize("dtype", oracles.DTYPES, ids=str)


@pytest.fixture
def shapes(backend):
    return SHAPES[:4] if backend == "triton" else SHAPES  # the interpreter is slow, and a loop over tensors


def make(shapes, axis, dtype, device, levels=LEVELS):
    """xs, scales and offsets of them as lists of rows."""
    xs = [(torch.randn(shape) * 4).to(device, dtype) for shape in shapes]
    counts = [1 if axis is None else shape[axis] for shape in shapes]
    rows = lambda draw: [[draw(count).to(device) for _ in range(levels)] for count in counts]  # noqa: E731
    return xs, rows(lambda n: torch.rand(n) * 0.5 + 0.3), rows(lambda n: torch.randn(n) * 0.5)


def flat(lists):
    return [tensor for one in lists for tensor in one]


def one_by_one(xs, scales, offsets=None, **options):
    offsets = [None] * len(xs) if offsets is None else offsets
    return [mbq.fake_quantize_multi(*row, **options) for row in zip(xs, scales, offsets, strict=True)]


INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def assert_same_bits(actual, expected):
    """Not one bit differs, the sign of zero and strides included."""
    assert len(actual) == len(expected) > 0
    for i, (one, other) in enumerate(zip(actual, expected, strict=True)):
        assert (one.dtype, one.shape, one.stride()) == (other.dtype, other.shape, other.stride()), i
        bits = [tensor.detach().view(INTEGERS[tensor.dtype.itemsize]) for tensor in (one, other)]
        assert torch.equal(*bits), i


@dtypes
@pytest.mark.parametrize("axis", [None, 0, -1])
def test_forward(device, shapes, dtype, axis):
    xs, scales, offsets = make(shapes, axis, dtype, device)
    for given in (None, offsets):
        outs = mbq.fake_quantize_foreach(xs, scales, given, bits=BITS, axis=axis)
        assert isinstance(outs, list) and [len(row) for row in outs] == [len(BITS)] * len(xs)
        assert all(isinstance(row, tuple) for row in outs)
        assert_same_bits(flat(outs), flat(one_by_one(xs, scales, given, bits=BITS, axis=axis)))
        for t, x in enumerate(xs):
            offset = None if given is None else given[t][1]
            expected = oracles.fake_quantize(x, scales[t][1], offset, bits=4, axis=axis)
            oracles.assert_same(outs[t][1], expected, f"x_hat[{t}][1]")


@dtypes
@pytest.mark.parametrize("axis", [None, 0, -1])
@pytest.mark.parametrize("shifted", [False, True], ids=["", "offsets"])
def test_gradients(device, shapes, dtype, axis, shifted):
    xs, scales, offsets = make(shapes, axis, dtype, device)
    leaves = [t.requires_grad_() for t in (*xs, *flat(scales), *(flat(offsets) if shifted else []))]
    grads = [torch.randn(x.shape).to(device, dtype) for x in xs for _ in BITS]
    calls = [f(xs, scales, offsets if shifted else None, bits=BITS, axis=axis)
             for f in (mbq.fake_quantize_foreach, one_by_one)]
    actual, expected = (torch.autograd.grad(flat(outs), leaves, grads) for outs in calls)
    assert_same_bits(actual, expected)
    one = oracles.gradients(grads[5], xs[1], scales[1][1], offsets[1][1] if shifted else None, bits=4, axis=axis)
    bound = oracles.sum_tolerance(grads[5], xs[1], scales[1][1], offsets[1][1] if shifted else None, axis, 1.0)
    oracles.assert_within(actual[len(xs) + 5], one[1], bound, "grad scale of tensor 1, 4 bits")


@pytest.mark.parametrize("bits", [(4,), (8, 7, 6, 5, 4, 3, 2, 1)], ids=str)
@pytest.mark.parametrize("options", [{"signed": False}, {"grad_factor": 2.0}, {"out_dtype": torch.bfloat16}], ids=str)
def test_options(device, bits, options):
    xs, scales, _ = make([(3, 5), (4, 300)], 0, torch.float32, device, len(bits))
    leaves = [t.requires_grad_() for t in (*xs, *flat(scales))]
    calls = [f(xs, scales, bits=bits, axis=0, **options) for f in (mbq.fake_quantize_foreach, one_by_one)]
    grads = [torch.randn_like(out) for out in flat(calls[0])]
    assert_same_bits(flat(calls[0]), flat(calls[1]))
    assert_same_bits(*(torch.autograd.grad(flat(outs), leaves, grads) for outs in calls))


def test_float64():
    xs, scales, _ = make([(3, 5), (4, 300)], 0, torch.float64, "cpu")
    scales = [[scale.double() for scale in row] for row in scales]
    leaves = [t.requires_grad_() for t in (*xs, *flat(scales))]
    calls = [f(xs, scales, bits=BITS, axis=0) for f in (mbq.fake_quantize_foreach, one_by_one)]
    grads = [torch.randn_like(x) for x in xs for _ in BITS]
    assert_same_bits(*(torch.autograd.grad(flat(outs), leaves, grads) for outs in calls))


def test_memory_formats_strides_and_one_tensor_twice(device):
    image = torch.randn(3, 5, 4, 6, device=device)
    xs = [image, image.to(memory_format=torch.channels_last), torch.randn(3, 5, 8, 6, device=device)[:, :, ::2],
          torch.randn(70, 5, 3, device=device).transpose(0, 2), image, torch.empty(2, 5, 0, device=device)]
    scales = [[torch.rand(5, device=device) + 0.2 for _ in range(2)] for _ in xs]
    leaves = [xs[i].requires_grad_() for i in (0, 1, 2, 3, 5)]
    calls = [f(xs, scales, bits=(4, 2), axis=1) for f in (mbq.fake_quantize_foreach, one_by_one)]
    assert_same_bits(flat(calls[0]), flat(calls[1]))
    grads = [torch.randn(out.shape, device=device) for out in flat(calls[0])]  # not in x's memory order
    assert_same_bits(*(torch.autograd.grad(flat(outs), leaves, grads) for outs in calls))


def test_forms_of_scales_and_their_gradients(device):
    xs, scales, _ = make([(4, 33), (6, 5), (2, 9), (3, 8)], 0, torch.float32, device, 2)
    forms = [torch.stack(scales[0]), tuple(scales[1]), [torch.tensor([0.3], device=device) for _ in range(2)],
             torch.tensor([0.3, 0.4], dtype=torch.float64, device=device)]
    leaves = [t.requires_grad_() for t in (forms[0], *forms[1], *forms[2], forms[3])]
    calls = [f(xs, forms, bits=(4, 2), axis=0) for f in (mbq.fake_quantize_foreach, one_by_one)]
    actual, expected = (torch.autograd.grad(flat(outs), leaves, [out.detach() for out in flat(outs)]) for outs in calls)
    assert_same_bits(actual, expected)
    assert [g.shape for g in actual] == [leaf.shape for leaf in leaves]


def test_no_tensors(device):
    assert mbq.fake_quantize_foreach([], [], bits=BITS) == []
    assert mbq.fake_quantize_foreach((), (), (), bits=BITS, axis=3) == []


def test_only_empty_tensors(device):
    xs, scales, _ = make([(4, 0), (0, 3)], None, torch.float32, device)
    leaves = [t.requires_grad_() for t in (*xs, *flat(scales))]
    outs = flat(mbq.fake_quantize_foreach(xs, scales, bits=BITS))
    grads = torch.autograd.grad(outs, leaves, [torch.empty_like(out) for out in outs])
    assert all(torch.equal(grad, torch.zeros_like(leaf)) for grad, leaf in zip(grads, leaves, strict=True))


def test_unused_outputs_and_what_needs_no_gradient(device):
    xs, scales, _ = make([(4, 33), (6, 5), (2, 9)], 0, torch.float32, device, 2)
    wanted = [scales[0][1].requires_grad_(), xs[1].requires_grad_(), scales[2][0].requires_grad_()]
    losses = []
    for f in (mbq.fake_quantize_foreach, one_by_one):
        outs = f(xs, scales, bits=(4, 2), axis=0)
        losses.append(outs[0][1].square().sum() + outs[1][0].sum())  # nothing of tensor 2
    actual = torch.autograd.grad(losses[0], wanted)
    expected = torch.autograd.grad(losses[1], wanted[:2])
    assert_same_bits(actual[:2], expected)
    assert torch.equal(actual[2], torch.zeros(2, device=device))
    assert not any(out.requires_grad for out in flat(mbq.fake_quantize_foreach(
        [x.detach() for x in xs], [[s.detach() for s in row] for row in scales], bits=(4, 2), axis=0)))


def test_leaves_gather_gradients_for_one_backward(device):
    """The training layer's schedule: every bit-width's backward adds to detached leaves, one backward at the end."""
    xs, scales, _ = make([(4, 33), (6, 5)], 0, torch.float32, device, 2)
    for leaf in (*xs, *flat(scales)):
        leaf.requires_grad_()
    outs = flat(mbq.fake_quantize_foreach(xs, scales, bits=(4, 2), axis=0))
    leaves = [out.detach().requires_grad_() for out in outs]
    for k in (0, 1):
        sum((leaf.square() * (t + 1)).sum() for t, leaf in enumerate(leaves[k::2])).backward()
    torch.autograd.backward(outs, [leaf.grad for leaf in leaves])
    actual = [leaf.grad for leaf in (*xs, *flat(scales))]
    loss = sum(out.square().sum() * (t + 1) for t, row in enumerate(one_by_one(xs, scales, bits=(4, 2), axis=0))
               for out in row)
    for one, other in zip(actual, torch.autograd.grad(loss, (*xs, *flat(scales))), strict=True):
        torch.testing.assert_close(one, other)


def test_only_xs_and_scales_are_saved():
    xs, scales, _ = make([(8, 100), (3, 40)], 0, torch.float32, "cpu")
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        mbq.fake_quantize_foreach([x.requires_grad_() for x in xs], scales, bits=BITS, axis=0)
    assert [t.data_ptr() for t in saved] == [t.data_ptr() for t in (*xs, *flat(scales))]


def test_nan_reaches_the_scale_of_its_channel_alone(device):
    xs, scales, _ = make([(4, 33), (3, 70)], 0, torch.float32, device, 2)
    xs[1][2, 5] = torch.nan
    leaves = [t.requires_grad_() for t in (*xs, *flat(scales))]
    outs = flat(mbq.fake_quantize_foreach(xs, scales, bits=(4, 2), axis=0))
    grads = torch.autograd.grad(outs, leaves, [torch.ones_like(out) for out in outs])
    assert [grad.isnan().nonzero().flatten().tolist() for grad in grads] == [[], [], [], [], [2], [2]]


PROGRAM = """
import hashlib, torch, mbq_kernels as mbq
shapes = [(64, 900), (16, 27), (3, 50000), (200, 64), (5, 5, 5), (300, 144), (40, 3000)]
for threads in (1, 2, 7):
    torch.manual_seed(0)
    torch.set_num_threads(threads)
    xs = [torch.randn(shape).requires_grad_() for shape in shapes]
    scales = [[(torch.rand(shape[0]) + 0.1).requires_grad_() for _ in range(2)] for shape in shapes]
    outs = [out for row in mbq.fake_quantize_foreach(xs, scales, bits=(4, 2), axis=0) for out in row]
    grads = torch.autograd.grad(outs, [*xs, *(s for row in scales for s in row)], [torch.randn_like(o) for o in outs])
    print(hashlib.sha256(b"".join(t.detach().numpy().tobytes() for t in (*outs, *grads))).hexdigest())
"""


def test_bits_depend_neither_on_threads_nor_on_instruction_set():
    digests = sum(lines_by_instruction_set("fake_quantize_foreach", PROGRAM), [])
    assert len(digests) == 9 and len(set(digests)) == 1


ERRORS = [
    ({"bits": 4}, TypeError, "bits must be a sequence of integers, got 4"),
    ({"bits": (4,) * 9}, ValueError, "bits must name 1 to 8 bit-widths, got 9"),
    ({"xs": torch.ones(2, 3)}, TypeError, "xs must be a sequence with an entry per tensor, got Tensor"),
    ({"xs": [torch.ones(3, 2), 1.0]}, TypeError, r"xs\[1\] must be a tensor, got float"),
    ({"xs": [torch.ones(3, 2), torch.ones(3, dtype=torch.int32)]}, TypeError,
     r"xs\[1\] must be float32.*got torch.int32"),
    ({"xs": [torch.ones(3, 2), torch.ones(3, 2).bfloat16()]}, TypeError,
     r"xs\[1\] must have the dtype of xs\[0\], torch.float32, got torch.bfloat16"),
    ({"xs": [torch.ones(3, 2), torch.ones(3, 2, device="meta")]}, ValueError,
     r"xs\[1\] must be on the device of xs\[0\], cpu, got meta"),
    ({"axis": 1, "xs": [torch.ones(3, 2), torch.ones(3)]}, ValueError,
     r"axis must be in \[-1, 1\) for an x of shape \(3,\), got 1"),
    ({"scales": torch.ones(2, 2)}, TypeError, "scales must be a sequence with an entry per tensor, got Tensor"),
    ({"scales": [torch.ones(2)]}, ValueError, r"scales must have one entry per tensor \(2\), got 1"),
    ({"scales": [torch.ones(2), torch.ones(3)]}, ValueError,
     r"scales\[1\] must have one entry per bit-width \(2\), got 3"),
    ({"scales": [torch.ones(2), [torch.ones(1), "2"]]}, TypeError, r"scales\[1\]\[1\] must be a tensor, got str"),
    ({"axis": 0, "scales": [torch.ones(2), torch.ones(2, 5)]}, ValueError,
     r"scales\[1\]\[0\] must have 1 or 3 elements \(x has shape \(3, 2\), axis 0\), got 5"),
    ({"axis": 0, "scales": [[torch.ones(3), torch.ones(1)], torch.ones(2)]}, ValueError,
     r"scales\[0\] must all have 1 or all have 3 elements, got \[3, 1\]"),
    ({"offsets": [torch.ones(2)]}, ValueError, r"offsets must have one entry per tensor \(2\), got 1"),
    ({"axis": 0, "offsets": [torch.ones(2), torch.ones(2, 3)]}, ValueError,
     r"offsets\[1\] must have the shape of scales\[1\], \(1,\), got \(3,\)"),
    ({"scales": [torch.ones(2), torch.tensor([1.0, -1.0])]}, RuntimeError,
     r"scale must be finite and > 0, got -1 \(element 1, tensor 1\)"),
    ({"out_dtype": torch.float64}, TypeError, "out_dtype must be float64 exactly when x is"),
    ({"grad_factor": "1"}, TypeError, "grad_factor must be a number, got '1'"),
]


@pytest.mark.parametrize("changes, error, message", ERRORS, ids=[e[2][:40] for e in ERRORS])
@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_errors(backend, changes, error, message):
    arguments = {"xs": [torch.ones(3, 2), torch.ones(3, 2)], "scales": [torch.ones(2), torch.ones(2)], "bits": (4, 2)}
    with mbq.use_backend(backend), pytest.raises(error, match="^fake_quantize_foreach: " + message):
        mbq.fake_quantize_foreach(**{**arguments, **changes})
