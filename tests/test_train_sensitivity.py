"""Traces of the Hessian against exact ones and against curvlinops; sensitivities."""

import math

import pytest
import torch
import torch.nn.functional as F
from networks import Attention, one_thread, small_network, tiny_model, vision_transformer  # noqa: F401
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from mbq_train import convert, initialise, set_bits
from mbq_train.sensitivity import Trace, hessian_traces, perturbations, quantized_weights, sensitivities


def batch_for(model, images=12, classes=3):
    draw = torch.Generator().manual_seed(1)
    dtype = next(model.parameters()).dtype
    return torch.randn(images, 1, 8, 8, generator=draw, dtype=dtype), torch.arange(images) % classes


def exact(model, weights, images, labels):
    """By weight: the trace of its block of the Hessian, and the standard deviation of v_l^T (H v)_l over random signs.

    Var = 2 sum over i != j of H_ll[i, j]^2 + the squares of all other blocks in l's rows.
    """
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    sizes = [weight.numel() for weight in weights.values()]

    def objective(flat):
        values = {names[id(weight)]: part.view_as(weight) for weight, part in
                  zip(weights.values(), flat.split(sizes), strict=True)}
        return F.cross_entropy(torch.func.functional_call(model, values, (images,)), labels)

    with sdpa_kernel(SDPBackend.MATH):
        rows = torch.autograd.functional.hessian(objective, torch.cat([w.detach().flatten() for w in weights.values()]))
    found, begin = {}, 0
    for name, size, block in zip(weights, sizes, rows.split(sizes), strict=True):
        own = block[:, begin:begin + size]
        variance = block.square().sum() + own.square().sum() - 2 * own.diagonal().square().sum()
        found[name], begin = (own.trace().item(), variance.sqrt().item()), begin + size
    return found


@pytest.mark.parametrize("make, classes", [(tiny_model, 2), (small_network, 3), (vision_transformer, 3)])
def test_traces_and_their_errors_agree_with_the_exact_ones(make, classes):
    model = make().double().eval()
    images, labels = batch_for(model, classes=classes)
    model = convert(model, (8, 4), example=images)
    weights = quantized_weights(model)
    expected = exact(model_at_32_bits(model), weights, images, labels)
    found = hessian_traces(model, [(images, labels)], probes=400, tolerance=0.0)
    assert expected.keys() == found.keys() and len(expected) >= 1
    for name, trace in found.items():
        value, deviation = expected[name]
        assert trace.parameters == weights[name].numel()
        assert abs(trace.value - value) <= 4 * deviation / 400**0.5, name
        assert trace.error == pytest.approx(deviation / 400**0.5, rel=0.2), name


def model_at_32_bits(model):
    set_bits(model, 32)
    return model.eval()


def test_a_diagonal_hessian_is_exact_after_the_first_probes():
    model = nn.Sequential(nn.Linear(4, 1, bias=False)).double()
    images, scales = torch.eye(4, dtype=torch.float64), torch.tensor([1.0, 2.0, 3.0, -8.0], dtype=torch.float64)
    trace = hessian_traces(model, [(images, scales)], weights={"one": model[0].weight},
                           loss=lambda outputs, scales: (outputs.squeeze(1).square() * scales).sum())["one"]
    assert (trace.value, trace.error, trace.parameters) == (-4.0, 0.0, 4)  # 2 (1 + 2 + 3 - 8)


def test_products_are_those_of_curvlinops():
    curvlinops = pytest.importorskip("curvlinops")
    model = convert(small_network().double(), (8,)).eval()
    images, labels = batch_for(model)
    model_at_32_bits(model)
    weights = quantized_weights(model)
    halves = [(images[:5], labels[:5]), (images[5:], labels[5:])]  # of unequal size: they weigh by their images
    operator = curvlinops.HessianLinearOperator(model, nn.CrossEntropyLoss(), list(weights.values()), halves)
    draw, sums = torch.Generator().manual_seed(7), dict.fromkeys(weights, 0.0)
    for _ in range(6):
        probe = [(2 * torch.randint(2, w.shape, generator=draw) - 1).double() for w in weights.values()]
        for name, v, product in zip(weights, probe, operator @ probe, strict=True):
            sums[name] += (v * product).sum().item() / 6
    found = hessian_traces(model, halves, probes=6, tolerance=0.0, seed=7)
    for name, trace in found.items():
        assert trace.value == pytest.approx(sums[name], rel=1e-9)


