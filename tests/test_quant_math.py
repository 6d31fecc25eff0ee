"""The arithmetic is stated once per language; the statements agree on a table of awkward values, and name for name."""

import ast
import contextlib
import re
from pathlib import Path

import oracles
import pytest
import torch

import mbq_kernels as mbq

ROOT = Path(__file__).resolve().parent.parent
STATEMENTS = {
    "reference": (ROOT / "mbq_kernels/reference/quant_math.py", r"^def (\w+)\("),
    "cpp": (ROOT / "csrc/math/quant_math.h", r"^(?:MBQ_HD|inline) [\w<>]+ (\w+)\("),
    "triton": (ROOT / "mbq_kernels/triton/quant_math.py", r"^def (\w+)\("),
}
FILES = ["quant_math", "affine_math", "code_math", "softmax_math"]
ON_THE_HOST = {"bounds", "default_grad_factor", "second_rounding", "switching", "unit_form"}  # numbers in Triton


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


@pytest.mark.parametrize("file", FILES)
def test_triton_takes_what_the_reference_takes(file):
    """Capitals are a kernel's constants."""
    stated, found = (
        {node.name: [argument.arg.lower() for argument in node.args.args] for node in ast.parse(path.read_text()).body
         if isinstance(node, ast.FunctionDef)}
        for path in (STATEMENTS[language][0].with_stem(file) for language in ("reference", "triton")))
    assert stated.keys() & found.keys()
    assert {name: found[name] for name in stated.keys() & found.keys()} == {
        name: stated[name] for name in stated.keys() & found.keys()}


def same_as_the_reference(device, x, call, *parameters):
    """call(x, *parameters) has the reference's bits, and its gradients too, with every element its own channel: the
    terms themselves, unsummed."""
    results = []
    for where, backend in ((device, contextlib.nullcontext()), ("cpu", mbq.use_backend("reference"))):
        given = (torch.full((x.numel(),), value, device=where) for value in parameters)
        leaves = [t.requires_grad_() for t in (x.to(where).reshape(-1, 1), *given)]
        with backend:
            out = call(*leaves)
            grad = torch.linspace(0.5, 2.0, x.numel(), device=where).reshape(-1, 1).to(out.dtype)
            results.append((out, *torch.autograd.grad(out, leaves, grad)))
    for i, (one, other) in enumerate(zip(*results, strict=True)):
        oracles.assert_same(one, other, f"gradient {i} of x and the parameters" if i else "x_hat")


@pytest.mark.parametrize("dtype", oracles.DTYPES, ids=str)
@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize("bits", range(1, 9))
def test_values_and_terms_on_the_table(device, dtype, bits, signed):
    x = oracles.awkward_values(0.3, *oracles.bounds(bits, signed), dtype)
    same_as_the_reference(device, x, lambda x, scale, offset: mbq.fake_quantize(
        x, scale, offset, bits=bits, signed=signed, axis=0, grad_factor=1.0, out_dtype=torch.float32), 0.3, 0.0)


@pytest.mark.parametrize("dtype", oracles.DTYPES, ids=str)
def test_affine_values_and_terms_on_the_table(device, dtype):
    x = oracles.awkward_values(0.3, -12, 4, dtype)
    same_as_the_reference(device, x, lambda x, scale, zero_point: mbq.fake_quantize_affine(
        x, scale, zero_point, quant_min=-8, quant_max=7, axis=0), 0.3, 3.0)


@pytest.mark.parametrize("dtype", oracles.DTYPES, ids=str)
@pytest.mark.parametrize("quotient, zero_point_form, mask, grad_product", [
    ("division", "integer", "code", True), ("reciprocal", "before_rounding", "position", True),
    ("division", "after_rounding", "position", False), ("reciprocal", "after_rounding", "code", False)])
def test_general_affine_values_and_terms_on_the_table(device, dtype, quotient, zero_point_form, mask, grad_product):
    x = oracles.awkward_values(0.3, -12, 4, dtype)
    same_as_the_reference(device, x, lambda x, scale, zero_point: mbq.fake_quantize_affine(
        x, scale, zero_point, quant_min=-8, quant_max=7, axis=0, quotient=quotient, zero_point_form=zero_point_form,
        mask=mask, grad_product=grad_product), 0.3, 2.75)


@pytest.mark.parametrize("dtype", oracles.DTYPES, ids=str)
@pytest.mark.parametrize("rounding", ["half_even", "half_up"])
@pytest.mark.parametrize("bits", range(2, 9))
def test_double_rounding_on_the_table(device, dtype, bits, rounding):
    x = oracles.awkward_values(0.3, -128, 127, dtype)
    same_as_the_reference(device, x, lambda x, scale: mbq.double_round(
        x, scale, bits=bits, axis=0, grad_factor=1.0, rounding=rounding, out_dtype=torch.float32), 0.3)


def test_reference_agrees_with_the_oracle_on_bounds():
    from mbq_kernels.reference.quant_math import bounds

    for bits in range(1, 9):
        for signed in (True, False):
            assert bounds(bits, signed) == oracles.bounds(bits, signed)
