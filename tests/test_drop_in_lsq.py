"""accelerate on modules that people wrote after the papers of learned step size quantization, known by behaviour."""

import copy
import time

import pytest
import torch
from lsq_quantizers import Detached, FirstBatch, OfImages, OneDimension, RoundedFirst, through
from torch import nn
from twin_training import gradients, twenty_losses

from mbq_train import accelerate
from mbq_train.drop_in.lsq_probes import Form

pytestmark = pytest.mark.filterwarnings("ignore:accelerate")


FORMS = {
    "tensor": (lambda: Detached(), Form(-8, 7, factor="tensor", detached=True)),
    "8bits": (lambda: Detached(8), Form(-128, 127, factor="tensor", detached=True)),
    "unsigned": (lambda: Detached(2, signed=False), Form(0, 3, factor="tensor", detached=True)),
    "channels": (lambda: Detached(channels=24), Form(-8, 7, factor="tensor", detached=True)),
    "channels-own-factor": (lambda: Detached(channels=24, factor="channel"),
                            Form(-8, 7, factor="channel", detached=True)),
    "narrow": (lambda: Detached(channels=24, narrow=True), Form(-7, 7, factor="tensor", detached=True)),
    "written-first-batch": (lambda: FirstBatch(), Form(0, 15, grad_product=False, factor="tensor")),
    "rounded-first": (lambda: RoundedFirst(), Form(-8, 7, mask="code")),
    "one-dimension": (lambda: OneDimension(24), Form(-8, 7, axis=0, dims=(2, 3, 4))),
    "of-images": (lambda: OfImages(24), Form(-8, 7, axis=0, dims=(4,))),
}


@pytest.mark.parametrize("name", FORMS)
def test_forms(name):
    make, form = FORMS[name]
    original = make()
    ours = copy.deepcopy(original)
    before = {key: value.clone() for key, value in original.state_dict().items()}
    assert len(accelerate(ours).replaced) == 1 and ours.mbq_plan.form == form
    assert all(torch.equal(value, ours.state_dict()[key]) for key, value in before.items())
    for step in range(4):
        shape = (24, 16, 3, 6) if step % 2 else (24, 40, 5, 5)
        leaves = [torch.randn(shape).mul(1 + step).requires_grad_()]
        leaves.append(leaves[0].detach().clone().requires_grad_())
        results = [module(leaf) for module, leaf in zip((original, ours), leaves, strict=True)]
        assert torch.equal(*results)
        grad = torch.randn(shape)
        for module, result in zip((original, ours), results, strict=True):
            module.zero_grad()
            result.backward(grad)
        assert torch.equal(leaves[0].grad, leaves[1].grad)
        one, other = (next(module.parameters()) for module in (original, ours))
        torch.testing.assert_close(other.grad, one.grad, rtol=2e-3, atol=1e-3 * float(one.grad.abs().max()))
        with torch.no_grad():
            new = one * 1.07 - 0.001
            one.copy_(new), other.copy_(new)
    original.eval(), ours.eval()
    x = torch.randn(24, 16, 6, 6)
    assert torch.equal(original(x), ours(x))


def test_a_scale_of_the_last_axis():
    original, ours = OneDimension(40, last=True), OneDimension(40, last=True)
    accelerate(ours)
    assert ours.mbq_plan.form == Form(-8, 7, axis=-1, dims=(2, 3))
    for shape in ((120, 40), (5, 24, 40), (2, 3, 24, 40)):  # the last one is the original's
        x, grad = torch.randn(shape), torch.randn(shape)
        for one, other in zip(gradients(original, x, grad)[:2], gradients(ours, x, grad), strict=False):
            assert torch.equal(one, other)


class WithOptions(Detached):
    """Reads its range from an object, which two modules of the class may have different."""

    def __init__(self, bits):
        super().__init__()
        self.options = {"bits": bits}

    def forward(self, x):
        self.low, self.high = -(2 ** (self.options["bits"] - 1)), 2 ** (self.options["bits"] - 1) - 1
        return super().forward(x)


def test_modules_that_differ_in_their_options_alone_have_forms_of_their_own():
    model = nn.Sequential(WithOptions(4), WithOptions(3))
    accelerate(model)
    x = torch.randn(8, 900)
    for module, bits in zip(model, (4, 3), strict=True):
        assert torch.equal(module(x), copy.deepcopy(WithOptions(bits))(x))


