"""Subclasses: those that compute what a supported layer does are converted like it, the others are left and named."""

import copy
import re
import warnings

import pytest
import torch
import torch.nn.functional as F
from foreign import package
from networks import NormAct, one_thread  # noqa: F401
from torch import nn

from mbq_train import (
    BitBatchNorm,
    QuantConv2d,
    QuantLinear,
    QuantMultiheadAttention,
    adapt_bn,
    add_bits,
    convert,
    plan_conversion,
    set_bits,
)


def entries(plan):
    return {entry.name: entry for entry in plan.entries}


class Named(nn.Linear):
    pass


class SuperCall(nn.Linear):
    def forward(self, x):
        return super().forward(x)


class ByHand(nn.Linear):
    """Sums in another order."""

    def forward(self, x):
        return (x.unsqueeze(-2) * self.weight).sum(-1) + self.bias


class PlainConv(nn.Conv2d):
    def forward(self, x):
        return F.conv2d(x, self.weight, self.bias, self.stride, self.padding, self.dilation, self.groups)


class PlainAttention(nn.MultiheadAttention):
    def forward(self, query, key, value, **options):
        return super().forward(query, key, value, **options)


class SelfAttention(nn.Module):
    def __init__(self, kind):
        super().__init__()
        self.attention = kind(4, 2)

    def forward(self, x):
        return self.attention(x, x, x, need_weights=True)[0]


class Chain(nn.Module):
    """Two ends that stay in float and `mid` between them; example: what it takes."""

    def __init__(self, mid, *, images=False):
        super().__init__()
        first, last = (nn.Conv2d(2, 4, 3), nn.Conv2d(4, 2, 1)) if images else (nn.Linear(4, 4), nn.Linear(4, 4))
        self.layers = nn.ModuleDict({"first": first, "mid": mid, "last": last})
        self.example = torch.randn(2, 2, 9, 9) if images else torch.randn(3, 4)

    def forward(self, x):
        for layer in self.layers.values():
            x = layer(x)
        return x


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


class Standardised(nn.Conv2d):
    def forward(self, x):
        weight = self.weight - self.weight.mean(dim=(1, 2, 3), keepdim=True)
        return self._conv_forward(x, weight / weight.std(dim=(1, 2, 3), keepdim=True), self.bias)


class StandardisedWithin(nn.Conv2d):
    """Below forward, which is the base's."""

    def _conv_forward(self, x, weight, bias):
        return super()._conv_forward(x, weight - weight.mean(), bias)


class Same(nn.Conv2d):
    """Pads as TensorFlow does."""

    def forward(self, x):
        return super().forward(F.pad(x, (0, 1, 0, 1)))


class Adapted(nn.Linear):
    """Low-rank adaptation: nothing at first, since `up` starts at 0."""

    def __init__(self, *sizes):
        super().__init__(*sizes)
        self.down, self.up = nn.Parameter(torch.randn(2, 4)), nn.Parameter(torch.zeros(4, 2))

    def forward(self, x):
        return super().forward(x) + x @ self.down.T @ self.up.T


class AdaptedByLayers(nn.Linear):
    def __init__(self, *sizes):
        super().__init__(*sizes)
        self.down, self.up = nn.Linear(4, 2, bias=False), nn.Linear(2, 4, bias=False)
        nn.init.zeros_(self.up.weight)

    def forward(self, x):
        return super().forward(x) + self.up(self.down(x))


class Masked(nn.Linear):
    def __init__(self, *sizes):
        super().__init__(*sizes)
        self.register_buffer("mask", torch.ones(4, 4, dtype=torch.bool))

    def forward(self, x):
        return F.linear(x, self.weight * self.mask, self.bias)


class Noisy(nn.Linear):
    def forward(self, x):
        return super().forward(F.dropout(x, 0.5, self.training))


class Frozen(nn.Linear):
    """Another gradient: none in the weight."""

    def forward(self, x):
        return F.linear(x, self.weight.detach(), self.bias)


class Scaled(nn.Linear):
    @property
    def weight(self):
        return self._parameters["weight"] * 2


class WithScale(nn.Linear):
    def forward(self, x, scale=1.0):
        return super().forward(x) * scale


class Caller(nn.Module):
    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, x):
        return self.layer(x, scale=1.0)


class TwoScales(nn.MultiheadAttention):
    def forward(self, query, key, value, **options):
        out, weights = super().forward(query, key, value, **options)
        return out * 1.5, weights


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


def test_shared_norms_by_choice_are_no_warning():
    model = nn.Sequential(nn.Linear(4, 4), nn.InstanceNorm1d(4, track_running_stats=True), nn.Linear(4, 4))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        convert(copy.deepcopy(model), keep_float=(), batch_norm="shared")
        convert(model, keep_float=(), rules=[("1", "float")])


class SplitNorm(nn.BatchNorm2d):
    """A BatchNorm in a BatchNorm, for half of the batch."""

    def __init__(self, channels):
        super().__init__(channels)
        self.other = nn.BatchNorm2d(channels)

    def forward(self, x):
        return torch.cat([super().forward(x[::2]), self.other(x[1::2])])


