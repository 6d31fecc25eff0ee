"""GradNormScorer against autograd of one sample at a time in float64."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from networks import (
    conv1d_network,
    depthwise_network,
    encoder_network,
    llama_network,
    one_thread,  # noqa: F401
    small_network,
    specs,
)
from torch import nn

from mbq_lab import build_model
from mbq_train import GradNormScorer, convert, initialise, set_bits
from mbq_train.quantize.any_precision import AnyPrecisionWeight
from mbq_train.quantize.quantizer import quantizers


def counted(model, left_out=()):
    learned = {id(p) for quantizer in quantizers(model) for p in quantizer.parameters()}
    return {name: p for name, p in model.named_parameters()
            if p.requires_grad and id(p) not in learned and name not in left_out}


def oracle(model, inputs, targets, loss=None, left_out=(), wrt=None):
    """(N,) norms: one sample, one backward at a time, in float64."""
    model = copy.deepcopy(model).double()
    wanted = list(counted(model, left_out).values()) if wrt is None else wrt(model)
    loss = loss or (lambda out, y: F.cross_entropy(out, y, reduction="none"))
    norms = []
    for x, y in zip(inputs, targets, strict=True):
        x = x[None].double() if x.is_floating_point() else x[None]
        total = loss(model(x), y[None]).sum()
        gradients = torch.autograd.grad(total, wanted, allow_unused=True)
        norms.append(math.sqrt(sum(g.square().sum().item() for g in gradients if g is not None)))
    return torch.tensor(norms)


def check(model, inputs, targets, *, loss=None, left_out=(), rtol=1e-5, **options):
    scorer = GradNormScorer(model, **options)
    before = {name: p.grad for name, p in model.named_parameters()}
    norms = scorer(inputs, targets, loss=loss)
    torch.testing.assert_close(norms.total.double(), oracle(model, inputs, targets, loss, left_out).double(),
                               rtol=rtol, atol=1e-7)
    assert {name: p.grad for name, p in model.named_parameters()} == before
    assert all(p.requires_grad for p in counted(model).values())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    together = torch.stack(list(norms.layers.values())).square().sum(dim=0).sqrt()
    torch.testing.assert_close(together, norms.total)
    return norms


def images(n=7, channels=1, size=8):
    generator = torch.Generator().manual_seed(1)
    return (17 + 100 * torch.randn(n, channels, size, size, generator=generator)) / 100, torch.arange(n) % 3


@pytest.fixture
def trained_norms():
    """Running statistics and affine maps that are not 0 and 1."""
    def fill(model):
        generator = torch.Generator().manual_seed(2)
        for module in model.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.running_mean.copy_(0.1 * torch.randn(module.num_features, generator=generator))
                module.running_var.copy_(0.5 + torch.rand(module.num_features, generator=generator))
        return model.eval()
    return fill


@pytest.mark.parametrize("network", [small_network, depthwise_network])
@pytest.mark.parametrize("samples", [1, 7])
def test_convolutional_networks(network, trained_norms, samples):
    check(trained_norms(network()), *images(samples))


def test_conv1d_with_every_kind_of_padding(trained_norms):
    x = torch.randn(5, 2, 16, generator=torch.Generator().manual_seed(3))
    check(trained_norms(conv1d_network()), x, torch.arange(5) % 3)


@pytest.mark.parametrize("padding", ["same", "valid", 1])
@pytest.mark.parametrize("mode", ["zeros", "reflect"])
def test_conv2d_strides_dilation_and_padding(padding, mode):
    torch.manual_seed(0)
    stride = 1 if padding == "same" else 2
    model = nn.Sequential(nn.Conv2d(1, 4, (2, 3), stride=stride, padding=padding, dilation=(1, 2), padding_mode=mode),
                          nn.ReLU(inplace=True), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(16, 3))
    check(model, *images())


def test_resnet20_and_its_layers(trained_norms):
    torch.manual_seed(0)
    model = trained_norms(build_model("resnet20", classes=10, in_channels=3, image_size=(8, 8)))
    x, y = images(3, 3)
    norms = check(model, x, y)
    assert norms.layers.keys() == {name for name, module in model.named_modules()
                                   if list(module.parameters(recurse=False))}
    head = oracle(model, x, y, wrt=lambda m: [m.linear.weight, m.linear.bias])
    torch.testing.assert_close(norms.layers["linear"].double(), head.double(), rtol=1e-5, atol=0)
    torch.testing.assert_close(norms.losses, F.cross_entropy(model(x), y, reduction="none"))
    probability = model(x).softmax(dim=1) - F.one_hot(y, 10)
    torch.testing.assert_close(norms.el2n, probability.norm(dim=1))


def test_vit_t_with_its_token_and_positions_or_without():
    torch.manual_seed(0)
    model = build_model("vit_t", classes=10, in_channels=3, image_size=(8, 8)).eval()
    x, y = images(2, 3)
    assert {"cls_token", "pos_embed"} <= check(model, x, y).layers.keys()
    with pytest.warns(RuntimeWarning, match="0.0.% of the parameters do not count.*cls_token, pos_embed"):
        check(model, x, y, strict=False, left_out=("cls_token", "pos_embed"))


@pytest.mark.parametrize("bits", [32, 8, 2])
def test_quantized_attention_and_transformer_layers(bits):
    model = convert(encoder_network(), (8, 2), example=torch.zeros(1, 5, 8)).eval()
    x = torch.randn(4, 5, 8, generator=torch.Generator().manual_seed(4))
    initialise(model.train(), x)
    set_bits(model.eval(), bits)
    y = torch.arange(20).reshape(4, 5) % 3

    def loss(out, targets):
        return F.cross_entropy(out.transpose(1, 2), targets, reduction="none")

    check(model, x, y, loss=loss, weights="latent", rtol=1e-4)


def test_tied_weights_are_added_before_they_are_squared():
    model = llama_network()
    tokens = torch.randint(7, (4, 6), generator=torch.Generator().manual_seed(5))

    def loss(out, targets):
        return F.cross_entropy(out.transpose(1, 2), targets, reduction="none")

    norms = check(model, tokens, tokens.roll(1, dims=1), loss=loss)
    assert "0" in norms.layers and "4" not in norms.layers  # under the first name


class Reused(nn.Module):
    """Everything twice: a convolution, a normalisation and a Linear layer with its bias."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.norm = nn.Conv2d(2, 2, 3, padding=1, groups=2), nn.GroupNorm(2, 2)
        self.twin = nn.Conv2d(2, 2, 3, padding=1, groups=2)
        self.twin.bias = self.conv.bias
        self.stem, self.middle, self.head = nn.Conv2d(1, 2, 3, stride=2), nn.Linear(18, 18), nn.Linear(18, 3)

    def forward(self, x):
        x = self.norm(self.conv(self.stem(x)))
        x = self.norm(self.twin(self.conv(F.relu(x)))).flatten(1)
        return self.head(self.middle(self.middle(x).tanh()))


