"""GradNormScorer where samples lie along other dimensions, and on parameters that all samples use alike."""

import copy
import importlib

import pytest
import torch
import torch.nn.functional as F
from networks import one_thread  # noqa: F401
from test_train_grad_norm import check, images, oracle
from torch import nn
from torch.utils.checkpoint import checkpoint

from mbq_train import GradNormScorer, convert, initialise, set_bits

SAMPLES = 7


def classes(n=SAMPLES):
    return torch.arange(n) % 3


def tokens(length, n=SAMPLES):
    return torch.randint(0, 20, (n, length), generator=torch.Generator().manual_seed(length))


def sequences(length, n=SAMPLES):
    return torch.randn(n, length, 4, generator=torch.Generator().manual_seed(length))


class Positions(nn.Module):
    """Position embeddings of batch 1 from a layer, as BERT and GPT-2 have them."""

    def __init__(self):
        super().__init__()
        self.token, self.position, self.head = nn.Embedding(20, 8), nn.Embedding(16, 8), nn.Linear(8, 3)

    def forward(self, x):
        return self.head(torch.tanh(self.token(x) + self.position(torch.arange(x.shape[1]))).mean(1))


class SequenceFirst(nn.Module):
    """Layers that see (T, N, width), and torch's attention."""

    def __init__(self):
        super().__init__()
        self.stem, self.norm, self.inner, self.head = nn.Linear(4, 6), nn.LayerNorm(6), nn.Linear(6, 6), nn.Linear(6, 3)
        self.attention = nn.MultiheadAttention(6, 2)

    def forward(self, x):
        x = self.inner(self.norm(self.stem(x).transpose(0, 1))).tanh()
        return self.head((x + self.attention(x, x, x, need_weights=False)[0]).mean(0))


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


class Token(nn.Module):
    """A class token, positions and layer scales that are parameters of the network itself."""

    def __init__(self):
        super().__init__()
        self.stem, self.inner, self.head = nn.Linear(8, 6), nn.Linear(6, 6), nn.Linear(6, 3)
        self.token, self.position = nn.Parameter(torch.randn(1, 1, 6)), nn.Parameter(torch.randn(1, 9, 6))
        self.scale, self.temperature = nn.Parameter(torch.rand(6)), nn.Parameter(torch.tensor(0.7))

    def forward(self, x):
        x = torch.cat([self.token.expand(len(x), -1, -1), self.stem(x.flatten(1, 2))], dim=1) + self.position
        x = x + self.inner(x.mean(1, keepdim=True) * x).tanh() * self.scale
        return self.head((x / self.temperature)[:, 0])


class Windows(nn.Module):
    """Attention within windows, which are folded into the batch before or after the samples; a table of biases."""

    def __init__(self, samples_last: bool):
        super().__init__()
        self.samples_last, width = samples_last, 6
        self.patches, self.norm = nn.Conv2d(1, width, 2, stride=2), nn.LayerNorm(width)
        self.qkv, self.proj, self.head = nn.Linear(width, 3 * width), nn.Linear(width, width), nn.Linear(width, 3)
        self.conv, self.group_norm = nn.Conv2d(width, width, 2, padding=1, groups=2), nn.GroupNorm(2, width)
        self.batch_norm, self.table = nn.BatchNorm2d(width), nn.Parameter(torch.randn(7, 2))
        self.register_buffer("index", torch.randint(7, (4, 4)))

    def forward(self, x):
        x = self.patches(x).permute(0, 2, 3, 1)
        n, order = len(x), (1, 3, 0, 2, 4, 5) if self.samples_last else (0, 1, 3, 2, 4, 5)
        windows = self.norm(x).reshape(n, 2, 2, 2, 2, 6).permute(order).reshape(-1, 4, 6)
        q, k, v = self.qkv(windows).reshape(-1, 4, 3, 2, 3).permute(2, 0, 3, 1, 4)
        bias = self.table[self.index.view(-1)].view(4, 4, 2).permute(2, 0, 1).contiguous().unsqueeze(0)
        out = self.proj(((q @ k.mT + bias).softmax(-1) @ v).transpose(1, 2).flatten(2))
        out = self.batch_norm(self.group_norm(self.conv(out.mT.unflatten(2, (2, 2)))))[:, :, :2, :2].flatten(2).mT
        shape = (2, 2, n) if self.samples_last else (n, 2, 2)
        order = (2, 0, 1, 3, 4, 5) if self.samples_last else (0, 1, 2, 3, 4, 5)
        out = out.reshape(*shape, 2, 2, 6).permute(order).transpose(2, 3).reshape(n, 4, 4, 6)
        return self.head((x + out).mean((1, 2)))


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


