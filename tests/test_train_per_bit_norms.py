"""BatchNorms of every kind, and what inherits from them, become one for every bit-width."""

import copy
import warnings

import pytest
import torch
from foreign import package
from networks import NormAct, one_thread  # noqa: F401
from subclassed_layers import Direct, SplitNorm, SyncAct, entries
from torch import nn

from mbq_train import BitBatchNorm, adapt_bn, add_bits, convert, plan_conversion, set_bits


def test_shared_norms_by_choice_are_no_warning():
    model = nn.Sequential(nn.Linear(4, 4), nn.InstanceNorm1d(4, track_running_stats=True), nn.Linear(4, 4))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        convert(copy.deepcopy(model), keep_float=(), batch_norm="shared")
        convert(model, keep_float=(), rules=[("1", "float")])


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