def test_layers_called_twice_and_a_bias_of_two_layers():
    check(Reused(), *images())


def quantized_network(quantizer, correction=False, bits=2, **options):
    model = convert(small_network(), (8, 2, 1) if quantizer != "double-rounding" else (8, 2), batch_norm="shared",
                    **specs(quantizer=quantizer, weight_correction=correction, **options))
    x, y = images()
    initialise(model, x)
    set_bits(model.eval(), bits)
    return model, x, y


@pytest.mark.parametrize("correction", [False, True], ids=["plain", "corrected"])
@pytest.mark.parametrize("quantizer", ["learned", "double-rounding", "any-precision"])
@pytest.mark.parametrize("bits", [8, 2])
def test_latent_norms_go_through_the_clip_mask_and_the_correction(quantizer, correction, bits):
    model, x, y = quantized_network(quantizer, correction, bits)
    layer = model[3]
    if quantizer != "any-precision":  # some weights lie beyond the range
        with torch.no_grad():
            for b, scale in layer.weight_quantizer.scales.items():
                first = layer.weight.abs().mean() / max(1, 2**(int(b) - 1) - 1)
                layer.weight_quantizer.start(int(b), first.expand_as(scale))
        weight = layer.weight.detach().requires_grad_()
        clipped = torch.autograd.grad(layer.weight_quantizer(weight).sum(), weight)[0] == 0
        assert 0 < clipped.sum() < clipped.numel()
    latent = check(model, x, y, weights="latent", rtol=1e-4)
    quantized = GradNormScorer(model)(x, y)
    assert not torch.allclose(latent.total, quantized.total, rtol=1e-3)


