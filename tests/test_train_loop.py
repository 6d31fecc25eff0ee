"""Data, models and the training loop."""

import math
from dataclasses import replace

import pytest
import torch
from mbq_train import (Data, TrainingError, build_model, convert, evaluate, load_data, profile, quantization_time,
                       set_bits, training)
from mbq_train.bits import bit_states
from mbq_train.data import batches
from networks import one_thread, tiny_model  # noqa: F401

BITS = (8, 4, 2)


def train(model, data, bits, **options):
    training.train(model, data, bits, **{"batch_size": 16, "learning_rate": 1e-3, "weight_decay": 5e-5, **options})


@pytest.fixture(scope="module")
def data():
    """Two classes that a bright left or right half tells apart."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(80) % 2
    images = torch.randn(80, 1, 8, 8, generator=generator)
    images[labels == 0, :, :, :4] += 2
    images[labels == 1, :, :, 4:] += 2
    return Data("halves", 2, images[:60], labels[:60], images[60:], labels[60:])


def test_digits_are_normalised_stratified_and_fixed():
    first, second = load_data("digits"), load_data("digits")
    assert first.train_images.shape == (1347, 1, 8, 8) and first.test_images.shape == (450, 1, 8, 8)
    assert first.train_images.dtype == torch.float32 and first.train_labels.dtype == torch.int64
    assert abs(first.train_images.mean()) < 1e-5 and abs(first.train_images.std() - 1) < 1e-5
    counts = first.test_labels.bincount(minlength=10)
    assert counts.min() >= 43 and counts.max() <= 46
    assert torch.equal(first.test_images, second.test_images)


def test_batches_cover_every_image_once_in_an_order_from_the_generator():
    images, labels = torch.arange(10.0), torch.arange(10)
    drawn = list(batches(images, labels, 4, torch.Generator().manual_seed(3)))
    order = torch.cat([label for _, label in drawn])
    assert [len(image) for image, _ in drawn] == [4, 4, 2]
    assert sorted(order.tolist()) == list(range(10)) and order.tolist() != list(range(10))
    again = torch.cat([label for _, label in batches(images, labels, 4, torch.Generator().manual_seed(3))])
    assert torch.equal(order, again)
    assert all(torch.equal(image.long(), label) for image, label in drawn)


@pytest.mark.parametrize("function, match", [
    (lambda: load_data("digit"), r"load_data: name must be one of digits, got 'digit' \(did you mean 'digits'\?\)"),
    (lambda: build_model("resnet9", classes=2, in_channels=1), r"build_model: .*\(did you mean 'resnet8'\?\)"),
    (lambda: build_model("zzz", classes=2, in_channels=1), "build_model: name must be one of resnet8, got 'zzz'$"),
], ids=["data", "model", "no near name"])
def test_unknown_names_are_answered_with_the_nearest(function, match):
    with pytest.raises(ValueError, match=match):
        function()


def test_one_loop_trains_the_float_and_the_quantized_network(data):
    model, records = tiny_model(), []
    train(model, data, (32,), epochs=10, learning_rate=0.01, on_epoch=records.append)
    assert evaluate(model, data, 32) >= 0.9
    convert(model, BITS)
    train(model, data, BITS, epochs=10, learning_rate=0.01, on_epoch=records.append)
    assert all(evaluate(model, data, b) >= 0.9 for b in BITS)
    assert [record["epoch"] for record in records] == [*range(1, 11)] * 2
    assert list(records[-1]["loss"]) == list(BITS)
    assert all(records[-1]["loss"][b] < records[10]["loss"][b] for b in BITS)


def test_bit_widths_are_trained_in_order_and_scales_do_not_move_at_others(data, monkeypatch):
    model, seen = convert(tiny_model(), BITS), []
    scales = model[3].weight_quantizer.scales
    step = training._step

    def watch(model, optimizer, images, labels, bits, number):
        before = {b: scale.detach().clone() for b, scale in scales.items()}
        value = step(model, optimizer, images, labels, bits, number)
        seen.append((number, bits, [b for b, scale in scales.items() if not torch.equal(scale, before[b])]))
        return value

    monkeypatch.setattr(training, "_step", watch)
    train(model, data, BITS, epochs=1, batch_size=30)
    assert seen == [(1, 8, ["8"]), (1, 4, ["4"]), (1, 2, ["2"]), (2, 8, ["8"]), (2, 4, ["4"]), (2, 2, ["2"])]


def test_scales_stay_positive_at_a_rate_that_overshoots(data):
    model = convert(tiny_model(), BITS)
    train(model, data, BITS, epochs=2, learning_rate=1.0)
    scales = [p for name, p in model.named_parameters() if ".scales." in name]
    assert len(scales) == 6 and all((scale > 0).all() for scale in scales)
    assert any((scale == scale.new_tensor(1e-8)).any() for scale in scales)  # the clamp was needed


def test_the_same_seed_gives_the_same_network(data):
    states = []
    for _ in range(2):
        model = convert(tiny_model(), BITS)
        train(model, data, BITS, epochs=1, seed=5)
        states.append(model.state_dict())
    assert len(states[0]) > 20 and all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_evaluate_counts_and_restores_mode_and_bits(data):
    model = convert(tiny_model(), BITS)
    train(model, data, BITS, epochs=1)
    set_bits(model, 4)
    model.train()
    model[1].eval()
    accuracy = evaluate(model, data, 2, batch_size=7)
    assert bit_states(model)[0].bits == 4 and model.training and not model[1].training
    model.eval()
    set_bits(model, 2)
    assert accuracy == (model(data.test_images).argmax(dim=1) == data.test_labels).double().mean().item()


def test_nan_loss_stops_with_step_and_bit_width(data):
    images = data.train_images.clone()
    images[torch.randperm(60, generator=torch.Generator().manual_seed(0))[20]] = math.nan  # in the second batch of 16
    model = convert(tiny_model(), BITS, batch_norm="shared")
    train(model, data, BITS, epochs=1)
    with pytest.raises(TrainingError, match="train: loss must be finite, got nan at step 2, 8 bits"):
        train(model, replace(data, train_images=images), BITS, epochs=1, seed=0)


def test_nan_parameters_stop_with_step_and_bit_width(data):
    model = convert(tiny_model(), BITS)
    train(model, data, BITS, epochs=1)
    with torch.no_grad():
        model[3].weight_quantizer.scales["4"].fill_(math.nan)
    with pytest.raises(TrainingError, match="(parameters|loss) must be finite, got .* at step 1, 4 bits"):
        train(model, data, BITS, epochs=1)


@pytest.mark.parametrize("options, match", [
    ({"epochs": 0}, "train: epochs must be at least 1, got 0"),
    ({"batch_size": 0}, "train: batch_size must be at least 1, got 0"),
    ({"learning_rate": 0.0}, "train: learning_rate must be positive and finite, got 0.0"),
    ({"learning_rate": math.nan}, "train: learning_rate must be positive and finite, got nan"),
    ({"weight_decay": -1.0}, "train: weight_decay must be finite and not negative, got -1.0"),
    ({"bits": ()}, "train: bits must name at least one bit-width, got none"),
    ({"bits": (8, 3)}, "set_bits: bits must be one of 32, 8, 4, 2, got 3"),
])
def test_train_refuses_options(data, options, match):
    with pytest.raises(ValueError, match=match):
        train(convert(tiny_model(), BITS), data, **{"bits": BITS, "epochs": 1, **options})


def test_a_float_network_has_no_low_bit_path(data):
    with pytest.raises(ValueError, match="set_bits: model must hold layers made by convert"):
        train(tiny_model(), data, (8,), epochs=1)


def test_quantization_time_covers_every_quantizer_at_every_bit_width(data):
    model = convert(tiny_model(), BITS, keep_float=("last",), signed_inputs=("0",))
    train(model, data, BITS, epochs=1)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    result = quantization_time(model, data.train_images[:16], repeats=3)
    assert result.calls == 2 * 2 * len(BITS) and result.kernels_ms > 0 and result.eager_ms > 0
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert all(parameter.grad is None for name, parameter in model.named_parameters() if ".scales.8" in name)


def test_quantization_time_refuses_results_that_differ(data, monkeypatch):
    model = convert(tiny_model(), BITS)
    train(model, data, BITS, epochs=1)
    wrong = dict(profile._FUNCTIONS, eager=lambda x, scale, offset, **options: x * scale.sum())
    monkeypatch.setattr(profile, "_FUNCTIONS", wrong)
    with pytest.raises(RuntimeError, match="quantization_time: the results of mbq_kernels and of eager PyTorch must"):
        quantization_time(model, data.train_images[:16])
    with pytest.raises(ValueError, match="quantization_time: model must hold layers made by convert, got Sequential"):
        quantization_time(tiny_model(), data.train_images[:16])
