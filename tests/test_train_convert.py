"""convert and set_bits."""

import copy

import pytest
import torch
from networks import one_thread, small_network  # noqa: F401
from torch import nn

from mbq_lab import build_model
from mbq_train import BitBatchNorm, Learned, QuantConv2d, QuantLinear, convert, parameter_groups, set_bits
from mbq_train.quantize.bits import bit_states
from mbq_train.quantize.quantizer import quantizers

BITS = (8, 4, 2)


@pytest.fixture
def images():
    return torch.randn(9, 1, 8, 8, generator=torch.Generator().manual_seed(1))


def train_once(model, images, bits=BITS):
    model.train()
    for b in bits:
        set_bits(model, b)
        model(images).square().mean().backward()
    return model


def outputs(model, images, bits=(32, *BITS)):
    model.eval()
    result = []
    for b in bits:
        set_bits(model, b)
        result.append(model(images).detach())
    return result


def test_first_and_last_stay_float_and_the_rest_is_converted():
    types = [type(layer) for layer in convert(small_network())]
    assert types == [nn.Conv2d, BitBatchNorm, nn.ReLU, QuantConv2d, BitBatchNorm, nn.ReLU, nn.Flatten, QuantLinear,
                     nn.ReLU, nn.Linear]


def test_keep_float_takes_names_and_may_be_empty():
    assert type(convert(small_network(), keep_float=("3",))[3]) is nn.Conv2d
    everything = convert(small_network(), keep_float=())
    assert type(everything[0]) is QuantConv2d and type(everything[9]) is QuantLinear


def test_parameters_stay_the_same_objects():
    model = small_network()
    before = dict(model.named_parameters())
    convert(model)
    after = {id(parameter) for parameter in model.parameters()}
    assert len(before) == 12 and all(id(parameter) in after for parameter in before.values())


def test_float_path_is_the_float_network(images):
    model = small_network().eval()
    expected = model(images)
    converted = convert(copy.deepcopy(model))
    set_bits(converted, 32)
    assert torch.equal(converted(images), expected) and not converted[3].training


def test_bit_widths_differ_and_lower_ones_are_further_from_float(images):
    model = convert(small_network(), batch_norm="shared", keep_float=("first", "last"))
    exact, *rounded = outputs(train_once(model, images), images)
    errors = [(out - exact).norm().item() for out in rounded]
    assert 0 < errors[0] < errors[1] < errors[2]


def test_optimizer_built_after_convert_moves_every_scale(images):
    model = convert(small_network(), activations=Learned(offset=True))
    optimizer = torch.optim.SGD(parameter_groups(model, 0.1), lr=0.01)
    train_once(model, images)
    scales = {name: p.detach().clone() for name, p in model.named_parameters() if ".scales." in name}
    optimizer.step()
    after = dict(model.named_parameters())
    assert len(scales) == 2 * 2 * len(BITS)
    assert all((after[name] != value).any() for name, value in scales.items())


def test_scales_and_offsets_have_no_weight_decay():
    model = convert(small_network(), activations=Learned(offset=True))
    decayed, learned = parameter_groups(model, 0.1)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    assert (decayed["weight_decay"], learned["weight_decay"]) == (0.1, 0.0)
    assert all(".scales." in names[id(p)] or ".offsets." in names[id(p)] for p in learned["params"])
    assert len(learned["params"]) == 18 and len(decayed["params"]) + 18 == len(names)


def test_a_layer_used_twice_is_one_quantized_layer(images):
    shared = nn.Linear(5, 5)
    model = convert(nn.Sequential(shared, nn.ReLU(), shared), keep_float=())
    assert type(model[0]) is QuantLinear and model[0] is model[2] and len(quantizers(model)) == 2


def test_deepcopy_has_one_bit_state_of_its_own(images):
    model = train_once(convert(small_network()), images)
    twin = copy.deepcopy(model)
    assert len(bit_states(model)) == len(bit_states(twin)) == 1
    set_bits(twin, 4)
    set_bits(model, 8)
    assert {module.bit_state.bits for module in twin.modules() if hasattr(module, "bit_state")} == {4}
    assert all(torch.equal(a, b) for a, b in zip(outputs(model, images), outputs(twin, images), strict=True))


def test_compiled_model_gives_the_same_outputs(images):
    model = train_once(convert(small_network(), batch_norm="shared"), images)
    expected = outputs(model, images)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    for bits, out in zip((32, *BITS), expected, strict=True):
        set_bits(model, bits)
        torch.testing.assert_close(compiled(images), out)


def test_resnet8_converts_all_but_its_ends():
    model = convert(build_model("resnet8", classes=10, in_channels=1, image_size=(8, 8)))
    converted = [name for name, layer in model.named_modules() if isinstance(layer, (QuantConv2d, QuantLinear))]
    assert len(converted) == 8 and type(model.conv) is nn.Conv2d and type(model.linear) is nn.Linear