@pytest.mark.parametrize("bits", [32, 8, 1])
def test_norms_in_the_quantized_weight(bits):
    model, x, y = quantized_network("any-precision", True, bits)
    held = {}

    def multiplied(quantizer, args, out):
        held[quantizer] = out.detach().requires_grad_()
        return held[quantizer]

    def norms_of(model):
        hooks = [m.register_forward_hook(multiplied) for m in model.modules() if isinstance(m, AnyPrecisionWeight)]
        rows = []
        for image, label in zip(x.double(), y, strict=True):
            total = F.cross_entropy(model(image[None]), label[None])
            quantized = {id(m.weight) for m in model.modules() if hasattr(m, "weight_quantizer")}
            wanted = [p for p in model.parameters() if id(p) not in quantized] + list(held.values())
            rows.append(math.sqrt(sum(g.square().sum().item() for g in torch.autograd.grad(total, wanted))))
        for hook in hooks:
            hook.remove()
        return torch.tensor(rows)

    expected = norms_of(copy.deepcopy(model).double())
    torch.testing.assert_close(GradNormScorer(model)(x, y).total, expected, rtol=1e-5, atol=0)


def test_quantized_layers_that_share_a_float_weight():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 6), nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 6), nn.Linear(6, 3))
    model[4].weight = model[2].weight
    convert(model, (8, 2))
    x, y = images()
    initialise(model, x)
    with torch.no_grad():
        model[4].weight_quantizer.scales["2"].mul_(0.3)
    set_bits(model.eval(), 2)
    check(model, x, y, weights="latent", rtol=1e-4)


def test_bfloat16_under_autocast_is_within_its_rounding(trained_norms):
    model = trained_norms(small_network())
    x, y = images()
    with torch.autocast("cpu", torch.bfloat16):
        norms = GradNormScorer(model)(x, y)
    assert norms.outputs.dtype == torch.bfloat16 and norms.total.dtype == torch.float32
    torch.testing.assert_close(norms.total, oracle(model, x, y), rtol=5e-2, atol=1e-3)


def test_frozen_parameters_and_unused_layers_do_not_count(trained_norms):
    model = trained_norms(small_network())
    for parameter in model[3].parameters():
        parameter.requires_grad_(False)
    model[7].bias.requires_grad_(False)
    x, y = images()
    norms = check_frozen(model, x, y)
    assert "3" not in norms.layers and {"0", "7", "9"} <= norms.layers.keys()
    assert not model[3].weight.requires_grad and model[7].weight.requires_grad


class Halfway(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.head = nn.Linear(64, 8), nn.Linear(8, 3)

    def forward(self, x):
        with torch.no_grad():
            x = self.first(x.flatten(1))
        return self.head(x.relu())


def test_a_part_without_gradients_does_not_count():
    torch.manual_seed(0)
    assert list(check(Halfway(), *images()).layers) == ["head"]


def check_frozen(model, x, y):
    norms = GradNormScorer(model)(x, y)
    torch.testing.assert_close(norms.total, oracle(model, x, y), rtol=1e-5, atol=1e-7)
    return norms


def test_gradients_that_are_not_finite_say_so():
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 3))
    x, y = images()
    x[2, 0, 0, 0], x[4, 0, 0, 0] = math.nan, math.inf
    assert GradNormScorer(model)(x, y).total.isfinite().tolist() == [True, True, False, True, False, True, True]


