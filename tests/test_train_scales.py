"""Scales in a loop that knows nothing of them: steps, floors, weight decay, first values."""

import pytest
import torch
import torch.nn.functional as F
from networks import one_thread, small_network, specs  # noqa: F401
from own_loop import BITS, IMAGES, converted, outputs, trained
from torch import nn

import mbq_store
from mbq_lab import build_model, evaluate, load_data
from mbq_train import Learned, add_bits, convert, export_store, initialise, parameter_groups, scales, set_bits
from mbq_train.quantize.quantizer import quantizers


@pytest.mark.parametrize("quantizer", ["double-rounding", "learned"])
def test_plain_adamw_leaves_every_channel_alive(quantizer):
    data = load_data("digits")
    torch.manual_seed(0)
    model = build_model("resnet8", classes=data.classes, in_channels=data.in_channels, image_size=data.image_size)
    convert(model, (8, 2), **specs(quantizer=quantizer))
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
    steps = 0
    while steps < 100:
        for batch in data.train_batches(32, seed=0, epoch=steps):
            for bits in (8, 2):
                set_bits(model, bits)
                optimizer.zero_grad()
                F.cross_entropy(model(batch.images), batch.labels).backward()
                optimizer.step()
            steps += 1
    every = [(quantizer.scale(int(b)), quantizer.scale_floors[b]) for quantizer in quantizers(model)
             for b in quantizer.scales]
    on_floor = sum(int((scale == floor).sum()) for scale, floor in every)
    assert on_floor <= 0.01 * sum(scale.numel() for scale, _ in every)
    for layer in (layer for layer in model.modules() if hasattr(layer, "weight_quantizer")):
        weight = layer.weight_quantizer(layer.weight)
        assert (weight.flatten(1).abs().amax(dim=1) > 0).all()
    assert min(evaluate(model, data, bits) for bits in (8, 2)) > 0.9


@pytest.mark.parametrize("options", [{}, {"quantizer": "double-rounding"}, {"activations": Learned(offset=True)}],
                         ids=["learned", "double-rounding", "offset"])
def test_a_scale_far_below_0_computes_with_its_floor_and_gets_a_gradient(options):
    model = trained(**options)
    with torch.no_grad():
        for quantizer in quantizers(model):
            for scale in quantizer.scales.values():
                scale.fill_(-0.5)
    for quantizer in quantizers(model):
        for b in quantizer.scales:
            assert torch.equal(quantizer.scale(int(b)), quantizer.scale_floors[b])
    for bits in BITS:
        set_bits(model, bits)
        model(IMAGES).square().sum().backward()
    moved = [scale for quantizer in quantizers(model) for scale in quantizer.scales.values() if scale.grad is not None]
    assert moved and all(scale.grad.isfinite().all() and scale.grad.any() for scale in moved)


@pytest.mark.parametrize("quantizer", ["learned", "double-rounding"])
def test_sgd_moves_a_scale_as_it_would_a_parameter_that_is_the_scale(quantizer):
    model = converted(example=IMAGES, quantizer=quantizer)
    layer, seen = model[3].weight_quantizer, {}
    set_bits(model, 4)
    kernel = layer.kernel

    def watch(x, scale, *args, **options):
        options.pop("scale_unit", None)
        seen["scale"] = layer.scale(4).requires_grad_()
        return kernel(x, seen["scale"], *args, **options)

    layer.kernel = watch
    model(IMAGES).square().mean().backward()
    expected = seen["scale"].detach() - 0.1 * seen["scale"].grad
    layer.kernel = kernel
    model.zero_grad()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    model(IMAGES).square().mean().backward()
    optimizer.step()
    torch.testing.assert_close(layer.scale(4), expected, rtol=1e-5, atol=0)


def test_scales_are_named_and_get_no_weight_decay():
    model = converted(learn_offset=True)
    own = {name for name, parameter in model.named_parameters() if ".scales." in name or ".offsets." in name}
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    assert {names[id(parameter)] for parameter in scales(model)} == own and scales(small_network()) == []


def test_biases_and_norms_get_no_weight_decay_where_weights_are_rounded_twice():
    for quantizer, exempt in (("learned", 0), ("double-rounding", 2 * 2 * 4 + 4)):
        model = converted(quantizer=quantizer)
        groups = parameter_groups(model, 0.1)
        names = {id(parameter): name for name, parameter in model.named_parameters()}
        plain = [names[id(p)] for group in groups[:-1] if group["weight_decay"] == 0 for p in group["params"]]
        assert len(plain) == exempt and all("by_bits" in name or name.endswith(".bias") for name in plain)
        assert sum(len(group["params"]) for group in groups) == len(names)


def test_scales_without_first_values_look_like_none():
    model = converted()
    assert all(parameter.isnan().all() for quantizer in quantizers(model) for parameter in quantizer.scales.values())
    with pytest.raises(RuntimeError, match=r"example=batch"):
        model.eval()(IMAGES)
    assert outputs(converted(example=IMAGES)).isfinite().all()


def test_an_example_gives_the_first_values_that_a_first_batch_gives():
    model = converted()
    initialise(model, IMAGES)
    for example in (IMAGES, (IMAGES,), {"input": IMAGES}):
        assert torch.equal(outputs(converted(example=example)), outputs(model))


def test_an_example_of_one_image_gives_first_values_and_keeps_statistics():
    model = convert(nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.BatchNorm1d(8), nn.Linear(8, 8), nn.ReLU(),
                                  nn.Linear(8, 2)), BITS, example=IMAGES[:1])
    assert all(not quantizer.missing for quantizer in quantizers(model)) and model.training
    assert all(norm.training and norm.num_batches_tracked == 0 for norm in model[2].by_bits.values())


def test_added_bit_widths_and_exports_use_the_scale_of_the_kernel(tmp_path):
    model = trained(quantizer="double-rounding")
    with torch.no_grad():
        model[3].weight_quantizer.scales["8"][0] = -1.0  # computes with its floor
    wider = add_bits(model, (3,), [IMAGES])
    export_store(wider, tmp_path / "store")
    store = mbq_store.open(tmp_path / "store")
    for bits in (8, 4, 3, 2):
        set_bits(wider.eval(), bits)
        assert (torch.as_tensor(store.dequantize("3", bits)) == wider[3].quantized_weight()).all()
