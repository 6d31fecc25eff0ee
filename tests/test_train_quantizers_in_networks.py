"""Quantizers of a converted network: first values, idle scales, compilation."""

import torch
from compiled_networks import check_two_compiles
from networks import small_network, tiny_model
from test_train_quantizers import BITS

from mbq_train import convert, drop_idle_gradients, initialise, set_bits
from mbq_train.quantize.bits import bit_states


def converted(batch_norm="shared"):
    model = convert(small_network(), (8, 6, 4, 2), batch_norm=batch_norm)
    return model, torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(1))


def test_two_compiles_serve_all_bit_widths_with_the_eager_values_and_gradients():
    model, images = converted()
    initialise(model, images)
    check_two_compiles(model, images, lambda bits: [f"3.weight_quantizer.scales.{bits}"])


def test_initialise_fills_every_bit_width_and_changes_nothing_else():
    model, images = converted(batch_norm="per_bit")
    model.insert(2, torch.nn.Dropout())
    set_bits(model, 4)
    model[0].eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items() if "quantizer" not in name}
    torch.manual_seed(3)
    initialise(model, images)
    after_random, _ = torch.rand(3), torch.manual_seed(3)
    assert torch.equal(after_random, torch.rand(3))
    assert all(torch.equal(model.state_dict()[name], tensor) for name, tensor in before.items())
    assert bit_states(model)[0].bits == 4 and model.training and not model[0].training
    scales = [p for name, p in model.named_parameters() if ".scales." in name]
    assert len(scales) == 2 * 2 * 4 and not any((scale == 1).any() for scale in scales)
    kept = [scale.detach().clone() for scale in scales]
    initialise(model, 10 * images)
    assert all(torch.equal(scale, value) for scale, value in zip(scales, kept, strict=True))


def test_idle_gradients_are_dropped_and_used_ones_kept():
    model = convert(tiny_model(), BITS)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    drop_idle_gradients(model, [4])
    gone = [name for name, parameter in model.named_parameters() if parameter.grad is None]
    assert len(gone) == 4 and all(".scales.8" in name or ".scales.2" in name for name in gone)