def test_batch_norm_in_training_mode_is_an_error():
    with pytest.raises(ValueError, match="GradNormScorer: BatchNorm must be in eval mode.*got 1$"):
        GradNormScorer(small_network())(*images())


@pytest.mark.parametrize("layers", [None, ["3"]])
def test_batch_norm_in_training_mode_is_an_error_where_it_does_not_count_too(layers):
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.BatchNorm1d(8, affine=False), nn.Linear(8, 3))
    with pytest.raises(ValueError, match="GradNormScorer: BatchNorm must be in eval mode.*got 2$"):
        GradNormScorer(model, layers=layers)(*images())
    assert model[2].num_batches_tracked == 0


def test_hooks_of_others_belong_to_the_network():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.Linear(8, 3))
    model[1].register_forward_hook(lambda layer, args, out: 2 * out.relu())
    check_frozen(model, *images())


def test_no_samples():
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 3))
    norms = GradNormScorer(model)(*(value[:0] for value in images()))
    assert norms.total.shape == norms.layers["1"].shape == norms.losses.shape == (0,)


def test_losses_that_depend_on_other_parameters_alone_are_an_error():
    factor = torch.ones(3, requires_grad=True)
    with pytest.raises(ValueError, match="losses must depend on a layer with parameters"):
        GradNormScorer(nn.Sequential(nn.Flatten(), nn.Linear(64, 3)))(
            *images(), loss=lambda outputs, targets: outputs.detach() * factor)


class ByHand(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner, self.head = nn.Linear(64, 8), nn.Linear(8, 3)

    def forward(self, x):
        return self.head(F.linear(x.flatten(1), self.inner.weight))


class Scaled(nn.Linear):
    def forward(self, x):
        return F.linear(x, 2 * self.weight, self.bias)


class Same(nn.Linear):
    def forward(self, x):
        return super().forward(x)


class Changed(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.head = nn.Linear(64, 64), nn.Linear(64, 3)

    def forward(self, x):
        x = x.flatten(1).clone()
        out = self.first(x)
        x.zero_()
        return self.head(out)


@pytest.mark.parametrize("network", [
    ByHand, lambda: nn.Sequential(nn.Flatten(), Same(64, 3)), lambda: nn.Sequential(nn.Flatten(), Scaled(64, 3)),
    lambda: nn.Sequential(nn.Flatten(2), nn.Flatten(0, 1), nn.Linear(64, 3)),
    lambda: nn.Sequential(nn.Flatten(1, 2), nn.Flatten(0, 1), nn.Linear(8, 3), nn.Unflatten(0, (-1, 8)), nn.Flatten(1),
                          nn.Linear(24, 3)),
    lambda: nn.Sequential(nn.ConvTranspose2d(1, 2, 3), nn.PReLU(2), nn.Flatten(), nn.Linear(200, 3)),
], ids=["by hand", "same subclass", "other subclass", "one row a sample", "eight rows a sample", "other types"])
def test_parameters_that_no_hook_sees_count(network):
    torch.manual_seed(0)
    check(network(), *images())


def test_what_would_give_wrong_norms_is_an_error():
    x, y = images()
    with pytest.raises(RuntimeError, match="inputs must not be changed in place, got that of first"):
        GradNormScorer(Changed())(x, y)
    with pytest.raises(ValueError, match="loss must give one value a sample, got a single one"):
        GradNormScorer(nn.Sequential(nn.Flatten(), nn.Linear(64, 3)))(x, y, loss=F.cross_entropy)
    with pytest.raises(ValueError, match="weights must be one of quantized, latent, got 'float'"):
        GradNormScorer(nn.Sequential(nn.Linear(2, 2)), weights="float")
    with pytest.raises(ValueError, match="parameters must be those of Linear.*got 0.weight, 0.bias"):
        GradNormScorer(nn.Sequential(nn.ConvTranspose2d(1, 1, 3)), strict=False)
