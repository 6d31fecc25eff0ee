"""Bit-widths that were not trained."""

import pytest
import torch
from networks import one_thread, small_network, tiny_model  # noqa: F401
from small_data import halves

from mbq_lab import Options, evaluate
from mbq_lab.training.loop import Training
from mbq_train import BitBatchNorm, Learned, add_bits, convert, initialise, set_bits
from mbq_train.quantize.bits import bit_states

BITS = (8, 4, 2)


@pytest.fixture(scope="module")
def trained():
    data = halves()
    model = convert(tiny_model(), BITS)
    Training(model, data, BITS, Options(epochs=8, batch_size=16, learning_rate=0.01)).run()
    return model, data


def test_untrained_bit_widths_work_and_leave_the_model_alone(trained):
    model, data = trained
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    images = [batch.images for batch in data.train_batches(16, seed=0, epoch=0)]
    wider = add_bits(model, (7, 6, 4, 3, 1), images)
    assert bit_states(wider)[0].trained == (8, 7, 6, 4, 3, 2, 1) and bit_states(model)[0].trained == BITS
    assert model.state_dict().keys() == before.keys()
    assert all(torch.equal(model.state_dict()[name], tensor) for name, tensor in before.items())
    assert all(evaluate(wider, data, b) >= 0.85 for b in (7, 6, 3))
    for b in BITS:
        set_bits(model.eval(), b), set_bits(wider.eval(), b)
        assert torch.equal(model(images[0]), wider(images[0]))


def test_thresholds_are_interpolated_between_trained_neighbours(trained):
    model, data = trained
    wider = add_bits(model, (6, 1), [next(data.train_batches(16, seed=0, epoch=0)).images])
    scale = wider[3].weight_quantizer.scale
    torch.testing.assert_close(scale(6) * 31, (scale(8) * 127 + scale(4) * 7) / 2)
    torch.testing.assert_close(scale(1) * 1, scale(2) * 1)


def test_running_statistics_are_the_averages_over_the_batches(trained):
    model, data = trained
    images = [batch.images for batch in data.train_batches(16, seed=0, epoch=0)][:2]
    norm = next(module for module in add_bits(model, (3,), images).modules() if isinstance(module, BitBatchNorm))
    conv = model[0]
    means = [conv(batch).mean(dim=(0, 2, 3)) for batch in images]
    torch.testing.assert_close(norm.by_bits["3"].running_mean, sum(means) / 2)
    assert norm.by_bits["3"].momentum == 0.1 and torch.equal(norm.by_bits["3"].weight, norm.by_bits["4"].weight)


def test_offsets_are_interpolated():
    model = convert(small_network(), BITS, activations=Learned(offset=True))
    initialise(model, torch.randn(4, 1, 8, 8))
    quantizer = model[3].input_quantizer
    with torch.no_grad():
        quantizer.offsets["8"].fill_(1.0), quantizer.offsets["4"].fill_(3.0)
    assert add_bits(model, (6,), [torch.randn(4, 1, 8, 8)])[3].input_quantizer.offsets["6"].item() == 2.0


def test_what_cannot_be_widened_is_an_error():
    with pytest.raises(ValueError, match="add_bits: model must hold layers made by convert, got Sequential"):
        add_bits(tiny_model(), (3,), [])
    with pytest.raises(ValueError, match="add_bits: bits must go from high to low"):
        add_bits(convert(tiny_model(), BITS), (3, 6), [])
    with pytest.raises(RuntimeError, match="must have seen a training batch at 8 bits"):
        add_bits(convert(tiny_model(), BITS), (3,), [])
    model = convert(tiny_model(), BITS)
    initialise(model, torch.randn(4, 1, 8, 8))
    with pytest.raises(ValueError, match="add_bits: batches must hold images for the statistics of BatchNorm, got"):
        add_bits(model, (3,), iter(()))
