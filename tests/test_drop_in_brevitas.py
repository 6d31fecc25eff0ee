"""accelerate on networks of Brevitas: outputs, scales and gradients as the original's, training too."""

import copy
import os
import pickle
import warnings

import pytest
import torch
from torch import nn
from twin_training import twenty_losses

from mbq_train import accelerate

warnings.filterwarnings("ignore")
pytest.importorskip("brevitas")
if os.environ.get("BREVITAS_JIT") == "1":
    pytest.skip("modules are scripted", allow_module_level=True)
import brevitas.nn as qnn  # noqa: E402
from brevitas.proxy.groupwise_int_parameter_quant import GroupwiseWeightQuantProxyFromInjector  # noqa: E402
from brevitas.quant import (  # noqa: E402
    Int8ActPerTensorFloat,
    Int8WeightPerChannelFloat,
    Int8WeightPerTensorFloat,
    ShiftedUint8ActPerTensorFloat,
    ShiftedUint8WeightPerChannelFloat,
    ShiftedUint8WeightPerTensorFloat,
    SignedBinaryWeightPerTensorConst,
)
from brevitas.quant.shifted_scaled_int import ShiftedUint8WeightGroupQuantFloat  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore")


class Int4WeightPerGroupFloat(Int8WeightPerChannelFloat):
    """Groups of rows, which brevitas.quant has of shifted quantizers alone."""

    proxy_class = GroupwiseWeightQuantProxyFromInjector
    scaling_per_output_type = "group"
    bit_width = 4


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
    models = [network(), network()]
    assert len(accelerate(models[1]).replaced) == 5 + 5  # IntQuant and statistics
    assert models[0].state_dict().keys() == models[1].state_dict().keys()
    found = [twenty_losses(model, (16, 3, 12, 12), 0.05, restored_at=15) for model in models]
    assert found[0][0] == found[1][0]
    torch.testing.assert_close(found[1], found[0], rtol=2e-3, atol=2e-3)


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


@pytest.mark.parametrize("size", [16, 24, 32], ids=str)  # 24: the last group of a row is filled up
@pytest.mark.parametrize("quantizer", [Int4WeightPerGroupFloat, ShiftedUint8WeightGroupQuantFloat],
                         ids=["symmetric", "shifted"])
def test_groups(quantizer, size):
    original = qnn.QuantLinear(64, 384, False, weight_quant=quantizer, weight_group_size=size)
    ours = copy.deepcopy(original)
    report = accelerate(ours)
    assert any(entry.type == "IntQuant" for entry in report.replaced) and not report.left
    assert_same(original, ours, lambda module, x: module(x), steps=2)


def test_a_rounding_that_is_switched_later_is_seen():
    from brevitas.core.function_wrapper import FloorSte
    original = qnn.QuantLinear(64, 48, False)
    ours = copy.deepcopy(original)
    accelerate(ours)
    for module in (original, ours):
        module.weight_quant.tensor_quant.int_quant.float_to_int_impl = FloorSte()
    assert_same(original, ours, lambda module, x: module(x), steps=1)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64], ids=str)
def test_other_dtypes_are_computed_by_brevitas(dtype):
    original = qnn.QuantLinear(256, 128, False, weight_quant=Int8WeightPerChannelFloat).to(dtype)
    ours = copy.deepcopy(original)
    accelerate(ours)
    results = [module(torch.ones(4, 256, dtype=dtype)) for module in (original, ours)]
    for result in results:
        result.sum().backward()
    assert torch.equal(*results)
    torch.testing.assert_close(ours.weight.grad, original.weight.grad, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("make", [
    lambda: qnn.QuantLinear(64, 48, False, weight_quant=Int8WeightPerChannelFloat),
    lambda: qnn.QuantIdentity(act_quant=Int8ActPerTensorFloat, collect_stats_steps=2)], ids=["weight", "collecting"])
def test_compiled_in_one_graph(make):
    original = make()
    ours = copy.deepcopy(original)
    accelerate(ours)
    x = torch.randn(300, 64)
    assert torch.equal(torch.compile(ours, backend="eager", fullgraph=True)(x), original(x))


def test_bit_widths_are_asked_for_once(monkeypatch):
    model = qnn.QuantLinear(64, 48, False)
    accelerate(model)
    quantizer = model.weight_quant.tensor_quant
    buffer = quantizer.msb_clamp_bit_width_impl.bit_width.value
    x, asked, item = torch.randn(5, 64), [], torch.Tensor.item
    monkeypatch.setattr(torch.Tensor, "item", lambda tensor: asked.append(1) or item(tensor))
    for bits in (8, 8, 3, 3):  # a change in place is seen
        with torch.no_grad():
            if item(buffer) != bits:
                buffer.fill_(bits)
        assert len(model.quant_weight().value.unique()) <= 2**bits
        model(x)
    assert len(asked) == 2
