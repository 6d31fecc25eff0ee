"""GradNormScorer where samples lie along other dimensions, and on parameters that all samples use alike."""

import importlib

import pytest
import torch
import torch.nn.functional as F
from grad_norms import check, images, oracle
from networks import one_thread  # noqa: F401
from networks_of_samples import SAMPLES, Positions, SequenceFirst, Token, Windows, classes, sequences, tokens
from torch import nn

from mbq_train import GradNormScorer, convert, initialise, set_bits


@pytest.mark.parametrize("length", [SAMPLES, 5, 2 * SAMPLES, 1])
def test_the_samples_are_not_told_by_a_size(length):
    torch.manual_seed(0)
    assert "position" in check(Positions(), tokens(length), classes()).layers
    check(SequenceFirst(), sequences(length), classes())


def test_what_the_first_batch_shows_holds_for_the_next_ones_of_its_shape_alone():
    torch.manual_seed(0)
    model, y = Positions(), classes()
    scorer = GradNormScorer(model)
    for length in (SAMPLES, 5, SAMPLES, 5, 3):
        for n in (SAMPLES, 3):
            x = tokens(length, n)
            torch.testing.assert_close(scorer(x, y[:n]).total, oracle(model, x, y[:n]), rtol=1e-5, atol=1e-7)


def test_a_later_batch_costs_one_forward_and_one_backward():
    torch.manual_seed(0)
    model = Positions()
    backwards, scorer = [], GradNormScorer(model)
    model.register_forward_hook(lambda *_: _[2].register_hook(lambda grad: backwards.append(1)) and None)
    scorer(tokens(4), classes())
    first = len(backwards)
    scorer(tokens(4), classes())
    assert len(backwards) == first + 1


class FunctionalNorm(nn.BatchNorm2d):
    """As timm's BatchFunctionalNorm2d."""

    def forward(self, x):
        return F.relu(F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, self.training))


class ChannelsNorm(nn.LayerNorm):
    """As timm's LayerNorm2d: its base cannot take such an input."""

    def forward(self, x):
        return F.layer_norm(x.permute(0, 2, 3, 1), self.normalized_shape, self.weight, self.bias).permute(0, 3, 1, 2)


class Standardised(nn.Conv2d):
    """As timm's ScaledStdConv2d."""

    def forward(self, x):
        return F.conv2d(x, self.weight - self.weight.mean((1, 2, 3), keepdim=True), self.bias)


class Block(nn.Module):
    """As ConvNeXt's: a layer scale for each channel."""

    def __init__(self):
        super().__init__()
        self.conv, self.gamma = nn.Conv2d(4, 4, 3, padding=1), nn.Parameter(torch.rand(4))

    def forward(self, x):
        return x + self.conv(x) * self.gamma.reshape(1, -1, 1, 1)


def subclasses():
    return nn.Sequential(nn.Conv2d(1, 4, 3), FunctionalNorm(4), ChannelsNorm(4), Standardised(4, 4, 3), Block(),
                         nn.Flatten(),
                         nn.utils.parametrizations.weight_norm(nn.Linear(64, 3)))


@pytest.mark.parametrize("network", [Token, lambda: Windows(False), lambda: Windows(True), subclasses],
                         ids=["token", "windows", "windows first", "subclasses"])
@pytest.mark.parametrize("samples", [1, 2, 9])
def test_what_all_samples_use_alike_counts(network, samples):
    torch.manual_seed(0)
    check(network().eval(), *images(samples))


@pytest.mark.parametrize("bits", [32, 2])
@pytest.mark.parametrize("network", [Token, lambda: Windows(True), SequenceFirst],
                         ids=["token", "windows first", "sequence first"])
def test_of_a_quantized_network(network, bits):
    torch.manual_seed(0)
    x = sequences(SAMPLES) if network is SequenceFirst else images()[0]
    model = convert(network().eval(), (8, 2), example=x)
    initialise(model.train(), x)
    set_bits(model.eval(), bits)
    check(model, x, classes(), weights="latent", rtol=1e-4)