@pytest.mark.parametrize("bits, error, match", [
    ((4, 8), ValueError, r"convert: bits must go from high to low without repeats, got \(4, 8\)"),
    ((8, 8, 2), ValueError, "convert: bits must go from high to low without repeats"),
    ((), ValueError, "convert: bits must go from high to low"),
    ((32, 8), ValueError, "convert: bits must be between 1 and 8, got 32"),
    ((8, 0), ValueError, "convert: bits must be between 1 and 8, got 0"),
    ((8, 4.0), TypeError, "convert: bits must be integers, got 4.0"),
    (8, TypeError, "convert: bits must be a sequence of integers, got 8"),
    ("84", TypeError, "convert: bits must be a sequence of integers, got '84'"),
])
def test_convert_refuses_bits(bits, error, match):
    with pytest.raises(error, match=match):
        convert(small_network(), bits)


@pytest.mark.parametrize("options, error, match", [
    ({"batch_norm": "per-bit"}, ValueError,
     r"batch_norm must be one of per_bit, shared, transitional, got 'per-bit' \(did you mean"),
    ({"keep_float": ("33",)}, ValueError, r"must be one of 0, 3, 7, 9, first, last, got '33' \(did you mean '3'\?\)"),
    ({"keep_float": "first"}, TypeError, "keep_float must be a sequence of layer names, got 'first'"),
    ({"keep_float": None}, TypeError, "keep_float must be a sequence of layer names, got None"),
    ({"keep_float": [["3"]]}, ValueError, r"keep_float must be one of .*, got \['3'\]"),
    ({"batch_norm": ["shared"]}, ValueError,
     r"batch_norm must be one of per_bit, shared, transitional, got \['shared'\]"),
    ({"keep_float": ("0", "3", "7", "9")}, ValueError,
     "convert: model must hold a Linear, Conv1d, .* to quantize, got Sequential with 0 .Conv2d.: keep_float; 1 .Batch"),
    ({"rules": "head"}, TypeError, r"rules must be a sequence of \(match, action\) pairs, got 'head'"),
    ({"rules": {"3": "float"}}, TypeError, r"rules must be a sequence of \(match, action\) pairs"),
    ({"rules": ["3"]}, TypeError, r"rules must hold \(match, action\) pairs, got '3'"),
    ({"rules": [(3, "float")]}, TypeError, "match of a rule must be a name, a pattern or an nn.Module type, got 3"),
    ({"rules": [("3", "flaot")]}, ValueError, r"must be one of float, quantize, got 'flaot' \(did you mean 'float'"),
    ({"rules": [("3", None)]}, TypeError, "action of a rule must be 'float', 'quantize' or a dict, got None"),
    ({"rules": [("3", {"sigend": True})]}, ValueError,
     "action of a rule must be one of activations, weights, got 'sigend'"),
    ({"rules": [("3", {"activations": False})]}, TypeError, "activations must be a spec such as .*, got False"),
    ({"rules": [("33", "float")]}, ValueError, r"match of a rule must be one of 0, 3, 7, 9, got '33' \(did you mean"),
    ({"rules": [("1", "quantize")]}, ValueError, "must name a layer that can be quantized, got '1'; 1: a BatchNorm, "),
    ({"rules": [(nn.Conv1d, "float")]}, ValueError, r"got 'Conv1d' \(did you mean 'Conv2d'\?\)"),
    ({"example": [1]}, TypeError, "example must be a tensor, a tuple of arguments or a dict of keyword arguments"),
    ({"example": torch.zeros(1, 2, 8, 8)}, ValueError, "example must be what Sequential can be called with, .*chan"),
])
def test_convert_refuses_options_and_leaves_the_model_alone(options, error, match):
    model = small_network()
    before = list(model)
    with pytest.raises(error, match=match):
        convert(model, **options)
    assert list(model) == before


def test_convert_refuses_nothing_to_convert_and_a_second_time():
    with pytest.raises(ValueError, match="must hold a Linear, .* to quantize, got ReLU without parameters"):
        convert(nn.ReLU())
    with pytest.raises(ValueError, match="must hold the layers to quantize below itself, got a bare Linear; put it in"):
        convert(nn.Linear(2, 2))
    with pytest.raises(TypeError, match="convert: model must be an nn.Module, got type"):
        convert(nn.Linear)
    with pytest.raises(ValueError, match="convert: model must not be converted already, got Sequential"):
        convert(convert(small_network()), keep_float=())


def test_set_bits_refuses_unknown_bits_and_float_networks():
    model = convert(small_network())
    with pytest.raises(ValueError, match="set_bits: bits must be one of 32, 8, 4, 2, got 3"):
        set_bits(model, 3)
    with pytest.raises(TypeError, match="set_bits: bits must be an integer, got 4.0"):
        set_bits(model, 4.0)
    with pytest.raises(ValueError, match="set_bits: model must hold layers made by convert, got Sequential"):
        set_bits(small_network(), 8)
    assert bit_states(model)[0].bits == 8
