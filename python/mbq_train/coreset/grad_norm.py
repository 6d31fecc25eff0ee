"""GradNormScorer: the norm of the loss's gradient in all parameters, for every sample of a batch at once."""

import warnings
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

import mbq_kernels

from .._names import look_up
from ..quantize.batch_norm import BATCH_NORMS
from ..quantize.quantizers import quantizers
from .calls import Calls
from .layer_norms import SUPPORTED, parameters_of, scored_layers, wide_type

WEIGHTS = ("quantized", "latent")


@dataclass(frozen=True)
class GradNorms:
    """Of N samples: total and layers (by name), the norms of the gradients; losses; outputs of the model.

    el2n: ||softmax - onehot||_2, None where the loss is not the built-in cross-entropy. All (N,) but the outputs.
    """

    total: torch.Tensor
    layers: dict[str, torch.Tensor]
    losses: torch.Tensor
    el2n: torch.Tensor | None
    outputs: torch.Tensor


class GradNormScorer:
    """||gradient of one sample's loss||_2 for every sample, from one forward and one backward of the whole batch.

    GraND of Paul et al., "Deep Learning on a Data Diet", 2021, arXiv 2107.07075, definition 2.1, without a gradient per
    sample in memory. A parameter that is used several times - a layer called twice, a tied weight - counts once, with
    the sum of its gradients. Learned scales and offsets of quantizers and frozen parameters do not count. Parameter
    gradients are not computed, and .grad is not touched.

    Args:
        model: a network, converted or not; every layer sees the batch as its first dimension. It is scored in the mode
            it is in; BatchNorm must be in eval mode.
        weights: of quantized layers 'quantized', the gradient in the weight as it was multiplied, or 'latent', that in
            the float weight behind it: through the clip mask and the correction.
        layers: names of the layers whose parameters count [all].
        strict: parameters whose gradient is not known are an error; otherwise a warning, and they do not count.

    Raises:
        ValueError: an unknown name in `weights` or `layers`; with strict, parameters of other layers than Linear,
        Conv1d, Conv2d, Embedding, LayerNorm, RMSNorm, GroupNorm, BatchNorm and subclasses; no such layer at all.
    """

    def __init__(self, model: nn.Module, *, weights: str = "quantized", layers=None, strict: bool = True):
        if weights not in WEIGHTS:
            raise ValueError(f"GradNormScorer: weights must be one of {', '.join(WEIGHTS)}, got {weights!r}")
        self.model, self.latent = model, weights == "latent"
        self.layers = _chosen(scored_layers(model), layers)
        self._unproved = set(self.layers)  # layers not yet seen to compute what their supported base does
        self._watch = True  # in the first call
        known = {id(p) for layer in self.layers for p in parameters_of(layer)}
        learned = {id(p) for quantizer in quantizers(model) for p in quantizer.parameters()}
        counted = {name: p for name, p in model.named_parameters() if p.requires_grad and id(p) not in learned
                   and (layers is None or id(p) in known)}
        missing = {name: p.numel() for name, p in counted.items() if id(p) not in known}
        total = sum(p.numel() for p in counted.values())
        self.left_out = sum(missing.values()) / max(total, 1)
        if missing and (strict or len(missing) == len(counted)):
            raise ValueError(f"GradNormScorer: parameters must be those of {SUPPORTED}, got {', '.join(missing)} "
                             "(strict=False leaves them out)")
        if missing:
            warnings.warn(f"GradNormScorer: {self.left_out:.2%} of the parameters do not count, for their gradients "
                          f"are not known: {', '.join(missing)}", RuntimeWarning, stacklevel=2)

    def __call__(self, inputs, targets: torch.Tensor, *, loss: Callable | None = None) -> GradNorms:
        """The norms for a batch.

        Args:
            inputs: a tensor, tuple of arguments or dict of keyword arguments for the model.
            targets: (N,) classes, or what `loss` takes.
            loss: (outputs, targets) -> (N, ...) losses, not reduced over samples; those of one sample are added
                [cross-entropy of (N, C) logits].

        Raises:
            ValueError: BatchNorm in training mode; samples not along the first dimension; a batch of losses.
            RuntimeError: a layer's input was changed in place, a subclass does not compute what its base does, or a
            parameter is used outside of its layer. NaN or infinite gradients are NaN or infinite norms.
        """
        _check_batch_norms(self.model)
        counted = [p for p in self.model.parameters() if p.requires_grad]  # of all layers: none gets a gradient
        calls = Calls(self.layers, counted, latent=self.latent, unproved=self._unproved, watch=self._watch)
        try:
            for parameter in counted:
                parameter.requires_grad_(False)
            with torch.enable_grad(), calls.recorded():
                outputs = _call(self.model, inputs)
                losses, el2n = (_cross_entropy if loss is None else _plain(loss))(outputs, targets)
                if losses.dim() == 0:
                    raise ValueError("GradNormScorer: loss must give one value a sample, got a single one; reduce "
                                     "nothing")
                losses = losses.unsqueeze(-1).flatten(1).sum(dim=1)
                calls.backward(losses)
        finally:
            for parameter in counted:
                parameter.requires_grad_(True)
        self._watch = False
        return _norms(calls.squares, losses.detach(), el2n, outputs.detach())


def _chosen(layers: dict[nn.Module, str], names) -> dict[nn.Module, str]:
    if names is None:
        return layers
    by_name = {name: layer for layer, name in layers.items()}
    return {look_up("GradNormScorer", by_name, name, argument="layers"): name for name in names}


def _check_batch_norms(model) -> None:
    """Of all layers, with parameters that count or without: one that mixes the samples spoils the others' gradients."""
    for name, module in model.named_modules():
        if isinstance(module, BATCH_NORMS) and (module.training or module.running_mean is None):
            raise ValueError(f"GradNormScorer: BatchNorm must be in eval mode with running statistics, for in training "
                             f"mode it mixes the samples, got {name}")


def _norms(squares, losses, el2n, outputs) -> GradNorms:
    layers = defaultdict(lambda: torch.zeros_like(losses, dtype=wide_type(losses)))
    for name, value in squares:
        layers[name] = layers[name] + value
    total = sum(layers.values())
    return GradNorms(total.sqrt(), {name: value.sqrt() for name, value in layers.items()}, losses, el2n, outputs)


def _call(model, inputs):
    if isinstance(inputs, dict):
        return model(**{name: _detached(value) for name, value in inputs.items()})
    return model(*map(_detached, inputs if isinstance(inputs, tuple) else (inputs,)))


def _detached(value):
    return value.detach() if isinstance(value, torch.Tensor) else value


def _cross_entropy(outputs, targets):
    losses, el2n = mbq_kernels.cross_entropy_el2n(outputs, targets)
    return losses, el2n.detach()


def _plain(loss):
    return lambda outputs, targets: (loss(outputs, targets), None)
