"""accelerate on networks of Brevitas: outputs, scales and gradients as the original's, training too."""

import copy
import os
import pickle
import warnings

import pytest
import torch
from torch import nn

from mbq_train import accelerate, restore
from mbq_train.drop_in.brevitas import _AbsMax

warnings.filterwarnings("ignore")
pytest.importorskip("brevitas")
if os.environ.get("BREVITAS_JIT") == "1":
    pytest.skip("modules are scripted", allow_module_level=True)
import brevitas.nn as qnn  # noqa: E402
from brevitas.quant import (  # noqa: E402
    Int8ActPerTensorFloat,
    Int8WeightPerChannelFloat,
    Int8WeightPerTensorFloat,
    ShiftedUint8ActPerTensorFloat,
    ShiftedUint8WeightPerChannelFloat,
    ShiftedUint8WeightPerTensorFloat,
    SignedBinaryWeightPerTensorConst,
)

pytestmark = pytest.mark.filterwarnings("ignore")
WEIGHTS = {
    "tensor": dict(weight_quant=Int8WeightPerTensorFloat),
    "channel": dict(weight_quant=Int8WeightPerChannelFloat),
    "shifted-tensor": dict(weight_quant=ShiftedUint8WeightPerTensorFloat),
    "shifted-channel": dict(weight_quant=ShiftedUint8WeightPerChannelFloat),
    "learned": dict(weight_quant=Int8WeightPerTensorFloat, weight_scaling_impl_type="parameter_from_stats"),
    "learned-channel": dict(weight_quant=Int8WeightPerChannelFloat, weight_scaling_impl_type="parameter_from_stats"),
}
ACTIVATIONS = {
    "relu": lambda: qnn.QuantReLU(bit_width=4, collect_stats_steps=2),
    "relu-const": lambda: qnn.QuantReLU(bit_width=4, scaling_impl_type="const", max_val=3.0),
    "relu-learned": lambda: qnn.QuantReLU(bit_width=4, scaling_impl_type="parameter", scaling_init=3.0),
    "identity": lambda: qnn.QuantIdentity(act_quant=Int8ActPerTensorFloat, bit_width=5, collect_stats_steps=2),
    "shifted": lambda: qnn.QuantIdentity(act_quant=ShiftedUint8ActPerTensorFloat, collect_stats_steps=2),
}


def value_of(result):
    return getattr(result, "value", result)


def assert_same(original, ours, call, steps=4):
    """Compare results, gradients and states of a module and its twin over some calls."""
    for step in range(steps):
        x = torch.randn(40, 64) * (1 + step)
        leaves = x.clone().requires_grad_(), x.clone().requires_grad_()
        results = [value_of(call(module, leaf)) for module, leaf in zip((original, ours), leaves, strict=True)]
        assert torch.equal(*results)
        grad = torch.randn_like(results[0])
        for module, result in zip((original, ours), results, strict=True):
            module.zero_grad()
            result.backward(grad)
        for (name, one), other in zip(original.named_parameters(), ours.parameters(), strict=True):
            assert (one.grad is None) == (other.grad is None), name
            if one.grad is not None:
                torch.testing.assert_close(other.grad, one.grad, rtol=1e-3, atol=1e-4 * float(one.grad.abs().max()))
        if leaves[0].grad is not None:
            torch.testing.assert_close(leaves[1].grad, leaves[0].grad, rtol=1e-4, atol=1e-4)
        for (name, one), other in zip(original.state_dict().items(), ours.state_dict().values(), strict=True):
            assert torch.equal(one, other), name


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("name", WEIGHTS)
def test_weights(name, bits):
    for make in (lambda: qnn.QuantLinear(64, 48, bias=True, weight_bit_width=bits, **WEIGHTS[name]),
                 lambda: qnn.QuantConv2d(16, 24, 3, bias=True, weight_bit_width=bits, **WEIGHTS[name])):
        torch.manual_seed(0)
        original = make()
        ours = copy.deepcopy(original)
        assert any(entry.type == "IntQuant" for entry in accelerate(ours).replaced)
        assert_same(original, ours, lambda module, _: module.quant_weight(), steps=2)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activations(name):
    original = ACTIVATIONS[name]()
    ours = copy.deepcopy(original)
    assert len(accelerate(ours).replaced) >= 1
    assert_same(original, ours, lambda module, x: module(x))
    original.eval(), ours.eval()
    x = torch.randn(40, 64)
    assert torch.equal(value_of(original(x)), value_of(ours(x)))


