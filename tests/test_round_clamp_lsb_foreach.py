"""round_clamp_lsb_foreach: many tensors in one call have the bits of one call of round_clamp_lsb each."""

import lsb_oracles
import oracles
import pytest
import torch
from running import lines_by_instruction_set
from test_round_clamp import BAD_FORM, forms

import mbq_kernels as mbq

SHAPES = [(16, 3, 3, 3), (7,), (4, 0), (4, 1031), (5, 64), (3, 50, 3), (2, 5, 6), (70, 65), (1, 2500), (6, 1)]
COUNT = len(SHAPES)
dtypes = pytest.mark.parametrize("dtype", oracles.DTYPES, ids=str)


def make(axis, dtype, device, count=COUNT):
    """xs, limits, bits and k, different ones for every tensor."""
    pairs = [lsb_oracles.make(shape, axis, dtype) for shape in SHAPES[:count]]
    xs, limits = ([t.to(device) for t in column] for column in zip(*pairs, strict=True))
    rows = [lsb_oracles.BITS[t % len(lsb_oracles.BITS)] for t in range(count)]
    return xs, limits, [b for b, _ in rows], [k for _, k in rows]


def one_by_one(xs, *, bits, k, limits=None, **options):
    limits = [None] * len(xs) if limits is None else limits
    rows = [mbq.round_clamp_lsb(x, bits=b, k=k_, limit=m, **options)
            for x, b, k_, m in zip(xs, bits, k, limits, strict=True)]
    values, penalties, rates = zip(*rows, strict=True)
    return list(values), torch.stack(penalties), torch.stack(rates)


@dtypes
@pytest.mark.parametrize("axis", [None, 0, -1])
@pytest.mark.parametrize("unit_gradient", [False, True])
@forms
def test_same_as_one_by_one(device, backend, dtype, axis, unit_gradient, form):
    xs, limits, bits, k = make(axis, dtype, device, 4 if backend == "triton" else len(SHAPES))
    for x in xs:
        x.requires_grad_()
    weights = torch.rand(len(xs), device=device)
    grads, results = [torch.randn_like(x) for x in xs], []
    for f in (mbq.round_clamp_lsb_foreach, one_by_one):
        values, penalties, rates = f(xs, bits=bits, k=k, limits=limits, axis=axis, unit_gradient=unit_gradient,
                                     form=form)
        assert isinstance(values, list) and not rates.requires_grad
        found = torch.autograd.grad((*values, penalties), xs, (*grads, weights))
        results.append((*values, penalties, rates, *found))
    for t, (one, other) in enumerate(zip(*results, strict=True)):
        oracles.assert_same(one, other, f"result {t}")
        assert one.stride() == other.stride()
    wanted = lsb_oracles.gradient(grads[1], weights[1].item(), xs[1], limits[1], axis, bits[1], k[1], unit_gradient,
                                  form)
    bound = lsb_oracles.gradient_tolerance(grads[1], weights[1].item(), xs[1], limits[1], axis, bits[1], dtype)
    oracles.assert_within(results[0][len(xs) + 3], wanted, bound, "grad of tensor 1")


@forms
def test_positions_and_numbers_for_all(device, form):
    xs = [torch.rand(3, 5, device=device), torch.rand(70, device=device)]
    values, penalties, rates = mbq.round_clamp_lsb_foreach(xs, bits=4, k=2, form=form)
    expected = one_by_one(xs, bits=[4, 4], k=[2, 2], form=form)
    for one, other in zip((*values, penalties, rates), (*expected[0], *expected[1:]), strict=True):
        oracles.assert_same(one, other)


def test_many_tensors(device, backend):
    """More than the arguments of one CUDA launch hold."""
    count = 20 if backend == "triton" else 700
    xs = [torch.randn(1 + t % 7, 3, device=device) for t in range(count)]
    limits = torch._foreach_norm(xs, ord=torch.inf)
    bits = [2 + t % 7 for t in range(count)]
    values, penalties, rates = mbq.round_clamp_lsb_foreach(xs, bits=bits, limits=limits)
    expected = one_by_one(xs, bits=bits, k=[1] * count, limits=limits)
    for one, other in zip((*values, penalties, rates), (*expected[0], *expected[1:]), strict=True):
        oracles.assert_same(one, other)


def test_float64():
    xs, limits, bits, k = make(0, torch.float64, "cpu")
    values, penalties, rates = mbq.round_clamp_lsb_foreach(xs, bits=bits, k=k, limits=limits, axis=0)
    expected = one_by_one(xs, bits=bits, k=k, limits=limits, axis=0)
    assert penalties.dtype == rates.dtype == torch.float64
    for one, other in zip((*values, penalties, rates), (*expected[0], *expected[1:]), strict=True):
        oracles.assert_same(one, other)


