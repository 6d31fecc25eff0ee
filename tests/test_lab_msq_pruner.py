"""MSQ: who loses which bits, and the bank that makes the penalty."""

import pytest
import torch
from msq_networks import SMALL, network
from networks import one_thread  # noqa: F401
from small_data import halves

import mbq_kernels
from mbq_lab.recipes.msq import Msq
from mbq_lab.recipes.msq.bank import LsbBank
from mbq_lab.recipes.msq.pruner import Pruner
from mbq_lab.training import traces
from mbq_lab.training.loop import Training
from mbq_train.quantize.layer_bits import set_layer_bits
from mbq_train.quantize.round_clamp import round_clamp_layers
from mbq_train.sensitivity import Trace


@pytest.fixture(scope="module")
def data():
    return halves()


def pruner(target=1e9, floor=1, bits=None):
    parameters = {"a": 100, "b": 200, "c": 100}
    return Pruner(parameters, bits or dict.fromkeys(parameters, 8), target=target, threshold=0.3, floor=floor)


def test_compression_is_bsqs():
    assert pruner().compression == 4.0
    assert pruner(bits={"a": 8, "b": 2, "c": 1}).compression == pytest.approx(32 * 400 / (800 + 400 + 100))


def test_insensitive_layers_may_lose_two_bits_and_none_falls_below_the_floor():
    one = pruner(floor=2)
    assert one.low_bits == {"a": 1, "b": 1, "c": 1}
    one.set_sensitivities({"a": 1.0, "b": 2.0, "c": 6.0})  # average 3
    assert one.low_bits == {"a": 2, "b": 2, "c": 1}
    one.bits = {"a": 3, "b": 2, "c": 8}
    one.set_sensitivities({"a": 1.0, "b": 2.0, "c": 6.0})
    assert one.low_bits == {"a": 1, "c": 1}
    one.set_sensitivities({"a": 0.0, "b": 0.0, "c": 0.0})  # a Hessian of nothing: none is below the average
    assert one.low_bits == {"a": 1, "c": 1}
    one.bits = dict.fromkeys("abc", 2)
    one.set_sensitivities({})
    assert one.low_bits == {} and one.done


def test_layers_below_the_threshold_lose_their_bits():
    one = pruner()
    one.set_sensitivities({"a": 1.0, "b": 2.0, "c": 6.0})
    assert one.prune({"a": 0.29, "b": 0.3, "c": 0.1}) == {"a": 6, "c": 7}
    assert one.bits == {"a": 6, "b": 8, "c": 7} and not one.done


def test_pruning_stops_at_the_target_with_the_most_sensitive_layers_spared():
    one = pruner(target=32 * 400 / (7 * 400 - 100))  # three bits of 100 weights, and two more
    one.set_sensitivities({"a": 9.0, "b": 1.0, "c": 5.0})
    assert one.prune(dict.fromkeys("abc", 0.0)) == {"b": 6, "c": 7} and one.done
    assert one.prune(dict.fromkeys("abc", 0.0)) == {}


@pytest.mark.parametrize("form", ["offset", "sign-magnitude"])
def test_the_bank_quantizes_all_layers_and_adds_both_gradients(data, form):
    model = network(form=form).train()
    names = list(round_clamp_layers(model))
    set_layer_bits(model, dict(zip(names, (8, 5, 4, 1), strict=True)))
    bank = LsbBank(model, unit_gradient=False)
    bank.low_bits = dict(zip(names[:3], (2, 1, 3), strict=True))
    with torch.no_grad():
        alone = {name: layer.weight_quantizer(layer.weight) for name, layer in round_clamp_layers(model).items()}
    images = torch.randn(4, 1, 8, 8)
    model(images)
    bank.fill()
    for name, layer in bank.layers.items():
        assert (name in bank.low_bits) == bool(layer.weight_quantizer.held)
        assert torch.equal(layer.weight_quantizer(layer.weight), alone[name])
    task = model(images).square().sum()
    penalty, rates = bank.penalty, bank.rates()
    (task + 0.5 * penalty).backward()
    bank.drop()
    assert bank.penalty is None and not any(layer.weight_quantizer.held for layer in bank.layers.values())

    expected = {name: torch.zeros_like(layer.weight) for name, layer in bank.layers.items()}
    total = 0.0
    for name, k in bank.low_bits.items():
        layer = bank.layers[name]
        weight, bits = layer.weight.detach(), layer.weight_quantizer.bits
        limit = weight.abs().max()
        residual = mbq_kernels.extract_lsb(weight, bits=bits, k=k, limit=limit, form=form)
        total += residual.abs().sum().item()
        assert rates[name] == pytest.approx((residual != 0).float().mean().item())
        rise = 1 / (2 * limit) if form == "offset" else weight.sign() / limit
        expected[name] = 0.5 * 2**bits * residual.sign() * rise
    assert penalty.item() == total
    found = {name: layer.weight.grad.clone() for name, layer in bank.layers.items()}
    model.zero_grad()
    model(images).square().sum().backward()  # the task's gradient alone, every layer for itself
    for name, layer in bank.layers.items():
        torch.testing.assert_close(found[name], layer.weight.grad + expected[name], rtol=1e-5, atol=1e-5)


def test_negative_and_zero_traces_let_a_layer_lose_two_bits(data, monkeypatch):
    monkeypatch.setattr(traces, "hessian_traces", lambda model, batches, **options: {
        name: Trace(value, 0.1, 10) for name, value in zip(("0", "3", "7", "9"), (-5.0, 0.0, 1e6, 1.0), strict=True)})
    training = Training(network(), data, (8,), SMALL, recipe=Msq)
    assert training.recipe.pruner.low_bits == {"0": 2, "3": 2, "7": 1, "9": 2}