class Alike(nn.Module):
    """A layer, quantized or not, that all samples use alike."""

    def __init__(self):
        super().__init__()
        self.stem, self.shared, self.head = nn.Linear(64, 6), nn.Linear(6, 6), nn.Linear(6, 3)
        self.register_buffer("rows", torch.eye(6))

    def forward(self, x):
        return self.head(self.stem(x.flatten(1)) @ self.shared(self.rows))


def test_of_a_quantized_weight_that_all_samples_use_alike():
    torch.manual_seed(0)
    x, y = images()
    model = convert(Alike(), (8, 2))
    initialise(model, x)
    set_bits(model.eval(), 2)
    check(model, x, y, weights="latent", rtol=1e-4)
    with pytest.raises(ValueError, match="weights must be 'latent' where all samples use a quantized weight.*shared"):
        GradNormScorer(model)(x, y)


class Centred(nn.Module):
    """Takes the mean over the batch from every sample."""

    def __init__(self):
        super().__init__()
        self.stem, self.head, self.scale = nn.Linear(64, 6), nn.Linear(6, 3), nn.Parameter(torch.ones(6))

    def forward(self, x):
        x = self.stem(x.flatten(1)) * self.scale
        return self.head((x - x.mean(0)).tanh())


def test_samples_that_mix_are_an_error_that_names_the_layer():
    torch.manual_seed(0)
    model, (x, y) = Centred(), images()
    with pytest.raises(RuntimeError, match="along one dimension of a layer's input and not mix.*of stem"):
        GradNormScorer(model)(x, y)
    model.stem.requires_grad_(False)
    with pytest.raises(RuntimeError, match="along one dimension and not mix, got Mean.* between scale"):
        GradNormScorer(model)(x, y)
    assert not model.stem.weight.requires_grad and model.scale.requires_grad and model.scale.grad is None


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_gradients_are_those_of_the_network_in_every_mode_of_the_caller(mode):
    torch.manual_seed(0)
    model, (x, y) = Token(), images()
    expected, scorer = oracle(model, x, y), GradNormScorer(model)
    with mode():
        norms = scorer(x + 0, y)
    torch.testing.assert_close(norms.total, expected, rtol=1e-5, atol=1e-7)


def test_compiled_parts_run_as_they_are_written():
    importlib.import_module("torch._dynamo")
    torch.manual_seed(0)
    model, (x, y) = Token(), images()
    expected = oracle(model, x, y)
    model.inner = torch.compile(model.inner, backend="eager")
    model(x)  # compiled without our hooks
    torch.testing.assert_close(GradNormScorer(model)(x, y).total, expected, rtol=1e-5, atol=1e-7)


def test_hooks_and_gradients_of_the_parameters_are_not_touched():
    torch.manual_seed(0)
    model, seen = Token(), []
    for parameter in model.parameters():
        parameter.register_post_accumulate_grad_hook(lambda _: seen.append(1))
    check(model, *images())
    assert not seen and all(p.grad is None for p in model.parameters())


def test_under_autocast_within_its_rounding():
    torch.manual_seed(0)
    model, (x, y) = Windows(False).eval(), images()
    expected = oracle(model, x, y)
    with torch.autocast("cpu", torch.bfloat16):
        norms = GradNormScorer(model)(x, y)
    torch.testing.assert_close(norms.total, expected, rtol=5e-2, atol=1e-3)


def test_gradients_that_were_0_are_looked_at_again():
    torch.manual_seed(0)
    model, x, y = Positions(), tokens(SAMPLES), classes()
    scorer = GradNormScorer(model)
    weight = model.head.weight.data.clone()
    model.head.weight.data.zero_()  # as a head begins
    scorer(x, y)
    model.head.weight.data.copy_(weight)
    torch.testing.assert_close(scorer(x, y).total, oracle(model, x, y), rtol=1e-5, atol=1e-7)
