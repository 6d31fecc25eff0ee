"""Loops that know nothing of quantizers but `convert` and `set_bits`: scales, copies, averages, views, exports."""

import copy
import io
import pickle

import pytest
import torch
import torch.nn.functional as F
from mbq_train import (
    add_bits,
    at_bits,
    build_model,
    convert,
    evaluate,
    export_store,
    get_bits,
    initialise,
    load_data,
    parameter_groups,
    scales,
    set_bits,
)
from mbq_train.quantize.quantizers import quantizers
from networks import one_thread, small_network  # noqa: F401
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import mbq_store

BITS = (8, 4, 2)
IMAGES = torch.randn(8, 1, 8, 8, generator=torch.Generator().manual_seed(3))


def converted(**options):
    return convert(small_network(), BITS, **options)


def step(model, optimizer, images=IMAGES):
    for bits in BITS:
        set_bits(model, bits)
        optimizer.zero_grad()
        model(images).square().mean().backward()
        optimizer.step()


def trained(**options):
    model = converted(**options)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
    for _ in range(2):
        step(model, optimizer)
    return model


def outputs(model, images=IMAGES):
    model.eval()
    found = []
    for bits in BITS:
        set_bits(model, bits)
        found.append(model(images).detach())
    return torch.stack(found)


# Scales

@pytest.mark.parametrize("quantizer", ["double-rounding", "learned"])
def test_plain_adamw_leaves_every_channel_alive(quantizer):
    data = load_data("digits")
    torch.manual_seed(0)
    model = build_model("resnet8", classes=data.classes, in_channels=data.in_channels, image_size=data.image_size)
    convert(model, (8, 2), quantizer=quantizer)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
    steps = 0
    while steps < 150:
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


@pytest.mark.parametrize("options", [{}, {"quantizer": "double-rounding"}, {"learn_offset": True}],
                         ids=["learned", "double-rounding", "offset"])
def test_a_scale_far_below_0_computes_with_its_floor_and_comes_back(options):
    model = trained(**options)
    before = [parameter.detach().clone() for parameter in scales(model)]
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
    assert len(moved) >= len(before) // 2 and all(scale.grad.isfinite().all() for scale in moved)
    assert sum(scale.grad.abs().sum() for scale in moved) > 0


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


# Copies

COPIES = {
    "deepcopy": copy.deepcopy,
    "pickle": lambda model: pickle.loads(pickle.dumps(model)),
    "torch.save": lambda model: torch.load(_saved(model), weights_only=False),
    "load_state_dict": lambda model: _filled(model, lambda fresh: fresh.load_state_dict(model.state_dict())),
    "assign": lambda model: _filled(model, lambda fresh: fresh.load_state_dict(model.state_dict(), assign=True)),
    "in place": lambda model: _filled(model, lambda fresh: _copy_into(fresh, model)),
    "average": lambda model: _averaged(model),
    "average with buffers": lambda model: _averaged(model, use_buffers=True),
    "exponential": lambda model: _averaged(model, multi_avg_fn=get_ema_multi_avg_fn(0.5)),
    "exponential with buffers": lambda model: _averaged(model, multi_avg_fn=get_ema_multi_avg_fn(0.5), use_buffers=True),
}
OPTIONS = {"learned": {}, "double-rounding": {"quantizer": "double-rounding"}, "offset": {"learn_offset": True},
           "round-clamp": {"quantizer": "round-clamp"}, "any-precision": {"quantizer": "any-precision"}}


def _saved(model):
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return file


def _filled(model, fill):
    fresh = converted(**model.options)
    fill(fresh)
    return fresh


@torch.no_grad()
def _copy_into(fresh, model):
    for name, value in fresh.state_dict().items():
        value.copy_(model.state_dict()[name])


def _averaged(model, **options):
    average = AveragedModel(model, **options)
    for _ in range(3):
        average.update_parameters(model)
    return average


@pytest.mark.filterwarnings("ignore:.*inputs are negative")
@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("kind", COPIES)
def test_a_copy_computes_like_the_original_and_keeps_its_values_in_training(kind, options):
    model = trained(**OPTIONS[options])
    model.options = OPTIONS[options]
    twin = COPIES[kind](model)
    assert torch.equal(outputs(twin), outputs(model))
    before = {name: parameter.detach().clone() for name, parameter in twin.named_parameters()}
    twin.train()
    for bits in BITS:
        set_bits(twin, bits)
        twin(IMAGES)
    assert all(torch.equal(parameter, before[name]) for name, parameter in twin.named_parameters())