def test_attention_with_the_fused_kernel_has_second_derivatives():
    class Network(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner, self.attention = Attention(8, 2), nn.MultiheadAttention(8, 2, batch_first=True)
            self.head = nn.Linear(8, 3)

        def forward(self, x):
            x = self.inner(x.flatten(1, 2))
            return self.head(self.attention(x, x, x, need_weights=False)[0].mean(dim=1))

    torch.manual_seed(0)
    model = convert(Network(), (8,), keep_float=())
    traces = hessian_traces(model, [batch_for(model)], probes=3)
    assert {"inner.qkv", "attention.q_proj", "attention.out_proj"} <= traces.keys()
    assert all(math.isfinite(trace.value) for trace in traces.values())
    assert torch.backends.mha.get_fastpath_enabled()


def test_the_seed_decides_and_the_network_is_left_alone():
    model = convert(small_network(), (8, 4)).train()
    batch = batch_for(model)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    random = torch.get_rng_state()
    done = []
    first = hessian_traces(model, [batch], probes=7, tolerance=0.0, seed=3, on_probe=lambda *at: done.append(at))
    assert done == [(number, 7) for number in range(1, 8)]
    assert first == hessian_traces(model, [batch], probes=7, tolerance=0.0, seed=3)
    assert first != hessian_traces(model, [batch], probes=7, tolerance=0.0, seed=4)
    assert torch.equal(random, torch.get_rng_state()) and model.training
    assert model[3].weight_quantizer.bit_state.bits == 8
    for name, value in model.state_dict().items():
        torch.testing.assert_close(value, before[name], rtol=0, atol=0, equal_nan=True, msg=name)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_a_tolerance_ends_it_early():
    model = convert(tiny_model(), (8,))
    counts = []
    for tolerance in (10.0, 0.0):
        done = []
        hessian_traces(model, [batch_for(model, classes=2)], probes=20, tolerance=tolerance,
                       on_probe=lambda *at, done=done: done.append(at))
        counts.append(len(done))
    assert counts == [5, 20]


def test_a_negative_trace_counts_as_none():
    assert Trace(-3.0, 0.1, 10).mean == 0.0
    assert Trace(3.0, 0.1, 10).mean == pytest.approx(0.3)
    assert Trace(0.0, 0.0, 0).mean == 0.0


def test_sensitivities_are_traces_times_the_error_of_the_weights():
    model = convert(small_network(), (8, 2))
    images, labels = batch_for(model)
    initialise(model, images)
    set_bits(model, 2)
    errors = perturbations(model)
    layer = model[3]
    expected = (layer.weight_quantizer(layer.weight) - layer.weight).double().square().sum().item()
    assert errors["3"] == pytest.approx(expected) and expected > 0
    set_bits(model, 8)
    assert perturbations(model)["3"] < errors["3"] / 100
    traces = {name: Trace(6.0, 0.0, 3) for name in errors}
    assert sensitivities(traces, errors) == {name: 2.0 * error for name, error in errors.items()}


def test_errors():
    model = convert(tiny_model(), (8,))
    batch = batch_for(model, classes=2)
    with pytest.raises(ValueError, match="quantized_weights: model must hold layers made by convert, got Sequential"):
        hessian_traces(tiny_model(), [batch])
    with pytest.raises(ValueError, match="weights must name at least one Parameter, got none"):
        hessian_traces(model, [batch], weights={})
    with pytest.raises(ValueError, match="weights must be Parameters of Sequential, got odd, which is not"):
        hessian_traces(model, [batch], weights={"odd": nn.Parameter(torch.ones(1))})
    with pytest.raises(ValueError, match="batches must hold images, got none"):
        hessian_traces(model, [])
    with pytest.raises(ValueError, match="probes must be at least 2, for a standard error, got 1"):
        hessian_traces(model, [batch], probes=1)
    with pytest.raises(ValueError, match="tolerance must be at least 0, got nan"):
        hessian_traces(model, [batch], tolerance=math.nan)
    model[0].weight.data.fill_(math.inf)
    with pytest.raises(ValueError, match="the Hessian must be finite, got nan in 3.weight"):
        hessian_traces(model, [batch])
