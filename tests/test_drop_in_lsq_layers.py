"""accelerate on layers that quantize inside their forward with learned step sizes, known by behaviour."""

import copy
import pickle
import time

import pytest
import torch
from step_layers import AbsoluteLinear, DetachedConv, RowLinear, StepConv, Written, through
from torch import nn
from torch.nn import functional
from torch.profiler import profile
from twin_training import gradients, twenty_losses

from mbq_train import accelerate, restore
from mbq_train.drop_in.lsq_probes import Form

pytestmark = pytest.mark.filterwarnings("ignore:accelerate")


LAYERS = {
    "step-conv": (lambda: StepConv(32, 32, 3, padding=1), (4, 32, 9, 9), (Form(-8, 7, grad_product=False,
                  factor="tensor"), "free"), None),
    "grouped-strided": (lambda: StepConv(48, 48, 3, stride=2, groups=2, bits=8, bias=False), (2, 48, 9, 9),
                        (Form(-128, 127, grad_product=False, factor="tensor"), "free"), None),
    "detached-conv": (lambda: DetachedConv(32, 32, 3, padding=1), (4, 32, 9, 9), (Form(-4, 3, factor="tensor",
                      detached=True), "free"), Form(0, 255, factor="tensor", detached=True)),
    "row-linear": (lambda: RowLinear(96, 96), (5, 7, 96), (Form(-8, 7, grad_product=False, factor="tensor"),
                   "floor_through"), None),
    "absolute-linear": (lambda: AbsoluteLinear(96, 96), (5, 96), (Form(-8, 7), "absolute"), None),
}


@pytest.mark.parametrize("name", LAYERS)
def test_forms(name):
    make, shape, (form, kept), of_input = LAYERS[name]
    original = make()
    ours = copy.deepcopy(original)
    keys = list(original.state_dict())
    assert len(accelerate(ours).replaced) == 1 and list(ours.state_dict()) == keys
    plan = ours.mbq_plan
    assert (plan.weight_scaled.form, plan.weight_scaled.kept) == (form, kept)
    assert (plan.input_scaled and plan.input_scaled.form) == of_input
    scales = {part.name for part in (plan.weight_scaled, plan.input_scaled) if part}
    names = ["out", "x", *(name for name, _ in original.named_parameters())]
    for step in range(4):
        original.train(step < 3), ours.train(step < 3)
        x = torch.randn(shape)
        grad = torch.randn_like(original(x).detach())
        for name, one, other in zip(names, gradients(original, x, grad), gradients(ours, x, grad), strict=True):
            if name in scales:
                torch.testing.assert_close(other, one, rtol=2e-3, atol=1e-3 * float(one.abs().max()))
            else:
                assert torch.equal(one, other), name
        with torch.no_grad():
            for one, other in zip(original.parameters(), ours.parameters(), strict=True):
                one.mul_(1.1)
                other.copy_(one)
    with profile() as calls:
        ours(x)
    assert any("fake_quantize_affine" in event.name for event in calls.events())
    again = pickle.loads(pickle.dumps(ours))
    assert torch.equal(again(x), original(x)) and again.mbq_plan == ours.mbq_plan
    assert restore(ours) == 1 and torch.equal(ours(x), original(x))


def test_scales_below_the_floor_and_below_zero():
    original = RowLinear(96, 96)
    with torch.no_grad():
        original.clip[:20], original.clip[20:40] = 1e-7, -0.1
    ours = copy.deepcopy(original)
    accelerate(ours)
    x, grad = torch.randn(5, 96), torch.randn(5, 96)
    for one, other in zip(gradients(original, x, grad), gradients(ours, x, grad), strict=True):
        torch.testing.assert_close(other, one, rtol=2e-3, atol=1e-4 * float(one.abs().max()))


def test_attributes_that_change_are_followed():
    original = RowLinear(96, 96)
    ours, x = copy.deepcopy(original), torch.randn(5, 96)
    accelerate(ours)
    for bits in (3, 16, 4):
        original.bits = ours.bits = bits
        assert torch.equal(original(x), ours(x))


class Configured(RowLinear):
    def __init__(self, options):
        super().__init__(96, 96)
        self.options = options

    def forward(self, x):
        high = self.options["highest"]
        return functional.linear(x, Written.apply(self.weight, self.clip, -high - 1, high, 0), self.bias)


def test_layers_whose_options_are_objects_are_judged_each():
    layers = [Configured({"highest": highest}) for highest in (3, 7)]
    x = torch.randn(5, 96)
    expected = [layer(x) for layer in layers]
    assert all(accelerate(layer).replaced for layer in layers)
    assert all(torch.equal(layer(x), out) for layer, out in zip(layers, expected, strict=True))
    layers[1].options["highest"] = 3
    assert torch.equal(layers[1](x), functional.linear(x, Written.apply(layers[1].weight, layers[1].clip, -4, 3, 0),
                                                       layers[1].bias))


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 32, 3), nn.ReLU(), StepConv(32, 32, 3), nn.ReLU(), DetachedConv(32, 32, 3),
                         nn.ReLU(), nn.Flatten(), RowLinear(32 * 36, 32), nn.ReLU(), nn.Linear(32, 10))


