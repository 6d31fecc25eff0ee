"""Steps that add the gradients of all bit-widths, and the bank that quantizes for them once."""

from dataclasses import replace

import pytest
import torch
from networks import one_thread, tiny_model  # noqa: F401
from small_data import halves
from small_runs import BITS, OPTIONS, batch_of, train
from torch import nn

from mbq_lab.training.loop import stepper_of
from mbq_lab.training.optimizers import build_optimizer
from mbq_train import convert, initialise, set_bits
from mbq_train.quantize import learned
from mbq_train.quantize.weight_bank import WeightBank


@pytest.fixture(scope="module")
def data():
    return halves()


def gradients(model, data, **options):
    """Gradients of one accumulated step, by name, without the step."""
    initialise(model, batch_of(data).images)
    options = replace(OPTIONS, schedule="accumulate", optimizer="sgd", momentum=0.0, learning_rate=1e-30, **options)
    stepper = stepper_of(options, model, BITS, build_optimizer(model, options))
    losses = stepper(batch_of(data))
    return losses, {name: parameter.grad for name, parameter in model.named_parameters()}


def test_accumulate_adds_the_gradients_of_all_bit_widths(data):
    batch = batch_of(data)
    losses, summed = gradients(convert(tiny_model(), BITS, batch_norm="shared").eval(), data)
    model = convert(tiny_model(), BITS, batch_norm="shared").eval()
    initialise(model, batch.images)
    for b, loss in zip(BITS, losses, strict=True):
        set_bits(model, b)
        own = nn.functional.cross_entropy(model(batch.images), batch.labels)
        own.backward()
        assert own.item() == loss.item()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(summed[name], parameter.grad, rtol=1e-6, atol=1e-8)
    assert len({summed[f"3.weight_quantizer.scales.{b}"].abs().sum().item() for b in BITS}) == 3


@pytest.mark.parametrize("autocast", ["none", "bfloat16"])
def test_the_weight_bank_changes_nothing_but_the_order_of_a_sum(data, autocast):
    with_bank, without = (gradients(convert(tiny_model(), BITS), data, autocast=autocast, weight_bank=bank)
                          for bank in (True, False))
    assert torch.equal(with_bank[0], without[0])
    for name, expected in without[1].items():
        torch.testing.assert_close(with_bank[1][name], expected, rtol=1e-5, atol=1e-6)


def test_the_weight_bank_quantizes_once_a_step_and_lets_its_copies_go(data, monkeypatch):
    calls = []
    foreach = learned.mbq_kernels.fake_quantize_foreach

    def watch(weights, *rest, **options):
        calls.append(len(weights))
        return foreach(weights, *rest, **options)

    monkeypatch.setattr(learned.mbq_kernels, "fake_quantize_foreach", watch)
    model = convert(tiny_model(), BITS)
    train(model, data, schedule="accumulate", weight_bank=True, batch_size=30)
    quantized = [module for module in model.modules() if isinstance(module, learned.WeightQuantizer)]
    assert calls == [len(quantized)] * 2 and not any(quantizer.held for quantizer in quantized)
    elements = sum(model[i].weight.numel() for i in (3,))
    assert WeightBank(model, BITS).nbytes == 2 * len(BITS) * 4 * elements


def test_a_weight_bank_leaves_layers_that_no_batch_has_reached_alone(data):
    model = convert(tiny_model(), BITS)
    bank = WeightBank(model, BITS)
    bank.fill()
    assert not model[3].weight_quantizer.held
    initialise(model, batch_of(data).images)
    bank.fill()
    assert list(model[3].weight_quantizer.held) == list(BITS)
    bank.drop()
    assert not model[3].weight_quantizer.held