class Direct(nn.modules.batchnorm._BatchNorm):
    def _check_input_dim(self, x):
        pass


class SyncAct(nn.SyncBatchNorm):
    def forward(self, x):
        return super().forward(x).relu()


NORMS = [NormAct, SplitNorm, Direct, SyncAct]


def norm_network(norm):
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 4, 3), norm(4), nn.Conv2d(4, 4, 1), nn.Flatten(), nn.Linear(144, 2))


@pytest.mark.parametrize("norm", NORMS)
def test_every_kind_of_batch_norm_gets_one_for_each_bit_width(norm):
    x, model = torch.randn(4, 1, 8, 8), norm_network(norm)
    model.eval()
    expected = model(x)
    convert(model, (8, 2), example=x)
    assert type(model[1]) is BitBatchNorm and {type(one) for one in model[1].by_bits.values()} == {norm}
    set_bits(model, 32)
    assert torch.equal(model(x), expected)
    set_bits(model.train(), 2)
    model(x)
    means = {b: [value for name, value in one.named_buffers() if "running_mean" in name]
             for b, one in model[1].by_bits.items()}
    assert all(value.any() for value in means["2"]) and not any(value.any() for b in ("8", "32") for value in means[b])
    adapted, before = copy.deepcopy(model), copy.deepcopy(model.state_dict())
    set_bits(adapted, 8)
    adapted(x)
    adapt_bn(adapted, 2, [x, x + 1])
    changed = {name for name, value in adapted.state_dict().items()
               if name.startswith("1.") and "running" in name and not torch.equal(value, before[name])}
    assert {name.split(".")[2] for name in changed} == {"2", "8"}
    wider = add_bits(adapted, (4,), [x])
    assert all(value.any() for name, value in wider[1].by_bits["4"].named_buffers() if "running_mean" in name)
    assert all(torch.equal(value, adapted.state_dict()[name]) for name, value in wider.state_dict().items()
               if name.startswith(("1.by_bits.8", "1.by_bits.2")))


@pytest.mark.parametrize("rule, kept", [
    (("1", "float"), ["1"]), (("[1]", "float"), ["1"]), ((NormAct, "float"), ["1"]),
    ((nn.BatchNorm2d, "float"), ["1", "4"]), (("*", "float"), []),
], ids=str)
def test_a_rule_may_keep_a_batch_norm_shared(rule, kept):
    model = nn.Sequential(nn.Conv2d(1, 4, 3), NormAct(4), nn.Conv2d(4, 4, 3), nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4),
                          nn.Conv2d(4, 4, 3))
    found = entries(plan_conversion(model, rules=[rule]))
    assert {name for name in ("1", "4") if found[name].action == "float"} == set(kept)
    assert not any(found[name].left for name in kept)


def test_attributes_of_the_batch_norm_in_use_are_within_reach():
    model = convert(norm_network(NormAct), (8, 2))
    set_bits(model, 2)
    norm = model[1]
    assert norm.num_features == 4 and norm.act is norm.by_bits["2"].act and norm.weight is norm.by_bits["2"].weight
    assert not hasattr(norm, "nothing") and copy.deepcopy(norm).eps == norm.eps
    text = repr(norm)
    assert "bits=2, one each for 8, 2, 32" in text and text.count("PReLU") == 1


def test_timm_norms_with_activations_become_per_bit():
    timm = package("timm")
    x = torch.randn(2, 3, 32, 32)
    model = timm.create_model("mobilenetv3_small_050", num_classes=4).eval()
    expected = model(x)
    plan = plan_conversion(model, (8, 2), example=x)
    actions = [entry.action for entry in plan.entries]
    assert actions.count("per_bit") == 34 and not any(entry.left for entry in plan.entries)
    plan.apply()
    set_bits(model, 32)
    assert torch.equal(model(x), expected)


def test_timm_layers_with_another_padding_are_named():
    timm = package("timm")
    model = timm.create_model("tf_mobilenetv3_small_minimal_100", num_classes=4)
    own = {name for name, module in model.named_modules() if type(module).__name__ == "Conv2dSame"}
    plan = plan_conversion(model, (8, 2), example=torch.randn(2, 3, 64, 64))
    assert {entry.name for entry in plan.entries if entry.left} == own - {"conv_stem"} and len(own) > 2
    with pytest.warns(RuntimeWarning, match=rf"stay in float, {len(own) - 1} in all: blocks.* and {len(own) - 4} more"):
        plan.apply()


class Gain(nn.Linear):
    """Computes what Linear does while its gain is 1."""

    gain = 1.0

    def forward(self, x, factor=1.0):
        return super().forward(x) * self.gain * factor


class CallsTwice(nn.Module):
    def __init__(self, call):
        super().__init__()
        self.call, self.a, self.b, self.c = call, nn.Linear(6, 16), Gain(16, 16), nn.Linear(16, 3)

    def forward(self, x):
        self.b.gain = 1.0
        return self.c(self.call(self.b, self.b(self.a(x))))


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
