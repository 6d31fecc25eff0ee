"""GradNormScorer on converted networks: norms in the float weight and in the quantized one."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from grad_norms import check, images, oracle, trained_norms
from networks import encoder_network, one_thread, small_network, specs  # noqa: F401
from torch import nn

from mbq_lab import build_model
from mbq_train import GradNormScorer, convert, initialise, set_bits
from mbq_train.quantize.any_precision import AnyPrecisionWeight


def test_resnet20_and_its_layers():
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
