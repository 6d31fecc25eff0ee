"""What convert cannot convert: it says so and leaves it alone; and what is shared stays shared."""

import copy
import re

import pytest
import torch
from networks import one_thread, small_network  # noqa: F401
from torch import nn

from mbq_train import QuantLinear, convert, plan_conversion
from mbq_train.quantize.quantizer import quantizers


def actions(plan):
    return {entry.name: entry.action for entry in plan.entries}


def reasons(plan):
    return {entry.name: entry.why for entry in plan.entries}


class Subclass(nn.Linear):
    pass


def test_a_subclass_needs_a_rule_that_means_it():
    model = nn.Sequential(nn.Linear(3, 3), Subclass(3, 3), nn.Linear(3, 3), nn.Linear(3, 3))
    plan = plan_conversion(model, rules=[("*", "quantize")])
    assert reasons(plan)["1"] == "not converted: subclass of Linear, add a rule ('1', 'quantize')"
    for match in ("1", Subclass):
        plan = plan_conversion(copy.deepcopy(model), rules=[(match, "quantize")])
        assert type(plan.apply()[1]) is QuantLinear
    with pytest.raises(ValueError, match=r"must be one of 0, 1, 2, 3, got '\[1\]'"):
        plan_conversion(model, rules=[("[1]", "quantize")])


def with_hook(layer):
    layer.register_forward_hook(print)
    return layer


def with_own_forward(layer):
    layer.forward = lambda x: 2 * x
    return layer


def attention_holding(child):
    attention = nn.MultiheadAttention(4, 2)
    attention.adapter = child
    return attention


def attention_remembering():
    attention = nn.MultiheadAttention(4, 2)
    attention.register_buffer("seen", torch.zeros(1))
    return attention


def attention_with(change):
    attention = nn.MultiheadAttention(4, 2)
    attention.out_proj = change(attention.out_proj)
    return attention


@pytest.mark.parametrize("layer, why", [
    (with_hook(nn.Linear(4, 4)), "it has hooks (print)"),
    (with_own_forward(nn.Linear(4, 4)), "its forward is replaced on the object"),
    (nn.utils.parametrizations.weight_norm(nn.Linear(4, 4)), "weight is parametrized"),
    (nn.utils.parametrizations.spectral_norm(nn.Conv2d(4, 4, 1)), "weight is parametrized"),
    (nn.utils.spectral_norm(nn.Linear(4, 4)), "it has hooks (SpectralNorm"),
    (nn.utils.parametrizations.weight_norm(nn.MultiheadAttention(4, 2), "in_proj_weight"), "in_proj_weight is param"),
    (attention_with(with_hook), "it has hooks (print)"),
    (attention_with(nn.utils.parametrizations.spectral_norm), "weight is parametrized"),
    (attention_with(nn.Sequential), "it holds other modules than its projections: out_proj"),
    (attention_remembering(), "it holds parameters or buffers of its own: seen"),
    (attention_holding(nn.ReLU()), "it holds other modules than its projections: adapter"),
    (nn.Linear(4, 4, dtype=torch.complex64), "a weight is a Parameter of torch.complex64"),
    (with_hook(nn.BatchNorm1d(4)), "it has hooks (print)"),
], ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else value)
def test_obstacles_are_reported_and_the_layer_is_left_alone(layer, why):
    model = nn.Sequential(nn.Linear(4, 4), layer)
    plan = plan_conversion(model, keep_float=())
    assert actions(plan)["1"] == "float" and reasons(plan)["1"].startswith(f"not converted: {why}")
    with pytest.warns(RuntimeWarning, match=f"[0-9] in all: 1 .{type(layer).__name__}: {re.escape(why)}"):
        assert plan.apply()[1] is layer
    model = nn.Sequential(nn.Linear(4, 4), layer)
    with pytest.raises(ValueError, match="must name a layer that can be quantized, got '1'; 1: "):
        plan_conversion(model, rules=[("1", "quantize")])
    found = plan_conversion(model, keep_float=(), rules=[("1", "float")]).entries[1]
    assert found.action == "float" and not found.left and found.why.startswith("rule ('1', 'float')")


def test_old_weight_norm_is_reported():
    with pytest.warns(FutureWarning):
        layer = nn.utils.weight_norm(nn.Linear(4, 4))
    assert "it has hooks (WeightNorm)" in reasons(plan_conversion(nn.Sequential(layer)))["0"]


def test_shared_parameters_stay_shared():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.MultiheadAttention(4, 2), nn.MultiheadAttention(4, 2),
                          nn.BatchNorm1d(4), nn.BatchNorm1d(4), nn.MultiheadAttention(4, 2))
    model[1].weight = model[0].weight
    model[3].in_proj_weight = model[2].in_proj_weight
    model[5].weight = model[4].weight
    plan = plan_conversion(model, keep_float=())
    assert actions(plan) == {"0": "quantize", "1": "quantize", "2": "float", "3": "float", "4": "float", "5": "float",
                             "6": "quantize"}
    assert reasons(plan)["3"] == ("not converted: it shares a Parameter that would have to be copied; "
                                  "shares Parameters with 2")
    with pytest.warns(RuntimeWarning, match="stay in float, 2 in all: 2 .* bit-widths, 2 in all: 4 "):
        plan.apply()
    assert model[0].weight is model[1].weight and model[0].weight_quantizer is not model[1].weight_quantizer
    assert model[3].in_proj_weight is model[2].in_proj_weight and model[5].weight is model[4].weight


def test_an_attention_used_twice_stays_one():
    attention = nn.MultiheadAttention(4, 2)
    model = convert(nn.ModuleDict({"a": attention, "b": attention}), keep_float=())
    assert model["a"] is model["b"] is not attention and len(quantizers(model)) == 8


def compiled_in_place():
    model = small_network()
    model.compile()
    return model


@pytest.mark.parametrize("make, match", [
    (lambda: torch.compile(small_network()), "before torch.compile, got OptimizedModule$"),
    (lambda: nn.Sequential(torch.compile(small_network())), "before torch.compile, got OptimizedModule at 0"),
    (compiled_in_place, "before torch.compile, got Sequential"),
    (lambda: nn.DataParallel(small_network()), "before wrapping it .* got DataParallel"),
    (lambda: nn.Sequential(torch.jit.trace(nn.Linear(2, 2), torch.ones(1, 2))), "before torch.jit, got TopLevelTraced"),
    (lambda: nn.Sequential(nn.Linear(2, 2), nn.LazyLinear(2)), "have run one batch, .* got LazyLinear at 1"),
], ids=["compile", "compile inside", "compile in place", "data parallel", "jit", "lazy"])
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_wrapped_and_lazy_models_are_refused(make, match):
    with pytest.raises(ValueError, match=f"convert: model must .*{match}"):
        convert(make())
