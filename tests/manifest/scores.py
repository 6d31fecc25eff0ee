"""Scores of samples by their logits, and weights corrected to the moments of the float ones."""

import torch

import mbq_kernels as mbq

from .entry import CODES, FLOATS, Op
from .layer_variants import logit_variants
from .paths import PATHS
from .sweeps import over_matrices
from .variants import corrected_variants, correction_variants

X, S = torch.randn(4, 33), torch.ones(4)


def error_norms(codes, scale, bits=4):
    return mbq.el2n(codes.float(), torch.arange(len(codes), device=codes.device) % codes.shape[-1])


def cross_entropy(x, scale, bits=4):
    targets = torch.arange(scale.numel(), device=x.device) * bits % x.shape[-1]
    return mbq.cross_entropy_el2n(x, targets, label_smoothing=0.1)[0] * scale


def corrected(x, scale, bits=4):
    return torch.stack(mbq.fake_quantize_corrected(x, [scale, scale * 2], bits=[bits, 2], axis=0))


def correct(x, scale, bits=4):
    return mbq.correct_weight_bias(x * bits, x.abs(), detach_stats=False)[:, 0] * scale


def rows(x):
    """Return x as (N, C) floats; no rows where it has no elements."""
    return x.float().flatten(1) if x.numel() else x.float().reshape(0, 1)


def classes(x):
    return torch.arange(len(rows(x)), device=x.device) % rows(x).shape[1]


def two(one, other):
    return torch.stack([one, other])


def _sweep_logits(rows, columns, device):
    logits = torch.randn(rows, columns, device=device, requires_grad=True)
    targets = torch.randint(columns, (rows,), device=device)
    loss, norms = mbq.cross_entropy_el2n(logits, targets, label_smoothing=0.1)
    torch.autograd.grad(loss.sum(), logits)
    return norms + mbq.el2n(logits, targets)


def _sweep_corrected(rows, columns, device):
    x = torch.randn(rows, columns, device=device, requires_grad=True)
    scale = torch.full((rows,), 0.3, device=device, requires_grad=True)
    y = mbq.fake_quantize_corrected(x, scale, bits=4, axis=0)
    y = y + mbq.fake_quantize_corrected(x, scale, bits=4, axis=0, scale_unit=scale.detach() * 2,
                                        scale_floor=torch.full((rows,), 0.5, device=device))
    return torch.autograd.grad(y.sum(), (x, scale))[0]


def _sweep_correction(rows, columns, device):
    quantized, weight = (torch.randn(rows, columns, device=device, requires_grad=True) for _ in range(2))
    y = mbq.correct_weight_bias(quantized, weight)
    return torch.autograd.grad(y.sum(), quantized)[0]


EL2N = Op(
    name="el2n", call=error_norms, data=CODES, bits=range(2, 9),
    raw={"el2n_forward": lambda c, s: dict(
        logits=rows(c), targets=torch.zeros(len(rows(c)), dtype=torch.int64, device=c.device), ignore_index=-100)},
    malformed={"a target too few": ("el2n_forward", {"targets": torch.zeros(3, dtype=torch.int64)})},
    aot="cross_entropy_el2n",
    on_host="no: its sums meet in shuffles of a warp, which the host lacks",
    paths=PATHS["el2n"],
    sanitize=over_matrices(_sweep_logits))

CROSS_ENTROPY_EL2N = Op(
    name="cross_entropy_el2n", call=cross_entropy, data=FLOATS, differentiable=True,
    raw={
        "cross_entropy_el2n_forward": lambda x, s: dict(
            logits=rows(x), targets=classes(x), ignore_index=-100, label_smoothing=0.1),
        "cross_entropy_el2n_backward": lambda x, s: dict(
            grad=rows(x).sum(1), logits=rows(x), targets=classes(x), rows=rows(x)[:, :1].expand(-1, 2),
            ignore_index=-100, label_smoothing=0.0)},
    malformed={
        "float targets": ("cross_entropy_el2n_forward", {"targets": S}),
        "a gradient too few": ("cross_entropy_el2n_backward", {"grad": S[:3]})},
    aot=logit_variants,
    on_host="no: its sums meet in shuffles of a warp, which the host lacks",
    paths=PATHS["cross_entropy_el2n"],
    sanitize=over_matrices(_sweep_logits))

CORRECT_WEIGHT_BIAS = Op(
    name="correct_weight_bias", call=correct, data=FLOATS, differentiable=True, cuda=False,
    raw={"correct_weight_bias_forward": lambda x, s: dict(w_quant=x, w_ref=x * 2, axis=0, eps=1e-8)},
    malformed={"weights of two shapes": ("correct_weight_bias_forward", {"w_ref": X[:3]})},
    aot=correction_variants,
    sanitize=over_matrices(_sweep_correction))

FAKE_QUANTIZE_CORRECTED = Op(
    name="fake_quantize_corrected", also=("fold_correction",), call=corrected, data=FLOATS, differentiable=True,
    cuda=False,
    raw={
        "fake_quantize_corrected_fold": lambda x, s: dict(
            x=x, scales=two(s, s), offsets=two(s, s), scale_units=two(s, s), scale_floors=two(s * 2, s),
            reference=x * 2, bits=[4, 1], signed=True, axis=0),
        "fake_quantize_corrected_forward": lambda x, s: dict(
            x=x, scales=two(s, s), offsets=None, scale_units=None, scale_floors=None,
            folded=torch.stack([two(s, s)] * 3), bits=[4, 1], signed=True, axis=0, out_dtype=None),
        "fake_quantize_corrected_backward": lambda x, s: dict(
            grads=[x, x * 2], x=x, scales=two(s, s), offsets=two(s, s), scale_units=None, scale_floors=two(s * 2, s),
            folded=torch.stack([two(s, s)] * 3), bits=[4, 1], signed=True, axis=0, grad_factor=1.0)},
    malformed={
        "a short floor": ("fake_quantize_corrected_fold", {"scale_floors": torch.ones(2, 3)}),
        "reference of another shape": ("fake_quantize_corrected_fold", {"reference": X[:3]}),
        "a correction too few": ("fake_quantize_corrected_forward", {"folded": torch.ones(2, 2, 4)}),
        "a gradient too few": ("fake_quantize_corrected_backward", {"grads": [X]})},
    aot=corrected_variants,
    sanitize=over_matrices(_sweep_corrected))

OPS = [EL2N, CROSS_ENTROPY_EL2N, CORRECT_WEIGHT_BIAS, FAKE_QUANTIZE_CORRECTED]
