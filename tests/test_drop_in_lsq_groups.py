"""accelerate on quantizers with a learned scale and a learned zero point, known by behaviour."""

import copy
import pickle
import time

import pytest
import torch
from torch import nn
from twin_training import gradients, twenty_losses

from mbq_train import accelerate, restore

pytestmark = pytest.mark.filterwarnings("ignore:accelerate")


def through(x):
    return (x.round() - x).detach() + x


def within(x, low, high):
    return (x.clamp(low, high) - x).detach() + x


class Grouped(nn.Module):
    """Chen et al., 2024, arXiv 2407.11062: uniform affine quantization of groups, whose clamps pass gradients."""

    def __init__(self, weight, bits=4, size=32):
        super().__init__()
        self.top, self.size, self.on = 2**bits - 1, size, True
        rows = weight.detach().reshape(-1, size)
        low, high = rows.amin(1, keepdim=True), rows.amax(1, keepdim=True)
        self.delta = nn.Parameter((high - low) / self.top)
        self.origin = nn.Parameter((-low / self.delta.detach()).round())

    def forward(self, x):
        if not self.on:
            return x
        delta, origin = within(self.delta, 1e-4, 1e4), within(through(self.origin), 0, self.top)
        codes = (through(x.reshape(-1, self.size) / delta) + origin).clamp(0, self.top)
        return ((codes - origin) * delta).reshape(x.shape)

    def change(self, bits):
        self.top = 2**bits - 1


class Rounding(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.round()

    @staticmethod
    def backward(ctx, grad):
        return grad


class Shifted(nn.Module):
    """Of a tensor or of rows, the zero point as it is, added before the rounding."""

    def __init__(self, rows=None):
        super().__init__()
        shape = (1,) if rows is None else (rows, 1)
        self.z, self.s = nn.Parameter(torch.full(shape, 3.3)), nn.Parameter(torch.full(shape, 0.1))

    def forward(self, x):
        return (Rounding.apply(x / self.s + self.z).clamp(0, 15) - self.z) * self.s


MAKERS = {"groups": (lambda: Grouped(torch.randn(48, 128)), (48, 128)),
          "groups-3bits": (lambda: Grouped(torch.randn(32, 256), 3, 64), (32, 256)),
          "rows": (lambda: Shifted(48), (48, 128)), "tensor": (lambda: Shifted(), (7, 11, 128))}


@pytest.mark.parametrize("name", MAKERS)
def test_forms(name):
    make, shape = MAKERS[name]
    original = make()
    ours, numbers = copy.deepcopy(original), torch.get_rng_state()
    assert len(accelerate(ours).replaced) == 1 and torch.equal(torch.get_rng_state(), numbers)
    assert all(map(torch.equal, original.parameters(), ours.parameters()))
    for step in range(4):
        x, grad = torch.randn(shape) * (1 + step), torch.randn(shape)
        one, other = gradients(original, x, grad), gradients(ours, x, grad)
        assert torch.equal(one[0], other[0]) and torch.equal(one[1], other[1])
        for mine, theirs in zip(other[2:], one[2:], strict=True):
            torch.testing.assert_close(mine, theirs, rtol=2e-3, atol=1e-3 * float(theirs.abs().max()))
        with torch.no_grad():
            for value, copied in zip(original.parameters(), ours.parameters(), strict=True):
                value.add_(torch.randn_like(value) * 0.2 * value.abs().mean()).abs_()
                copied.copy_(value)
    assert "Affine" in type(ours(x).grad_fn.next_functions[0][0]).__name__
    again = pickle.loads(pickle.dumps(ours))
    assert torch.equal(again(x), original(x))
    assert restore(ours) == 1 and torch.equal(ours(x), original(x))


def test_the_least_and_the_greatest_scale_and_zero_points_outside():
    original = Grouped(torch.randn(48, 128))
    with torch.no_grad():
        original.delta[:9], original.delta[9:18], original.delta[18:27] = 1e-6, 3e4, -0.2
        original.origin[:40] = torch.randn(40, 1) * 30
    ours = copy.deepcopy(original)
    accelerate(ours)
    x, grad = torch.randn(48, 128) * torch.tensor([1e-4, 1, 1e4] * 16)[:, None], torch.randn(48, 128)
    one, other = gradients(original, x, grad), gradients(ours, x, grad)
    assert torch.equal(one[0], other[0]) and torch.equal(one[1], other[1])
    assert "Affine" in type(ours(x).grad_fn.next_functions[0][0]).__name__


def test_attributes_that_change_are_followed():
    original = Grouped(torch.randn(48, 128))
    ours, x = copy.deepcopy(original), torch.randn(48, 128)
    accelerate(ours)
    for bits, on in ((3, True), (4, False), (4, True)):
        for module in (original, ours):
            module.change(bits)
            module.on = on
        assert torch.equal(original(x), ours(x))


class Network(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.ModuleList([nn.Linear(128, 64), nn.Linear(64, 128), nn.Linear(128, 10)])
        self.quantizers = nn.ModuleList([Grouped(layer.weight) for layer in self.layers[:2]])

    def forward(self, x):
        for layer, quantizer in zip(self.layers, self.quantizers, strict=False):
            x = nn.functional.linear(x, quantizer(layer.weight), layer.bias).relu()
        return self.layers[2](x)


def test_twenty_steps():
    """Sums of the scales' gradients are in another order: losses drift apart by roundings until a code flips."""
    models = [Network(), Network()]
    assert len(accelerate(models[1]).replaced) == 2
    found = [twenty_losses(model, (16, 128)) for model in models]
    assert found[0][0] == found[1][0]
    torch.testing.assert_close(found[1], found[0], rtol=5e-3, atol=5e-3)


class Offset(nn.Module):
    """Bhalgat et al., 2020, arXiv 2004.09576: the offset is a real number, not a code."""

    def __init__(self):
        super().__init__()
        self.s, self.beta = nn.Parameter(torch.tensor([0.1])), nn.Parameter(torch.tensor([0.03]))

    def forward(self, x):
        return through(((x - self.beta) / self.s).clamp(0, 15)) * self.s + self.beta


class Stochastic(Shifted):
    def forward(self, x):
        return ((x / self.s + torch.rand_like(x)).floor().clamp(0, 15) - 3) * self.s + 0 * self.z


class Gain(nn.Module):
    def __init__(self):
        super().__init__()
        self.gain, self.bias = nn.Parameter(torch.ones(8)), nn.Parameter(torch.zeros(8))

    def forward(self, x):
        return x * self.gain + self.bias


@pytest.mark.parametrize("make", [Offset, Stochastic, Gain, lambda: nn.LayerNorm(8), lambda: nn.BatchNorm1d(8)],
                         ids=["offset", "stochastic", "gain", "layer-norm", "batch-norm"])
def test_others_are_not_replaced(make):
    report = accelerate(nn.Sequential(make()))
    assert not report.replaced and (make is Offset or make is Stochastic or not report.entries)


def test_many_groups_take_less_than_a_second():
    model = nn.Sequential(*[Grouped(torch.randn(rows, 1024)) for rows in (256, 512, 1024, 2048) for _ in range(2)])
    start = time.perf_counter()
    assert len(accelerate(model).replaced) == 8 and time.perf_counter() - start < 1
