"""GradNormScorer: the norm of the loss's gradient in all parameters, for every sample of a batch at once."""

import contextlib
import warnings
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn
from torch.utils._pytree import tree_iter, tree_map

from .._names import look_up
from ..quantize.quantizer import quantizers, weight_quantizer_of
from .batch_losses import call_model, check_batch_norms, cross_entropy, one_each, plain
from .calls import Calls
from .gradient_forms import SUPPORTED, form_of, parameters_of, scored_layers, wide_type
from .layouts import find_layout, is_uninformative, loss_weights
from .passes import (
    as_graph_input,
    detached,
    profiles_of,
    run_backward,
    without_compilation,
    without_reentrant_checkpoints,
)
from .shared import SharedPaths
from .watch import Watch

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

    The first batch of a shape costs a second backward, with the losses weighted: where the samples lie in a layer's
    output is what its gradients show, whatever its size. Parameters that all samples use alike (a position embedding of
    batch 1, a class token, a layer scale), and those of layers of other types than Linear, Conv1d, Conv2d, Embedding,
    LayerNorm, RMSNorm, GroupNorm, BatchNorm and transformers' Conv1D, are counted along the autograd graph: exactly as
    well, at a cost that grows with the samples of a batch.

    Args:
        model: a network, converted or not. It is scored in the mode it is in; BatchNorm must be in eval mode.
        weights: of quantized layers 'quantized', the gradient in the weight as it was multiplied, or 'latent', that in
            the float weight behind it: through the clip mask and the correction.
        layers: names of the layers whose parameters count [all].
        strict: count all parameters; otherwise those outside of these layers are left out, with a warning.

    Raises:
        ValueError: an unknown name in `weights` or `layers`; no parameter that counts.
    """

    def __init__(self, model: nn.Module, *, weights: str = "quantized", layers=None, strict: bool = True):
        if weights not in WEIGHTS:
            raise ValueError(f"GradNormScorer: weights must be one of {', '.join(WEIGHTS)}, got {weights!r}")
        self.model, self.latent = model, weights == "latent"
        self.layers = _chosen(scored_layers(model), layers)
        self._unproved = set(self.layers)  # layers not yet seen to compute what their supported base does
        self._known = {}  # what the first batch of a shape has shown
        of_layers = {id(p) for layer in self.layers for p in parameters_of(layer)}
        learned = {id(p) for quantizer in quantizers(model) for p in quantizer.parameters()}
        self._names = {p: name for name, p in model.named_parameters()
                       if id(p) not in learned and (layers is None or id(p) in of_layers)}
        self._shared = {p for p in self._names if id(p) not in of_layers}  # counted along the graph
        self._owners = {p: name for layer, name in reversed(self.layers.items()) for p in parameters_of(layer)}
        counted = {p: name for p, name in self._names.items() if p.requires_grad}
        missing = {} if strict else {p: name for p, name in counted.items() if p in self._shared}
        if len(missing) == len(counted):
            raise ValueError(f"GradNormScorer: parameters must be those of {SUPPORTED}, got "
                             f"{', '.join(missing.values()) or 'none that requires a gradient'}")
        self.left_out = sum(p.numel() for p in missing) / max(sum(p.numel() for p in counted), 1)
        if missing:
            self._shared -= missing.keys()
            for p in missing:
                del self._names[p]
            warnings.warn(f"GradNormScorer: {self.left_out:.2%} of the parameters do not count: "
                          f"{', '.join(missing.values())}", RuntimeWarning, stacklevel=2)

    def __call__(self, inputs, targets: torch.Tensor, *, loss: Callable | None = None) -> GradNorms:
        """Return the norms for a batch.

        Args:
            inputs: a tensor, tuple of arguments or dict of keyword arguments for the model.
            targets: (N,) classes, or what `loss` takes.
            loss: (outputs, targets) -> (N, ...) losses, not reduced over samples; those of one sample are added
                [cross-entropy of (N, C) logits].

        Raises:
            ValueError: BatchNorm in training mode; losses that are one value, or depend on no parameter.
            RuntimeError: samples mix, or lie along no one dimension; a layer's input was changed in place; all samples
            use a parameter alike, and a checkpoint that is not torch's calls layers in the backward. NaN or infinite
            gradients are NaN or infinite norms.
        """
        check_batch_norms(self.model)
        with torch.inference_mode(False):
            inputs, targets = (tree_map(as_graph_input, value) for value in (inputs, targets))
            key = tuple(tuple(value.shape) for value in tree_iter((inputs, targets)) if isinstance(value, torch.Tensor))
            if key in self._known:
                norms = self._score(inputs, targets, loss, self._known[key])
                if norms is not None:
                    return norms
            found = None
            while found is None:  # again where parameters turn out to be used alike by all samples: a few times at most
                found = self._score(inputs, targets, loss, None, key)
            return found

    def _score(self, inputs, targets, loss, known: "_Known | None", key=None) -> GradNorms | None:
        """Return the norms; None where more was found to be shared, or `known` is not what this batch shows."""
        counted = [p for p in self.model.parameters() if p.requires_grad]  # of all layers: none gets a gradient
        shared = {p: self._names[p] for p in counted if p in self._shared}
        by_hook = {id(p) for p in counted if p in self._names and p not in shared}
        watch = Watch(self.layers, inputs) if known is None else None
        calls = Calls(self.layers, by_hook, latent=self.latent, unproved=self._unproved,
                      shared=list(shared.values()), watch=watch)
        try:
            for parameter in counted:
                parameter.requires_grad_(parameter in shared)
            with torch.enable_grad(), calls.recorded(), without_compilation(), without_reentrant_checkpoints():
                with watch or contextlib.nullcontext():
                    outputs = call_model(self.model, inputs)
                losses, el2n = (cross_entropy if loss is None else plain(loss))(outputs, targets)
                losses = one_each(losses)
                paths = SharedPaths(losses, shared) if shared else None
                signature = calls.end_forward(), None if paths is None else paths.signature()
                if known is None:
                    known = self._look(calls, losses, paths, watch, signature)
                    if known is None:
                        return None
                    self._known[key] = known
                elif known.signature != signature:
                    return None
                squares = self._count(calls, losses, paths, known)
        finally:
            for parameter in counted:
                parameter.requires_grad_(True)
        return None if squares is None else _norms(squares, losses.detach(), el2n,
                                               tree_map(detached, outputs))

    def _look(self, calls: Calls, losses, paths: SharedPaths | None, watch: Watch, signature) -> "_Known | None":
        """Return where the samples lie, from two backwards; None after parameters were added to those that are shared.
        """
        by_hook = {id(p): p for p in self._names if id(p) in calls.counted}
        found = {by_hook[i] for i in watch.by_hand if i in by_hook}
        found |= {p for layer in calls.other for p in parameters_of(layer) if p is not None and id(p) in by_hook}
        if found:
            self._share(found)
            return None
        weights = loss_weights(len(losses), losses.device)
        plain, weighted = (profiles_of(calls, losses, paths, factors)
                           for factors in (torch.ones_like(weights), weights))
        layouts = {}
        for (layer, number), (dims, value) in plain[0].items():
            layout = find_layout(value, weighted[0][layer, number][1], weights)
            if is_uninformative(value):
                layout = None
            elif layout is None or not form_of(layer).fits(layer, layout, dims):
                self._check_alike(layer, calls)
                found |= {p for p in parameters_of(layer) if p is not None and id(p) in by_hook}
            layouts[layer, number] = layout
        if found:
            self._share(found)
            return None
        nodes = []
        if paths is not None:
            nodes = paths.find(plain[1], weighted[1], weights)
            paths.check(nodes, watch.depends_on_inputs)
        return _Known(signature, layouts, nodes)

    def _check_alike(self, layer, calls: Calls) -> None:
        """Raise RuntimeError where a layer's input has no dimension for the samples and yet was made of them."""
        if calls.made_of_inputs(layer):
            raise RuntimeError("GradNormScorer: samples must lie along one dimension of a layer's input and not mix, "
                               f"got another input of {self.layers[layer]}")

    def _share(self, parameters: set) -> None:
        for layer, name in self.layers.items():
            if not self.latent and weight_quantizer_of(layer) is not None and layer.weight in parameters:
                raise ValueError("GradNormScorer: weights must be 'latent' where all samples use a quantized weight "
                                 f"alike, or it is used outside of its layer, got 'quantized' and {name}")
        self._shared |= parameters

    def _count(self, calls: Calls, losses, paths: SharedPaths | None, known: "_Known"):
        """Return [(name, squared norms)]; None where a gradient came that `known` does not know."""
        hooks = paths.capture(known.nodes) if paths is not None else []
        try:
            with calls.counting(known.layouts):
                run_backward(losses, torch.ones_like(losses), calls.anchor, paths)
            if calls.unknown or (paths is not None and paths.unknown):
                return None
            squares = calls.squares
            if paths is not None:
                squares = squares + [(self._owners.get(p, self._names[p]), value) for p, value in paths.squares()]
        finally:
            for hook in hooks:
                hook.remove()
        if not squares:
            raise ValueError("GradNormScorer: losses must depend on a layer with parameters, got losses that do not")
        return squares


@dataclass(frozen=True)
class _Known:
    """What the first batch of a shape has shown: the calls and the graph it is of, and the layouts of the gradients of
    layers' outputs and of nodes, None where a layer's was 0."""

    signature: tuple
    layouts: dict
    nodes: list


def _chosen(layers: dict[nn.Module, str], names) -> dict[nn.Module, str]:
    if names is None:
        return layers
    by_name = {name: layer for layer, name in layers.items()}
    return {look_up("GradNormScorer", by_name, name, argument="layers"): name for name in names}


def _norms(squares, losses, el2n, outputs) -> GradNorms:
    layers = defaultdict(lambda: torch.zeros_like(losses, dtype=wide_type(losses)))
    for name, value in squares:
        layers[name] = layers[name] + value
    total = sum(layers.values())
    return GradNorms(total.sqrt(), {name: value.sqrt() for name, value in layers.items()}, losses, el2n, outputs)
