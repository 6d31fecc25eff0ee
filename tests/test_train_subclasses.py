"""Subclasses: those that compute what a supported layer does are converted like it, the others are left and named."""

import copy
import re
import warnings

import pytest
import torch
import torch.nn.functional as F
from foreign import package
from networks import one_thread  # noqa: F401
from subclassed_layers import (
    Adapted,
    AdaptedByLayers,
    ByHand,
    Caller,
    CallsTwice,
    Chain,
    Frozen,
    Masked,
    Named,
    Noisy,
    PlainAttention,
    PlainConv,
    Same,
    Scaled,
    SelfAttention,
    Standardised,
    StandardisedWithin,
    SuperCall,
    TwoScales,
    WithScale,
    entries,
)
from torch import nn

from mbq_train import QuantConv2d, QuantLinear, QuantMultiheadAttention, convert, plan_conversion, set_bits


@pytest.mark.parametrize("layer, becomes, images", [
    (Named(4, 4), QuantLinear, False), (SuperCall(4, 4), QuantLinear, False), (ByHand(4, 4), QuantLinear, False),
    (SuperCall(4, 4).bfloat16().float(), QuantLinear, False), (PlainConv(4, 4, 3, padding=1), QuantConv2d, True),
    (SelfAttention(PlainAttention), QuantMultiheadAttention, False),
], ids=["inherits", "calls super", "other order", "frozen values", "own convolution", "attention"])
def test_a_subclass_that_computes_the_same_is_quantized_without_a_rule(layer, becomes, images):
    model = Chain(layer, images=images)
    expected, state = model(model.example), copy.deepcopy(model.state_dict())
    plan = plan_conversion(model, example=model.example)
    name = "layers.mid.attention" if isinstance(layer, SelfAttention) else "layers.mid"
    base = becomes.__name__.removeprefix("Quant")
    assert entries(plan)[name].why == f"supported: it computes what {base} does on the example"
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        plan.apply()
    assert type(model.get_submodule(name)) is becomes
    set_bits(model, 32)
    torch.testing.assert_close(model(model.example), expected)


def test_half_floats_are_compared_in_float32():
    model = Chain(ByHand(4, 4)).bfloat16()
    assert entries(plan_conversion(model, example=model.example.bfloat16()))["layers.mid"].action == "quantize"


DIFFERENT = {
    "standardised": (Standardised(4, 4, 3), r"its output on the example differs by [0-9.]+ of [0-9.]+$"),
    "standardised below forward": (StandardisedWithin(4, 4, 3), r"its output on the example differs by"),
    "other padding": (Same(4, 4, 3), r"its output on the example has shape \(2, 4, 6, 6\) for \(2, 4, 5, 5\)"),
    "adapter": (Adapted(4, 4), r"its gradients|once its parameters change"),
    "adapter of layers": (AdaptedByLayers(4, 4), r"its gradients|once its parameters change"),
    "mask": (Masked(4, 4), "its output on the example differs by .* once its parameters change"),
    "noise": (Noisy(4, 4), "its output on the example differs by .* in training mode"),
    "gradient": (Frozen(4, 4), "its gradients on the example differ by .* in training mode"),
    "arguments": (Caller(WithScale(4, 4)), r"called as Linear cannot be \(TypeError: Linear.forward\(\) got an unexp"),
    "attention": (SelfAttention(TwoScales), "its output on the example differs by"),
}


@pytest.mark.parametrize("layer, why", DIFFERENT.values(), ids=DIFFERENT)
def test_a_subclass_that_computes_something_else_is_left_named_and_refused(layer, why):
    model = Chain(copy.deepcopy(layer), images=isinstance(layer, nn.Conv2d))
    plan = plan_conversion(model, example=model.example, rules=[("*", "quantize"), (nn.Module, "quantize")])
    name = next(entry.name for entry in plan.entries if entry.left)
    subclass, entry = model.get_submodule(name), entries(plan)[name]
    base = type(subclass).__mro__[1].__name__
    assert entry.action == "float" and re.search(f"^not converted: subclass of {base}, .*({why})", entry.why)
    for match in (name, type(subclass)):
        with pytest.raises(ValueError, match=rf"must name a layer that can be quantized, got '.*'; {name}: .*({why})"):
            plan_conversion(model, example=model.example, rules=[(match, "quantize")])
    with pytest.warns(RuntimeWarning, match=rf"stay in float, 1 in all: {name} \({type(subclass).__name__}: subcl"):
        plan.apply()
    assert model.get_submodule(name) is subclass