def test_unused_outputs(device):
    xs, limits, bits, k = make(None, torch.float32, device, 2)
    for x in xs:
        x.requires_grad_()
    values, penalties, _ = mbq.round_clamp_lsb_foreach(xs, bits=bits, k=k, limits=limits)
    grads = torch.autograd.grad(values[1].sum(), xs, retain_graph=True)
    assert torch.equal(grads[0], torch.zeros_like(xs[0])) and torch.equal(grads[1], torch.ones_like(xs[1]))
    first = torch.autograd.grad(penalties[0], xs)
    alone = torch.autograd.grad(mbq.lsb_penalty(xs[0], bits=bits[0], k=k[0], limit=limits[0])[0], xs[0])
    oracles.assert_same(first[0], alone[0])
    assert torch.equal(first[1], torch.zeros_like(xs[1]))


def test_only_xs_and_limits_are_saved():
    xs, limits, bits, k = make(0, torch.float32, "cpu", 2)
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        mbq.round_clamp_lsb_foreach([x.requires_grad_() for x in xs], bits=bits, k=k, limits=limits, axis=0)
    assert [t.data_ptr() for t in saved] == [t.data_ptr() for t in (*xs, *limits)]


PROGRAM = """
import hashlib, itertools, torch, mbq_kernels as mbq
shapes = [(64, 900), (16, 27), (3, 50000), (200, 64), (5, 25), (300, 144), (40, 3000)]
for threads, form in itertools.product((1, 2, 7), ("offset", "sign-magnitude")):
    torch.manual_seed(0)
    torch.set_num_threads(threads)
    xs = [torch.randn(shape).requires_grad_() for shape in shapes]
    limits = [x.detach().abs().amax(1) for x in xs[:4]] + [x.detach().abs().amax() for x in xs[4:]]
    values, penalties, rates = mbq.round_clamp_lsb_foreach(xs, bits=[8, 4, 3, 2, 5, 6, 7], limits=limits, axis=0,
                                                           form=form)
    grads = torch.autograd.grad((*values, penalties), xs, [torch.randn_like(t) for t in (*values, penalties)])
    found = b"".join(t.detach().numpy().tobytes() for t in (*values, penalties, rates, *grads))
    print(form, hashlib.sha256(found).hexdigest())
"""


def test_bits_depend_neither_on_threads_nor_on_instruction_set():
    digests = sum(lines_by_instruction_set("round_clamp_lsb_foreach", PROGRAM), [])
    assert len(digests) == 18 and len(set(digests)) == 2  # one of each form


ERRORS = [
    ({"xs": torch.ones(2, 3)}, TypeError, "xs must be a sequence with an entry per tensor, got Tensor"),
    ({"xs": []}, ValueError, "xs must have a tensor at least, got none"),
    ({"xs": [torch.ones(3), torch.ones(3).half()]}, TypeError,
     r"xs\[1\] must have the dtype of xs\[0\], torch.float32"),
    ({"xs": [torch.ones(3), torch.ones(3, device="meta")]}, ValueError, r"xs\[1\] must be on the device of xs\[0\]"),
    ({"bits": [4]}, ValueError, r"bits must have one entry per tensor \(2\), got 1"),
    ({"bits": 4.0}, TypeError, "bits must be an integer or a sequence of integers, got 4"),
    ({"k": [1, 4]}, ValueError, "k must be between 1 and 3 and less than bits, 4, got 4"),
    ({"bits": [4, 1]}, ValueError, "k must be between 1 and 3 and less than bits, 1, got 1"),
    ({"limits": [torch.ones(1)]}, ValueError, r"limits must have one entry per tensor \(2\), got 1"),
    ({"limits": [torch.ones(1), None]}, TypeError, r"limits\[1\] must be a tensor, got NoneType"),
    ({"limits": [torch.ones(1), torch.ones(2)]}, ValueError, r"limits\[1\] must have 1 element without axis, got 2"),
    ({"limits": [torch.ones(1), -torch.ones(1)]}, RuntimeError,
     r"limit must be finite and >= 0, got -1 \(element 0, tensor 1\)"),
    ({"limits": [torch.ones(1), torch.ones(1) / 2]}, RuntimeError,
     r"x must lie within \[-limit, limit\], got 1 \(element 0, tensor 1\)"),
    ({"xs": [torch.ones(3), torch.full((3,), 2.0)]}, RuntimeError,
     r"x must lie within \[0, 1\], got 2 \(element 0, tensor 1\)"),
    *BAD_FORM,
    ({"unit_gradient": 0}, TypeError, "unit_gradient must be True or False, got 0"),
]


@pytest.mark.parametrize("changes, error, message", ERRORS, ids=[e[2][:40] for e in ERRORS])
@pytest.mark.parametrize("name", ["cpu", "reference"])
def test_errors(name, changes, error, message):
    with mbq.use_backend(name), pytest.raises(error, match="^round_clamp_lsb_foreach: " + message):
        mbq.round_clamp_lsb_foreach(**{"xs": [torch.ones(3), torch.ones(3)], "bits": 4, **changes})
