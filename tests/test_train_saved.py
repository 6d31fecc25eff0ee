"""What quantized layers save for backward: the tensors that they quantize, without the quantized ones."""

import pytest
import torch
from networks import one_thread  # noqa: F401
from torch import nn

from mbq_train import (
    AnyPrecision,
    DoubleRounding,
    Float,
    Learned,
    RoundClamp,
    convert,
    recompute_quantized,
    set_bits,
)

WEIGHTS = [Learned(), Learned(correction=True), DoubleRounding(), DoubleRounding(correction=True), RoundClamp(),
           RoundClamp(normalise="tanh"), AnyPrecision()]


def converted(**specs):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(4, 8, 3, groups=2, bias=False), nn.ReLU(), nn.Flatten(2), nn.Conv1d(8, 8, 3),
                          nn.Tanh(), nn.Linear(34, 6))
    x = torch.rand(2, 4, 8, 8)
    return convert(model, (4, 2), example=x, keep_float=(), **specs), x


def gradients(model, x, recompute):
    """Gradients at 4 bits, of a backward at 2 bits."""
    recompute_quantized(model, recompute)
    model.zero_grad()
    x = x.clone().requires_grad_()
    set_bits(model, 4)
    y = model(x * 1)
    set_bits(model, 2)
    y.square().sum().backward()
    return [x.grad, *(parameter.grad for parameter in model.parameters() if parameter.grad is not None)]


@pytest.mark.parametrize("activations", [None, Float()], ids=["quantized inputs", "float inputs"])
@pytest.mark.parametrize("weights", WEIGHTS, ids=repr)
def test_gradients_are_bit_for_bit_those_of_kept_tensors(weights, activations):
    model, x = converted(weights=weights, activations=activations)
    kept, again = (gradients(model, x, recompute) for recompute in (False, True))
    assert len(kept) == len(again) >= 6 and all(map(torch.equal, kept, again))


def quantized_held(layer, x, recompute):
    """The quantized input and weight that live on after the forward of `layer`, as (input, weight)."""
    recompute_quantized(layer, recompute)
    alive = []
    hooks = [module.register_forward_hook(lambda *call: alive.append(torch.multiprocessing.reductions.StorageWeakRef(
        call[-1].untyped_storage()))) for module in (layer[0].input_quantizer, layer[0].weight_quantizer)]
    y = layer(x)
    for hook in hooks:
        hook.remove()
    assert y.requires_grad
    return tuple(not storage.expired() for storage in alive)


@pytest.mark.parametrize("weights", WEIGHTS, ids=repr)
def test_quantized_tensors_are_let_go(weights):
    x = torch.rand(5, 16, requires_grad=True)
    layer = convert(nn.Sequential(nn.Linear(16, 8)), (4,), weights=weights, example=x.detach(), keep_float=())
    assert quantized_held(layer, x * 1, False) == (True, True)
    assert quantized_held(layer, x * 1, True) == (False, False)


@pytest.mark.parametrize("recompute", [False, True])
def test_an_input_modified_in_place_raises(recompute):
    x = torch.rand(5, 16, requires_grad=True)
    layer = convert(nn.Sequential(nn.Linear(16, 8)), (4,), example=x.detach(), keep_float=())
    recompute_quantized(layer, recompute)
    inner = x * 1
    y = layer(inner)
    inner.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


@pytest.mark.parametrize("weights", [RoundClamp(), DoubleRounding(correction=True)], ids=repr)
def test_a_weight_modified_in_place_raises(weights):
    x = torch.rand(5, 16, requires_grad=True)
    layer = convert(nn.Sequential(nn.Linear(16, 8)), (4,), weights=weights, example=x.detach(), keep_float=())
    recompute_quantized(layer)
    y = layer(x)
    with torch.no_grad():
        layer[0].weight.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


def test_refuses_what_is_no_flag():
    with pytest.raises(TypeError, match="recompute_quantized: on must be True or False, got 1"):
        recompute_quantized(converted()[0], 1)
    with pytest.raises(ValueError, match="recompute_quantized: model must hold layers made by convert"):
        recompute_quantized(nn.Linear(2, 2), True)