@pytest.mark.parametrize("layer", [Standardised(4, 4, 3), StandardisedWithin(4, 4, 3), SuperCall(4, 4)],
                         ids=lambda layer: type(layer).__name__)
def test_without_an_example_no_rule_changes_what_a_layer_computes(layer):
    model = Chain(layer, images=isinstance(layer, nn.Conv2d))
    assert "with a forward of its own, give an example to compare" in entries(plan_conversion(model))["layers.mid"].why
    with pytest.raises(ValueError, match="got 'layers.mid'; layers.mid: subclass of .* give an example to compare"):
        plan_conversion(model, rules=[("layers.mid", "quantize")])
    assert not plan_conversion(model, rules=[("layers.mid", "float")]).entries[1].left


def test_a_subclass_whose_weight_is_no_parameter_is_left():
    model = Chain(nn.Linear(4, 4))
    model.layers["mid"].__class__ = Scaled
    for example in (None, model.example):
        assert entries(plan_conversion(model, example=example))["layers.mid"].why.startswith("not converted: ")


def test_every_shape_of_input_is_compared():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.same, self.last = nn.Conv2d(1, 4, 1), SameWhereOdd(4, 4, 2, stride=2), nn.Conv2d(4, 1, 1)

        def forward(self, x):
            return self.last(self.same(self.same(self.first(x))))

    class SameWhereOdd(nn.Conv2d):
        def forward(self, x):
            return super().forward(F.pad(x, (0, x.shape[3] % 2, 0, x.shape[2] % 2)))

    assert "shape (1, 4, 2, 2) for (1, 4, 1, 1)" in entries(plan_conversion(Twice(), example=torch.randn(1, 1, 6, 6)))[
        "same"].why


def test_one_warning_counts_and_names_what_nobody_asked_for():
    layers = [nn.Linear(4, 4) for _ in range(9)]
    for layer in layers[2:7]:
        layer.register_forward_hook(lambda *_: None)
    layers[0].register_forward_hook(lambda *_: None)
    model = nn.Sequential(*layers, nn.InstanceNorm1d(4, track_running_stats=True), nn.LayerNorm(4))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        plan = plan_conversion(model, rules=[("5", "float"), ("8", "float")])
        assert not caught
        plan.apply()
    assert len(caught) == 1
    text = str(caught[0].message)
    assert re.match(r"convert: layers of supported types stay in float, 4 in all: 2 \(Linear: it has hooks .*\), "
                    r"3 \(.*\), 4 \(.*\) and 1 more; norms with running statistics are shared by all bit-widths, "
                    r"1 in all: 9 \(", text)


def test_timm_layers_with_another_padding_are_named():
    timm = package("timm")
    model = timm.create_model("tf_mobilenetv3_small_minimal_100", num_classes=4)
    own = {name for name, module in model.named_modules() if type(module).__name__ == "Conv2dSame"}
    plan = plan_conversion(model, (8, 2), example=torch.randn(2, 3, 64, 64))
    assert {entry.name for entry in plan.entries if entry.left} == own - {"conv_stem"} and len(own) > 2
    with pytest.warns(RuntimeWarning, match=rf"stay in float, {len(own) - 1} in all: blocks.* and {len(own) - 4} more"):
        plan.apply()


def with_another_gain(layer, x):
    layer.gain = 3.0
    return layer(x)


@pytest.mark.parametrize("call", [with_another_gain, lambda layer, x: layer(x, factor=2.0)], ids=["state", "keyword"])
def test_every_call_of_a_subclass_is_compared(call):
    model, x = CallsTwice(call), torch.randn(8, 6)
    expected = model(x)
    with pytest.warns(RuntimeWarning, match="b .Gain"):
        with pytest.raises(ValueError, match="must hold"):
            convert(model, (8, 2), example=x)
        convert(model, (8, 2), example=x, keep_float=("last",))
    set_bits(model, 32)
    torch.testing.assert_close(model(x), expected)
