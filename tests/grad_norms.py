"""Gradient norms of one sample at a time by autograd: what GradNormScorer is compared with."""

import copy
import math

import torch
import torch.nn.functional as F
from torch import nn

from mbq_train import GradNormScorer
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


def trained_norms(model):
    """Return the network in eval mode, with running statistics and affine maps that are not 0 and 1."""
    generator = torch.Generator().manual_seed(2)
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.running_mean.copy_(0.1 * torch.randn(module.num_features, generator=generator))
            module.running_var.copy_(0.5 + torch.rand(module.num_features, generator=generator))
    return model.eval()
