"""transformers' Conv1D, a linear layer whose weight is stored transposed: everywhere a weight is quantized."""

import copy
import sys
import types

import pytest
import torch
from foreign import package
from networks import one_thread, specs  # noqa: F401
from torch import nn

import mbq_store
from mbq_lab.recipes.msq.bank import LsbBank
from mbq_train import (
    GradNormScorer,
    QuantTransposedLinear,
    WeightBank,
    convert,
    deploy,
    export_onnx,
    export_store,
    hessian_traces,
    initialise,
    perturbations,
    plan_conversion,
    set_bits,
    set_layer_bits,
)

BITS = (8, 4, 2)
QUANTIZERS = {"learned": {}, "corrected": {"weight_correction": True}, "double-rounding": {},
              "any-precision": {}, "round-clamp": {}}


class Conv1D(nn.Module):
    """As in transformers.pytorch_utils."""

    def __init__(self, nf, nx):
        super().__init__()
        self.nf, self.nx = nf, nx
        self.weight, self.bias = nn.Parameter(torch.randn(nx, nf) / 2), nn.Parameter(torch.randn(nf))

    def forward(self, x):
        return torch.addmm(self.bias, x.reshape(-1, x.shape[-1]), self.weight).view(*x.shape[:-1], self.nf)


@pytest.fixture(autouse=True)
def transformers(monkeypatch):
    if "transformers.pytorch_utils" not in sys.modules:
        monkeypatch.setitem(sys.modules, "transformers.pytorch_utils", types.SimpleNamespace(Conv1D=Conv1D))
    monkeypatch.setattr(sys.modules["transformers.pytorch_utils"], "Conv1D", Conv1D)


@pytest.fixture
def x():
    return torch.rand(7, 6, generator=torch.Generator().manual_seed(1))


def network(kind=Conv1D):
    """Two transposed layers between float ends, or the same network of Linear layers."""
    torch.manual_seed(0)
    layers = [nn.Linear(6, 5), nn.ReLU(), Conv1D(8, 5), nn.ReLU(), Conv1D(4, 8), nn.ReLU(), nn.Linear(4, 3)]
    if kind is nn.Linear:
        for i in (2, 4):
            linear = nn.Linear(*layers[i].weight.shape)
            linear.weight, linear.bias = nn.Parameter(layers[i].weight.detach().t().contiguous()), layers[i].bias
            layers[i] = linear
    return nn.Sequential(*layers)


def pair(quantizer, x):
    """The same network with transposed and with Linear layers, converted and started alike."""
    options = {"quantizer": "learned" if quantizer == "corrected" else quantizer} | QUANTIZERS[quantizer]
    models = [convert(network(kind), BITS, **specs(**options)) for kind in (Conv1D, nn.Linear)]
    for model in models:
        initialise(model, x)
    return models


def gradients(model):
    return {name: p.grad.t() if name in ("2.weight", "4.weight") and isinstance(model[2], QuantTransposedLinear) else
            p.grad for name, p in model.named_parameters() if p.grad is not None}


def step(model, x):
    for bits in (*BITS, 32):
        set_bits(model, bits)
        model(x).square().mean().backward()
    return gradients(model)