def test_an_attribute_that_changes_after_accelerate_counts():
    original, ours = Detached(), Detached()
    accelerate(ours)
    x = torch.randn(8, 900)
    assert torch.equal(original(x), ours(x))
    for module in (original, ours):
        module.low, module.high = -2, 1
    assert torch.equal(original(x), ours(x))


class Block(nn.Module):
    def __init__(self, inputs, outputs):
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, 3, padding=1)
        self.weights, self.activations = Detached(channels=outputs), FirstBatch()

    def forward(self, x):
        return nn.functional.conv2d(self.activations(x), self.weights(self.conv.weight), self.conv.bias, padding=1)


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 24, 3), nn.ReLU(), Block(24, 32), nn.ReLU(), Block(32, 32), nn.Flatten(),
                         nn.Linear(32 * 100, 10))


def test_twenty_steps():
    """Sums of the scales' gradients are in another order: losses drift apart by roundings until a code flips."""
    models = [network(), network()]
    assert len(accelerate(models[1]).replaced) == 4
    assert models[0].state_dict().keys() == models[1].state_dict().keys()
    found = [twenty_losses(model, (16, 3, 12, 12), restored_at=15) for model in models]
    assert found[0][0] == found[1][0]
    torch.testing.assert_close(found[1], found[0], rtol=5e-3, atol=5e-3)


class Clipped(nn.Module):
    """Choi et al., 2018, arXiv 1805.06085 (PACT): the Parameter is where it clips, not a step."""

    def __init__(self):
        super().__init__()
        self.alpha = nn.Parameter(torch.tensor(6.0))

    def forward(self, x):
        y = torch.where(x < self.alpha, x.clamp(min=0), self.alpha)
        return through(y * (15 / self.alpha)) * (self.alpha / 15)


class Stochastic(Detached):
    def forward(self, x):
        v = torch.clamp(x / self.width, self.low, self.high)
        return ((v + torch.rand_like(v)).floor() - v).detach() * self.width + v * self.width


class Wide(Detached):
    def __init__(self):
        super().__init__(bits=12)


class OwnGradient(Detached):
    def forward(self, x):
        v = torch.clamp(x / self.width, self.low, self.high)
        return ((v.round() - v.tanh()).detach() + v.tanh()) * self.width


@pytest.mark.parametrize("kind, reason", [(Clipped, "not to steps"), (Wide, "more than 8 bits"),
                                          (OwnGradient, "that no kernel has")])
def test_look_alikes_are_left_alone_and_named(kind, reason):
    report = accelerate(nn.Sequential(kind(), Detached()))
    assert [reason in entry.why for entry in report.left] == [True] and len(report.replaced) == 1


class Odd(nn.Module):
    def __init__(self):
        super().__init__()
        self.gain = nn.Parameter(torch.ones(1))

    def forward(self, a, b, *, flag):
        raise AssertionError("never called with one tensor")


class Scaled(nn.Module):
    def __init__(self):
        super().__init__()
        self.gain = nn.Parameter(torch.ones(1))

    def forward(self, x):
        return torch.tanh(x) * self.gain


@pytest.mark.parametrize("make", [Odd, Scaled, nn.PReLU, lambda: nn.LayerNorm(4), lambda: nn.Linear(3, 1, False),
                                  Stochastic], ids=lambda make: make.__name__)
def test_other_modules_are_not_reported_as_replaced(make):
    assert not accelerate(nn.Sequential(make())).replaced


def test_probing_has_no_side_effects(capsys):
    calls = []
    module = FirstBatch()
    module.register_forward_hook(lambda *_: calls.append(1))
    state, numbers = copy.deepcopy(module.state_dict()), torch.get_rng_state()
    accelerate(module)
    assert not calls and torch.equal(torch.get_rng_state(), numbers) and module.training
    assert all(torch.equal(value, module.state_dict()[key]) for key, value in state.items())
    assert next(module.parameters()).grad is None
    module(torch.randn(8, 700))
    assert calls == [1] and module.started == 1 and module.alpha > 0


def test_a_hundred_layers_take_less_than_a_second():
    model = nn.Sequential(*[nn.Sequential(nn.Linear(8, 8), nn.LayerNorm(8), Detached(channels=8 + i % 5))
                            for i in range(100)])
    start = time.perf_counter()
    report = accelerate(model)
    assert len(report.replaced) == 100 and time.perf_counter() - start < 1