def test_twenty_steps():
    """Sums of the scales' gradients are in another order: losses drift apart by roundings until a code flips."""
    models = [network(), network()]
    assert len(accelerate(models[1]).replaced) == 3
    assert models[0].state_dict().keys() == models[1].state_dict().keys()
    found = [twenty_losses(model, (16, 3, 12, 12), restored_at=15) for model in models]
    assert found[0][0] == found[1][0]
    torch.testing.assert_close(found[1], found[0], rtol=5e-3, atol=5e-3)


class Stretched(RowLinear):
    """Codes between whole steps, as ParetoQ has of 1.58 and 2 bits."""

    def forward(self, x):
        step = self.clip
        code = through((self.weight / step).clamp(-1, 1 - 1e-3) * 2 - 0.5) + 0.5
        return functional.linear(x, code / 2 * step)


class OwnGradient(RowLinear):
    def forward(self, x):
        v = (self.weight / self.clip).clamp(-8, 7)
        return functional.linear(x, ((v.round() - v.tanh()).detach() + v.tanh()) * self.clip)


class Averaging(StepConv):
    """Its step follows the weight at every batch."""

    def forward(self, x):
        if self.training:
            self.started += 1
            self.alpha.data.mul_(0.9).add_(0.1 * self.weight.abs().max() / self.high)
        return functional.conv2d(x, Written.apply(self.weight, self.alpha, self.low, self.high, 0), self.bias)


class Scored(RowLinear):
    """Something after the linear layer that is no bias."""

    def forward(self, x):
        return super().forward(x).relu()


@pytest.mark.parametrize("make, reason", [
    (lambda: Stretched(32, 24), "not to steps"), (lambda: OwnGradient(32, 24), "no kernel has"),
    (lambda: Averaging(24, 24, 3), "at every call"), (lambda: RowLinear(32, 24, bits=12), "more than 8 bits"),
    (lambda: Scored(32, 24), "what no linear layer")],
    ids=["stretched", "own-gradient", "averaging", "wide", "scored"])
def test_look_alikes_are_left_alone_and_named(make, reason):
    report = accelerate(nn.Sequential(make()))
    assert [reason in entry.why for entry in report.left] == [True], str(report)


class Adapted(nn.Linear):
    """No quantizer: a gain for each row."""

    def __init__(self):
        super().__init__(8, 8)
        self.gain = nn.Parameter(torch.ones(8, 1))

    def forward(self, x):
        return functional.linear(x, self.weight * self.gain, self.bias)


class Odd(nn.Linear):
    def __init__(self):
        super().__init__(8, 8)

    def forward(self, a, b, *, flag):
        raise AssertionError("never called with one tensor")


@pytest.mark.parametrize("make", [Adapted, Odd, lambda: nn.Linear(8, 8), lambda: nn.Conv2d(3, 8, 3)],
                         ids=["adapted", "odd", "linear", "conv"])
def test_ordinary_layers_are_not_reported(make):
    assert not accelerate(nn.Sequential(make())).entries


class Noisy(StepConv):
    def forward(self, x):
        print("called")
        return super().forward(x)


def test_probing_has_no_side_effects(capsys):
    calls, layer = [], Noisy(24, 24, 3)
    layer.register_forward_hook(lambda *_: calls.append(1))
    state, numbers = copy.deepcopy(layer.state_dict()), torch.get_rng_state()
    assert accelerate(layer).replaced
    assert not calls and not capsys.readouterr().out and torch.equal(torch.get_rng_state(), numbers) and layer.training
    assert all(torch.equal(value, layer.state_dict()[key]) for key, value in state.items())
    assert all(value.grad is None for value in layer.parameters())
    layer(torch.randn(2, 24, 9, 9))
    assert calls == [1] and layer.started == 1 and layer.alpha != 1


def test_layers_compile_without_a_break():
    layer, x = RowLinear(96, 96), torch.randn(5, 96)
    expected = layer(x)
    accelerate(layer)
    torch.testing.assert_close(torch.compile(layer, backend="aot_eager", fullgraph=True)(x), expected)


def test_a_hundred_layers_take_less_than_a_second():
    model = nn.Sequential(*[nn.Sequential(nn.Linear(8, 8), nn.LayerNorm(8), RowLinear(32, 64 + 32 * (i % 4)))
                            for i in range(100)])
    start = time.perf_counter()
    report = accelerate(model)
    assert len(report.replaced) == 100 and time.perf_counter() - start < 1