def assert_alike(ours, linear):
    assert ours.keys() == linear.keys() and ours
    for name, value in ours.items():
        torch.testing.assert_close(value, linear[name], msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize("quantizer", QUANTIZERS)
def test_it_computes_and_learns_as_the_linear_layer_does(quantizer, x):
    ours, linear = pair(quantizer, x)
    assert type(ours[2]) is QuantTransposedLinear and ours[2].weight.shape == (5, 8)
    for bits in (*BITS, 32):
        set_bits(ours, bits)
        set_bits(linear, bits)
        torch.testing.assert_close(ours(x), linear(x))
        assert torch.equal(ours[2].quantized_weight(), linear[2].quantized_weight())
        if bits == 2 and quantizer == "learned":
            assert len(ours[2].weight_quantizer.scales["2"]) == 8
            assert all(len(row.unique()) <= 4 for row in ours[2].quantized_weight())
    assert_alike(step(ours, x), step(linear, x))


@pytest.mark.parametrize("quantizer", QUANTIZERS)
def test_a_bank_of_its_weights(quantizer, x):
    model, _ = pair(quantizer, x)
    alone = step(copy.deepcopy(model), x)
    bank = WeightBank(model, BITS)
    bank.fill()
    set_bits(model, 4)
    assert model[2].weight_quantizer.held[4].shape == (8, 5)
    for bits in (*BITS, 32):
        set_bits(model, bits)
        model(x).square().mean().backward()
    bank.backward()
    assert_alike(gradients(model), alone)


def test_what_the_last_bits_cost(x):
    banks = []
    for model in pair("round-clamp", x):
        set_layer_bits(model, {"2": 4, "4": 3})
        bank = LsbBank(model, unit_gradient=False)
        bank.low_bits = {"2": 1, "4": 2}
        bank.fill()
        bank.penalty.backward()
        banks.append((bank.penalty.detach(), bank.rates(), gradients(model)))
    torch.testing.assert_close(*banks)


@pytest.mark.parametrize("quantizer", QUANTIZERS)
def test_stores_hold_its_output_channels_first(quantizer, x, tmp_path):
    model, linear = pair(quantizer, x)
    model.eval()
    bits = None if quantizer == "double-rounding" else 4
    export_store(model, tmp_path / "ours", bits=bits)
    export_store(linear.eval(), tmp_path / "linear", bits=bits)
    set_bits(model, 4)
    with mbq_store.Store(tmp_path / "ours") as ours, mbq_store.Store(tmp_path / "linear") as theirs:
        for name in ("2", "4"):
            weight, expected = (torch.from_numpy(store.dequantize(name, 4)) for store in (ours, theirs))
            rounding = {"rtol": 0, "atol": 1e-7 if quantizer == "any-precision" else 0}  # its scale is a mean of all
            torch.testing.assert_close(weight, expected, **rounding)
            torch.testing.assert_close(weight, model.get_submodule(name).quantized_weight(), **rounding)


@pytest.mark.parametrize("layout", ["codes", "planes"])
def test_deployed_it_computes_the_same(layout, x):
    model, _ = pair("double-rounding", x)
    set_bits(model.eval(), 4)
    expected = model(x)
    torch.testing.assert_close(deploy(copy.deepcopy(model), layout=layout)(x), expected)


def test_onnx_computes_the_same(x, tmp_path):
    runtime = pytest.importorskip("onnxruntime")
    model, _ = pair("learned", x)
    set_bits(model.eval(), 2)
    export_onnx(model, tmp_path / "model.onnx", bits=2, example=x)
    session = runtime.InferenceSession(tmp_path / "model.onnx")
    (out,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    torch.testing.assert_close(torch.from_numpy(out), model(x).detach(), rtol=1e-3, atol=1e-4)


def test_sensitivities_and_gradient_norms_are_those_of_the_linear_layer(x):
    ours, linear = (model.eval() for model in pair("learned", x))
    labels = torch.arange(7) % 3
    for bits in BITS:
        set_bits(ours, bits)
        set_bits(linear, bits)
        assert perturbations(ours) == pytest.approx(perturbations(linear))
        for weights in ("quantized", "latent"):
            found = [GradNormScorer(model, weights=weights)(x, labels) for model in (ours, linear)]
            torch.testing.assert_close(found[0].layers, found[1].layers)
    traces = [hessian_traces(model, [(x, labels)], probes=200, tolerance=0.0)["2"] for model in (ours, linear)]
    assert abs(traces[0].value - traces[1].value) <= 5 * (traces[0].error + traces[1].error)


def test_its_state_keeps_names_and_shapes(x):
    source, model = network(), convert(network(), BITS)
    weight = model[2].weight
    model.load_state_dict(source.state_dict())
    assert model[2].weight is weight and torch.equal(weight, source[2].weight)
    assert weight is dict(model.named_parameters())["2.weight"]
    assert repr(model[2]).startswith("QuantTransposedLinear(\n  in_features=5, out_features=8\n")


class Doubled(Conv1D):
    def forward(self, x):
        return 2 * super().forward(x)


def test_subclasses_and_rules_are_as_of_other_layers(x):
    model = network()
    model[2].__class__ = Doubled
    plan = plan_conversion(model, BITS, example=x)
    assert [entry.action for entry in plan.entries] == ["float", "float", "quantize", "float"]
    assert "subclass of Conv1D, its output on the example differs by" in plan.entries[1].why
    assert plan_conversion(model, BITS, rules=[(Conv1D, "float"), ("0", "quantize")]).entries[2].action == "float"


def test_a_layer_of_this_name_from_elsewhere_is_left(x, monkeypatch):
    monkeypatch.delitem(sys.modules, "transformers.pytorch_utils")
    plan = plan_conversion(network(), keep_float=())
    assert [entry.action for entry in plan.entries] == ["quantize", "float", "float", "quantize"]


def test_gpt2_is_converted_and_loads_its_checkpoint(monkeypatch):
    monkeypatch.undo()
    transformers = package("transformers")
    config = transformers.GPT2Config(n_embd=8, n_layer=2, n_head=2, vocab_size=11, n_positions=8, bos_token_id=0,
                                     eos_token_id=0)
    source, tokens = transformers.GPT2LMHeadModel(config).eval(), torch.arange(10).view(2, 5)
    model = transformers.GPT2LMHeadModel(config).eval()
    plan = plan_conversion(model, BITS, example={"input_ids": tokens})
    assert plan.quantized_parameters == 2 * 12 * 8 * 8 - 3 * 8 * 8
    assert [entry.name for entry in plan.entries if entry.why.startswith("keep_float: first")] == [
        "transformer.h.0.attn.c_attn"]
    plan.apply()
    model.load_state_dict(source.state_dict())
    set_bits(model, 32)
    torch.testing.assert_close(model(tokens).logits, source(tokens).logits)