def test_functional_call_reads_the_flags_it_is_given():
    model, fresh = trained(), converted()
    expected = outputs(model)
    state = dict(model.named_parameters()) | dict(model.named_buffers())
    for bits, value in zip(BITS, expected, strict=True):
        set_bits(fresh.eval(), bits)
        assert torch.equal(torch.func.functional_call(fresh, state, (IMAGES,)), value)
    with pytest.raises(RuntimeError, match=r"3: ActivationQuantizer must have seen .* convert\(\.\.\., example=batch\)"):
        fresh(IMAGES)


def test_an_ensemble_of_models_runs_under_vmap():
    models = [converted(example=IMAGES + k, batch_norm="shared").eval() for k in range(3)]
    parameters, buffers = torch.func.stack_module_state(models)
    base = copy.deepcopy(models[0])
    together = torch.vmap(lambda p, b: torch.func.functional_call(base, (p, b), (IMAGES,)))(parameters, buffers)
    torch.testing.assert_close(together, torch.stack([model(IMAGES) for model in models]))


@pytest.mark.parametrize("save", [False, True], ids=["itself", "saved and loaded"])
@pytest.mark.parametrize("decay", [None, 0.9], ids=["mean", "exponential"])
def test_an_average_that_began_before_the_first_values_is_refused(decay, save):
    model = converted()
    average = AveragedModel(model, multi_avg_fn=decay and get_ema_multi_avg_fn(decay))
    average.update_parameters(model)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
    for _ in range(3):
        step(model, optimizer)
        average.update_parameters(model)
    twin = average.module
    if save:
        twin = converted()
        twin.load_state_dict(average.module.state_dict())
    with pytest.raises(RuntimeError, match=r"3: .* example=batch\)"):
        twin.eval()(IMAGES)


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


def test_checkpoints_of_before_there_were_units_still_load():
    model = trained()
    old = {name: value for name, value in model.state_dict().items()
           if "scale_units" not in name and "scale_floors" not in name}
    for quantizer, module in ((q, name) for name, q in model.named_modules() if hasattr(q, "scale_units")):
        for b in quantizer.scales:
            old[f"{module}.scales.{b}"] = quantizer.scale(int(b))
        old[f"{module}.initialised"] = quantizer.initialised.bool()
        old[f"{module}.is_signed"] = quantizer.is_signed.bool()
    fresh = converted()
    fresh.load_state_dict(old)
    assert torch.equal(outputs(fresh), outputs(model))


# Bit-widths

def test_set_bits_is_a_context_manager_and_get_bits_tells():
    model = trained()
    set_bits(model, 4)
    with set_bits(model, 2):
        assert get_bits(model) == 2
        with set_bits(model, 32):
            assert get_bits(model) == 32
        assert get_bits(model) == 2
    assert get_bits(model) == 4
    with pytest.raises(ZeroDivisionError), set_bits(model, 8):
        1 / 0
    assert get_bits(model) == 4
    with pytest.raises(ValueError, match="get_bits: model must hold layers made by convert, got Sequential without"):
        get_bits(small_network())
    both = nn.ModuleList([model, trained()])
    with pytest.raises(ValueError, match="get_bits: model must be at one bit-width, got parts at 8, 4 bits"):
        set_bits(both[1], 8), get_bits(both)


def test_a_view_shares_parameters_and_owns_its_bit_width():
    model = trained()
    expected = dict(zip(BITS, outputs(model), strict=True))
    set_bits(model, 8)
    view = at_bits(model, 2)
    assert get_bits(model) == 8 and get_bits(view) == 2
    assert torch.equal(view(IMAGES), expected[2]) and torch.equal(model(IMAGES), expected[8])
    assert [id(p) for p in view.parameters()] == [id(p) for p in model.parameters()]
    assert [id(b) for b in view.buffers()] == [id(b) for b in model.buffers()]
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    view.train()(IMAGES).square().mean().backward()
    optimizer.step()
    assert torch.equal(at_bits(model, 2).eval()(IMAGES), view.eval()(IMAGES))
    model.double()
    assert view(IMAGES.double()).dtype == torch.float64
    with pytest.raises(ValueError, match="set_bits: bits must be one of 32, 8, 4, 2, got 3"):
        at_bits(model, 3)


def test_print_shows_bit_widths_and_not_every_parameter():
    text = repr(converted(example=IMAGES, learn_offset=True)[3])
    assert "WeightQuantizer(bits=8, 4, 2, signed, axis=0)" in text and text.count("\n") <= 4
    assert "ActivationQuantizer(bits=8, 4, 2, unsigned, per tensor, offset)" in text


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


def test_an_example_of_one_image_gives_first_values_and_keeps_statistics():
    model = convert(nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.BatchNorm1d(8), nn.Linear(8, 8), nn.ReLU(),
                                  nn.Linear(8, 2)), BITS, example=IMAGES[:1])
    assert all(not quantizer.missing for quantizer in quantizers(model)) and model.training
    assert all(norm.training and norm.num_batches_tracked == 0 for norm in model[2].by_bits.values())
