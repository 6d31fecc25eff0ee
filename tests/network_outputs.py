"""What the test of random networks measures: outputs at every bit-width, gradients, and how two of them compare."""

import contextlib
import copy
import re

import torch
from random_networks import Case

from mbq_train import set_bits
from mbq_train.quantize.learned import ActivationQuantizer
from mbq_train.quantize.quantizer import quantizers

HOUSE_WORDING = re.compile(r"(?P<who>[^\s:]+): .+ must .+, got .+", re.DOTALL)
BOUND = 1e-4  # of the largest value, where sums are in another order


def trained(case: Case):
    """The model after two steps, or None where `convert` says that there is nothing to quantize."""
    x = case.inputs()
    source = case.network()
    before = {training: source.train(training)(x).detach() for training in (False, True)}
    source = case.network()
    try:
        model = case.convert(source)
    except ValueError as error:
        assert str(error).startswith("convert: model must hold a "), error
        return None
    if case.quantizer != "any-precision":
        set_bits(model, 32)
        for training, expected in before.items():
            if not training or not any(block.dropout for block in case.blocks):
                got = copy.deepcopy(model).train(training)(x)
                close(got, expected, 1e-5 * case.looseness, f"32 bits, training={training}")
    train(model, case)
    return model


def train(model, case: Case, steps: int = 2) -> None:
    """A loop that knows nothing of quantizers but `set_bits`."""
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
    for _ in range(steps):
        for bits in case.bits:
            set_bits(model.train(), bits)
            optimizer.zero_grad()
            loss = model(case.inputs()).square().mean()
            assert loss.isfinite()
            loss.backward()
            optimizer.step()


@torch.no_grad()
def outputs(model, case: Case, bits=None) -> dict:
    """What `model` computes in eval mode at every bit-width; the bit-width it had stays."""
    modes = [(module, module.training) for module in model.modules()]
    found = {}
    for b in bits or (*case.bits, 32):
        with set_bits(model, b):
            found[b] = model.eval()(case.inputs())
    for module, training in modes:
        module.training = training
    return found


def same(got: dict, want: dict, what: str) -> None:
    for bits, value in got.items():
        assert torch.equal(value, want[bits]), f"{what} at {bits} bits: off by {gap(value, want[bits]):.2g}"


def alike_at_all_bits(got: dict, model, want: dict, case: Case, what: str) -> None:
    """As `same`; attention that is left in float sums in another order where tensors are no Parameters."""
    for bits, value in got.items():
        if case.of == "tokens":
            with set_bits(model, bits):
                ends(value, model, case, what)
        else:
            same({bits: value}, want, what)


def close(got, want, bound: float, what: str) -> None:
    assert got.shape == want.shape and gap(got, want) <= bound, f"{what}: off by {gap(got, want):.2g}"


def gap(got, want) -> float:
    """The largest difference, of the largest value."""
    return float((got - want).abs().max() / want.abs().max().clamp_min(1e-3))


def gradients(model, case: Case, bank=None) -> dict:
    """By name, of the summed losses of all bit-widths, whose backward comes when all forwards are over."""
    model.train().zero_grad()
    torch.manual_seed(3)
    if bank:
        bank.fill()
    loss = 0
    for bits in case.bits:
        set_bits(model, bits)
        loss = loss + model(case.inputs()).square().mean()
    loss.backward()
    if bank:
        bank.backward()
    return {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}


def alike(got: dict, want: dict, what: str, case: Case) -> None:
    assert got.keys() == want.keys(), f"{what}: {got.keys() ^ want.keys()}"
    largest = max(float(value.abs().max()) for value in want.values())
    for name, value in want.items():
        assert float((got[name] - value).abs().max()) <= 1e-5 * case.looseness * largest, f"{what}: gradient of {name}"


@torch.no_grad()
def ends(got, model, case: Case, what: str) -> None:
    """`got` is what `model` computes, unless a value lies so near to the middle between two codes that sums in another
    order may round it to the other."""
    near, hooks = [], []
    for quantizer in quantizers(model):
        if isinstance(quantizer, ActivationQuantizer):
            hooks.append(quantizer.register_forward_pre_hook(lambda module, args: near.append(_near(module, *args))))
    modes = [(module, module.training) for module in model.modules()]
    want = model.eval()(case.inputs())
    for hook in hooks:
        hook.remove()
    for module, training in modes:
        module.training = training
    bound = BOUND * case.looseness
    if gap(got, want) > bound and any(near):
        return
    close(got, want, bound, what)


def _near(quantizer, x) -> bool:
    if quantizer.bit_state.bits == 32:
        return False
    offset = 0 if quantizer.offsets is None else quantizer.offsets[str(quantizer.bits)]
    v = (x - offset) / quantizer.scale(quantizer.bits)
    middle = v if quantizer.bits == 1 and quantizer.signed else v - v.floor() - 0.5
    width = 1e-2 if x.dtype == torch.bfloat16 else 1e-5
    return bool((middle.abs() < width * (1 + v.abs())).any())


@contextlib.contextmanager
def told(model, function: str, *, expected: bool, about: str = ""):
    """The block works, or, where `expected`, raises an error in the house wording that names function or layer."""
    try:
        yield
    except (TypeError, ValueError, RuntimeError) as error:
        found = HOUSE_WORDING.fullmatch(str(error))
        names = {name for name, _ in model.named_modules()} | {function, "export"}
        if not expected or not found or found["who"] not in names or about not in str(error):
            raise
