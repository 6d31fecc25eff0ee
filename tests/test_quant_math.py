"""The arithmetic is stated once per language; the statements agree on a table of awkward values, and name for name."""

import re
from pathlib import Path

import oracles
import pytest
import torch

import mbq_kernels as mbq

ROOT = Path(__file__).resolve().parent.parent
STATEMENTS = {
    "reference": (ROOT / "mbq_kernels/reference/quant_math.py", r"^def (\w+)\("),
    "cpp": (ROOT / "csrc/quant_math.h", r"^(?:MBQ_HD|inline) [\w<>]+ (\w+)\("),
    "triton": (ROOT / "mbq_kernels/triton/quant_math.py", r"^def (\w+)\("),
}
FILES = ["quant_math", "code_math", "softmax_math"]
ON_THE_HOST = {"bounds", "default_grad_factor", "switching", "unit_form"}  # Triton kernels get them as numbers


def names(language, file="quant_math"):
    path, pattern = STATEMENTS[language]
    path = path.with_stem(file)
    return list(dict.fromkeys(re.findall(pattern, path.read_text(), re.MULTILINE)))


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("language", ["cpp", "triton"])
def test_states_what_the_reference_states_in_the_same_order(language, file):
    """Under the same names; how a language splits a function further is its own."""
    stated = [name for name in names("reference", file) if language != "triton" or name not in ON_THE_HOST]
    found = [name for name in names(language, file) if name in stated]
    assert stated and not set(stated) - set(found), f"{language}'s {file} lacks {set(stated) - set(found)}"
    assert found == stated


def one_channel_each(x, scale, **options):
    """(x_hat, grad x, grad scale, grad offset) with every element its own channel: the terms themselves, unsummed."""
    leaf = x.reshape(-1, 1).requires_grad_()
    scales = torch.full((x.numel(),), scale, device=x.device).requires_grad_()
    offsets = torch.zeros_like(scales).requires_grad_()
    out = mbq.fake_quantize(leaf, scales, offsets, axis=0, grad_factor=1.0, out_dtype=torch.float32, **options)
    grad = torch.linspace(0.5, 2.0, x.numel(), device=x.device).reshape(-1, 1)
    return out, *torch.autograd.grad(out, (leaf, scales, offsets), grad)


@pytest.mark.parametrize("dtype", oracles.DTYPES, ids=str)
@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize("bits", range(1, 9))
def test_values_and_terms_on_the_table(device, dtype, bits, signed):
    lo, hi = oracles.bounds(bits, signed)
    x = oracles.awkward_values(0.3, lo, hi, dtype).to(device)
    actual = one_channel_each(x, 0.3, bits=bits, signed=signed)
    with mbq.use_backend("reference"):
        expected = one_channel_each(x.cpu(), 0.3, bits=bits, signed=signed)
    for one, other, what in zip(actual, expected, ("x_hat", "grad x", "grad scale", "grad offset"), strict=True):
        oracles.assert_same(one, other, what)


@pytest.mark.parametrize("dtype", oracles.DTYPES, ids=str)
def test_affine_values_and_terms_on_the_table(device, dtype):
    x = oracles.awkward_values(0.3, -12, 4, dtype)
    results = []
    for where, backend in ((device, None), ("cpu", "reference")):
        leaf = x.to(where).reshape(-1, 1).requires_grad_()
        scales = torch.full((x.numel(),), 0.3, device=where).requires_grad_()
        zero_points = torch.full((x.numel(),), 3.0, device=where).requires_grad_()
        with mbq.use_backend(backend) if backend else torch.enable_grad():
            out = mbq.fake_quantize_affine(leaf, scales, zero_points, quant_min=-8, quant_max=7, axis=0)
            grad = torch.linspace(0.5, 2.0, x.numel(), device=where).reshape(-1, 1).to(dtype)
            results.append((out, *torch.autograd.grad(out, (leaf, scales, zero_points), grad)))
    for one, other, what in zip(*results, ("x_hat", "grad x", "grad scale", "grad zero_point"), strict=True):
        oracles.assert_same(one, other, what)


@pytest.mark.parametrize("dtype", oracles.DTYPES, ids=str)
@pytest.mark.parametrize("rounding", ["half_even", "half_up"])
@pytest.mark.parametrize("bits", range(2, 9))
def test_double_rounding_on_the_table(device, dtype, bits, rounding):
    x = oracles.awkward_values(0.3, -128, 127, dtype)
    results = []
    for where, backend in ((device, None), ("cpu", "reference")):
        leaf = x.to(where).reshape(-1, 1).requires_grad_()
        scales = torch.full((x.numel(),), 0.3, device=where).requires_grad_()
        with mbq.use_backend(backend) if backend else torch.enable_grad():
            out = mbq.double_round(leaf, scales, bits=bits, axis=0, grad_factor=1.0, rounding=rounding,
                                   out_dtype=torch.float32)
            grad = torch.linspace(0.5, 2.0, x.numel(), device=where).reshape(-1, 1)
            results.append((out, *torch.autograd.grad(out, (leaf, scales), grad)))
    for one, other, what in zip(*results, ("x_hat", "grad x", "grad scale"), strict=True):
        oracles.assert_same(one, other, what)


def test_reference_agrees_with_the_oracle_on_bounds():
    from mbq_kernels.reference.quant_math import bounds

    for bits in range(1, 9):
        for signed in (True, False):
            assert bounds(bits, signed) == oracles.bounds(bits, signed)
