"""How much of a step quantization takes, and what a training holds in memory."""

from dataclasses import replace

import pytest
import quantization_time as profile
import torch
from networks import one_thread, specs, tiny_model  # noqa: F401
from quantization_time import quantization_time
from torch import nn

from mbq_lab import Options
from mbq_lab.runs.memory_estimate import estimate_memory
from mbq_train import convert, initialise

BITS = (8, 4, 2)


@pytest.fixture
def images():
    return torch.randn(16, 1, 8, 8, generator=torch.Generator().manual_seed(1))


def test_quantization_time_covers_every_quantizer_at_every_bit_width(images):
    model = convert(tiny_model(), BITS, keep_float=("last",))
    initialise(model, images)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    result = quantization_time(model, images, repeats=3)
    assert result.calls == 2 * 2 * len(BITS) and result.kernels_ms > 0 and result.eager_ms > 0
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert all(parameter.grad is None for name, parameter in model.named_parameters() if ".scales.8" in name)


@pytest.mark.parametrize("options", [{}, {"normalise": "tanh"}, {"form": "sign-magnitude"}], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_quantization_time_of_round_clamp_with_layers_of_zeros_and_frozen_ones(images, options, dtype):
    model = convert(tiny_model(), (8, 2), keep_float=(), **specs(quantizer="round-clamp", **options)).to(dtype)
    first, second = (module for module in model if isinstance(module, nn.Conv2d))
    nn.init.zeros_(first.weight)
    second.weight.requires_grad_(False)
    initialise(model, images.to(dtype))
    assert quantization_time(model, images.to(dtype), repeats=1).eager_ms > 0


def test_quantization_time_refuses_results_that_differ(images, monkeypatch):
    model = convert(tiny_model(), BITS)
    initialise(model, images)
    wrong = dict.fromkeys(profile._EAGER, lambda x, scale, offset, **options: x * scale.sum())
    monkeypatch.setattr(profile, "_EAGER", wrong)
    with pytest.raises(RuntimeError, match="quantization_time: the results of mbq_kernels and of eager PyTorch must"):
        quantization_time(model, images)
    with pytest.raises(ValueError, match="quantization_time: model must hold layers made by convert, got Sequential"):
        quantization_time(tiny_model(), images)


def test_memory_is_what_the_tensors_take(images):
    torch.manual_seed(0)
    model = convert(nn.Sequential(nn.Linear(10, 20), nn.ReLU(), nn.Linear(20, 30, bias=False), nn.ReLU(),
                                  nn.Linear(30, 5)), BITS, batch_norm="shared")
    options = Options(batch_size=64, distill=0.7, schedule="accumulate", weight_bank=True)
    memory = estimate_memory(model, torch.randn(4, 10), options, train_size=100, classes=5)
    learned = 4 * sum(parameter.numel() for parameter in model.parameters())
    assert memory.gradients == learned and memory.optimizer == 2 * learned
    assert memory.weight_bank == 2 * 3 * 4 * 600 and memory.soft_targets == 2 * 100 * 5
    # Kept for the backward: of 64 rows the input, both ReLUs' results and the quantized input of the second layer; of
    # any number of rows its quantized weight, and a few small tensors.
    assert 0 <= memory.activations - 4 * (64 * (10 + 20 + 30 + 20) + 600) < 1000
    sgd = estimate_memory(model, torch.randn(16, 10), replace(options, optimizer="sgd", weight_bank=False,
                                                              schedule="each", distill=0.0), train_size=100, classes=5)
    assert sgd.optimizer == learned and sgd.weight_bank == sgd.soft_targets == 0
    assert memory.total == sum(vars(memory).values()) and model[2].weight_quantizer.missing == set(BITS)