def network():
    torch.manual_seed(0)
    return nn.Sequential(
        qnn.QuantConv2d(3, 16, 3, padding=1, bias=True, weight_bit_width=4), nn.BatchNorm2d(16),
        qnn.QuantReLU(bit_width=4, collect_stats_steps=5),
        qnn.QuantConv2d(16, 32, 3, stride=2, weight_bit_width=4, weight_quant=Int8WeightPerChannelFloat),
        qnn.QuantReLU(bit_width=4, collect_stats_steps=5), nn.Flatten(),
        qnn.QuantLinear(32 * 25, 10, bias=True, weight_bit_width=4))


def test_twenty_steps():
    """Sums of the scales' gradients are in another order: losses drift apart by roundings until a code flips."""
    models, found = [network(), network()], []
    assert len(accelerate(models[1]).replaced) == 5 + 3
    assert models[0].state_dict().keys() == models[1].state_dict().keys()
    for model in models:
        torch.manual_seed(1)
        optimizer, losses = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9), []
        for step in range(20):
            if step == 15:
                restore(model)
            x, labels = torch.randn(16, 3, 12, 12), torch.randint(0, 10, (16,))
            loss = nn.functional.cross_entropy(value_of(model(x)), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        found.append(losses)
    assert found[0][0] == found[1][0]
    torch.testing.assert_close(found[1], found[0], rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize("rows", [1, 5])
def test_gradient_of_the_largest_absolute_value(rows):
    for trial in range(30):
        x = torch.randn(rows, 300)
        x = x.mul(2).round() if trial % 2 else x  # ties
        leaves = x.clone().requires_grad_(), x.clone().requires_grad_()
        theirs = (leaves[0].abs().max().reshape(1, 1) if rows == 1 else
                  torch.max(leaves[0].abs(), dim=1, keepdim=True)[0])
        ours = _AbsMax.apply(leaves[1])
        grad = torch.randn(rows, 1)
        theirs.backward(grad), ours.backward(grad)
        assert torch.equal(theirs, ours) and torch.equal(leaves[0].grad, leaves[1].grad)


def test_copies_and_pickles():
    model = qnn.QuantReLU(bit_width=4, scaling_impl_type="const", max_val=3.0)
    quantizer = model.act_quant.fused_activation_quant_proxy.tensor_quant.int_quant
    accelerate(model)
    x = torch.randn(40, 64)
    expected = value_of(model(x))
    assert torch.equal(value_of(copy.deepcopy(model)(x)), expected)
    assert type(pickle.loads(pickle.dumps(quantizer))) is type(quantizer)


@pytest.mark.parametrize("make, reason", [
    (lambda: qnn.QuantLinear(64, 48, False, weight_quant=SignedBinaryWeightPerTensorConst), "does not compute as"),
    (lambda: qnn.QuantReLU(bit_width=4, float_to_int_impl_type="floor"), "rounds by FloorSte"),
    (lambda: qnn.QuantReLU(bit_width=4, quant_delay_steps=3), "delays quantization"),
], ids=["binary", "floor", "delay"])
def test_what_cannot_be_equal_is_left_alone_and_named(make, reason):
    report = accelerate(nn.Sequential(make(), nn.Sequential(qnn.QuantReLU(bit_width=4))))
    assert any(reason in entry.why for entry in report.left), report
    assert any(entry.type == "IntQuant" for entry in report.replaced)


def test_a_learned_bit_width_is_computed_by_brevitas():
    original = qnn.QuantReLU(bit_width=4, bit_width_impl_type="parameter", scaling_impl_type="const", max_val=3.0)
    ours = copy.deepcopy(original)
    accelerate(ours)
    assert_same(original, ours, lambda module, x: module(x), steps=1)