class Recomputed(nn.Module):
    """Checkpoints, one within another, and a layer that is called inside and outside of them."""

    def __init__(self, outer, inner, alike=False):
        super().__init__()
        self.outer, self.inner = outer, inner
        self.stem, self.shared, self.own, self.head = (nn.Linear(*size) for size in ((64, 8), (8, 8), (8, 8), (8, 3)))
        self.scale = nn.Parameter(torch.rand(8)) if alike else None

    def forward(self, x):
        x = self.stem(x.flatten(1)).tanh()
        x = checkpoint(lambda v: self.own(checkpoint(self.shared, v, use_reentrant=self.inner).tanh()), x,
                       use_reentrant=self.outer)
        return self.head(self.shared(x if self.scale is None else x * self.scale))


@pytest.mark.parametrize("outer", [False, True], ids=["non-reentrant", "reentrant"])
@pytest.mark.parametrize("inner", [False, True], ids=["of non-reentrant", "of reentrant"])
@pytest.mark.parametrize("alike", [False, True], ids=["own", "alike"])
def test_checkpoints_within_the_network(outer, inner, alike):
    torch.manual_seed(0)
    model, (x, y) = Recomputed(outer, inner, alike), images()
    plain = copy.deepcopy(model)
    plain.outer = plain.inner = False
    scorer, apply = GradNormScorer(model), torch.utils.checkpoint.CheckpointFunction.apply
    for _ in range(2):
        torch.testing.assert_close(scorer(x, y).total, oracle(plain, x, y), rtol=1e-5, atol=1e-7)
    assert torch.utils.checkpoint.CheckpointFunction.apply == apply


class Again(torch.autograd.Function):
    """A reentrant checkpoint that is not torch's."""

    @staticmethod
    def forward(ctx, run, x):
        ctx.run, ctx.x = run, x.detach()
        return run(x)

    @staticmethod
    def backward(ctx, grad):
        x = ctx.x.detach().requires_grad_()
        with torch.enable_grad():
            ctx.run(x).backward(grad)
        return None, x.grad


class RecomputedByHand(nn.Module):
    def __init__(self, alike):
        super().__init__()
        self.stem, self.inner, self.head = nn.Linear(64, 8), nn.Linear(8, 8), nn.Linear(8, 3)
        self.scale = nn.Parameter(torch.rand(8)) if alike else None
        self.again = True

    def forward(self, x):
        x = self.stem(x.flatten(1)).tanh()
        x = Again.apply(self.inner, x) if self.again else self.inner(x)
        return self.head(x if self.scale is None else x * self.scale)


def test_checkpoints_that_are_not_torchs():
    torch.manual_seed(0)
    model, (x, y) = RecomputedByHand(alike=False), images()
    plain = copy.deepcopy(model)
    plain.again = False
    for _ in range(2):
        torch.testing.assert_close(GradNormScorer(model)(x, y).total, oracle(plain, x, y), rtol=1e-5, atol=1e-7)
    with pytest.raises(RuntimeError, match="layers must not be called in the backward .*got inner in a .* and scale"):
        GradNormScorer(RecomputedByHand(alike=True))(x, y)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_gradients_are_those_of_the_network_in_every_mode_of_the_caller(mode):
    torch.manual_seed(0)
    model, (x, y) = Token(), images()
    expected, scorer = oracle(model, x, y), GradNormScorer(model)
    with mode():
        norms = scorer(x + 0, y)
    torch.testing.assert_close(norms.total, expected, rtol=1e-5, atol=1e-7)


def test_inputs_keep_their_need_of_a_gradient():
    torch.manual_seed(0)
    model, (x, y) = Recomputed(True, True), images()
    model.stem, x = nn.Identity(), torch.randn(SAMPLES, 8, requires_grad=True)
    assert GradNormScorer(model)(x, y).layers.keys() == {"shared", "own", "head"} and x.grad is None


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
