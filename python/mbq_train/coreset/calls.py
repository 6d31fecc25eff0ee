"""The calls of layers in one forward, and the squared gradient norms that the backward makes of them."""

import contextlib
from collections import defaultdict
from dataclasses import dataclass

import torch
from torch import nn

from .by_hand import ByHand
from .layer_norms import LINEAR, NormForm, base_output, explicit_squares, form_of, parameters_of


@dataclass(eq=False)
class _Call:
    """One call of a layer: what its parameters met, the version of that tensor, how many parameters still need it, and
    the gradient once it is there."""

    layer: nn.Module
    x: torch.Tensor | None
    version: int
    needed: int
    grad: torch.Tensor | None = None

    def used(self) -> None:
        """One parameter is done. The graph holds this object until the backward ends, but not what was in it."""
        self.needed -= 1
        if not self.needed:
            self.x = self.grad = None


class _Start(torch.autograd.Function):
    """x itself, as the beginning of a graph in which no parameter takes part."""

    @staticmethod
    def forward(ctx, x, anchor):
        ctx.mark_dirty(x)
        return x

    @staticmethod
    def backward(ctx, grad):
        return None, None


class Calls:
    """What GradNormScorer records in one forward. The gradient of a call is used and let go as soon as those of all
    calls with the same parameter are there.

    Args:
        layers: those to record, with their names.
        counted: parameters that count.
        latent: norms for the float weights of quantized layers.
        unproved: layers whose output is to be compared with their base's; they are taken out once it agrees.
        watch: make it an error when a parameter is used outside of its layer.

    squares: after `backward`, (name of a layer, (N,) squared norms) of every parameter that was used.
    """

    def __init__(self, layers: dict[nn.Module, str], counted, *, latent: bool, unproved: set, watch: bool):
        self.layers, self.latent, self.unproved, self.watch = layers, latent, unproved, watch
        self.counted = {id(parameter) for parameter in counted}
        self.calls = defaultdict(list)  # by id of a parameter
        self.squares, self._inputs, self._factors = [], {}, {}

    @contextlib.contextmanager
    def recorded(self):
        """Record the calls inside the block."""
        # first of all hooks: what others make of a layer's output is not its parameters' doing
        hooks = [layer.register_forward_hook(self._on_call, prepend=True) for layer in self.layers]
        hooks += [layer.input_quantizer.register_forward_hook(self._on_input(layer)) for layer in self.layers
                  if isinstance(getattr(layer, "input_quantizer", None), nn.Module)]
        fast_paths = torch.backends.mha.get_fastpath_enabled()  # of nn.TransformerEncoder, past its layers
        torch.backends.mha.set_fastpath_enabled(False)
        try:
            with ByHand(self.layers, self.counted) if self.watch else contextlib.nullcontext():
                yield
        finally:
            torch.backends.mha.set_fastpath_enabled(fast_paths)
            for hook in hooks:
                hook.remove()

    def backward(self, losses: torch.Tensor) -> None:
        self.samples = len(losses)
        self._missing = {key: len(calls) for key, calls in self.calls.items()}
        if losses.requires_grad:
            losses.sum().backward()
        for key in list(self.calls):  # calls that the loss does not depend on have no gradient
            self._finish(key)
        if not self.squares:
            raise ValueError("GradNormScorer: losses must depend on a layer with parameters, got losses that do not")

    def _on_input(self, layer):
        def keep(module, args, out):
            self._inputs[layer] = out

        return keep

    def _on_call(self, layer, args, out):
        name = self.layers[layer]
        x = self._inputs.pop(layer, args[0] if args else None)
        if x is None:
            raise ValueError(f"GradNormScorer: layers must be called with their input as the first argument, got none "
                             f"for {name}")
        if layer in self.unproved:
            self._prove(layer, x, out)
        keys = [id(p) for p in parameters_of(layer) if id(p) in self.counted]
        if not keys or not torch.is_grad_enabled():  # a forward may switch gradients off for a part
            return None
        if not out.requires_grad:
            out = _Start.apply(out, torch.zeros((), requires_grad=True))
        kept = form_of(layer).prepare(layer, x.detach(), out)
        call = _Call(layer, kept, kept._version, len(keys))
        for key in keys:
            self.calls[key].append(call)
        out.register_hook(lambda grad: self._on_grad(call, keys, grad))
        return out

    def _prove(self, layer, x, out) -> None:
        expected = base_output(layer, x.detach())
        if expected is not None and not (expected.shape == out.shape and torch.allclose(
                expected.to(out.dtype), out.detach(), rtol=1e-3, atol=1e-5, equal_nan=True)):
            raise RuntimeError(f"GradNormScorer: {self.layers[layer]} must compute what its base class does, got "
                               f"another result from {type(layer).__name__}")
        self.unproved.discard(layer)

    def _on_grad(self, call, keys, grad) -> None:
        if len(grad) != self.samples:
            raise ValueError(f"GradNormScorer: the first dimension must be that of the samples, {self.samples}, got "
                             f"{tuple(grad.shape)} from {self.layers[call.layer]}")
        if call.x._version != call.version:
            raise RuntimeError(f"GradNormScorer: inputs must not be changed in place, got that of "
                               f"{self.layers[call.layer]}")
        call.grad = grad.detach()
        for key in keys:
            self._missing[key] -= 1
            if not self._missing[key]:
                self._finish(key)

    @torch.no_grad()
    def _finish(self, key: int) -> None:
        """Add the squared norm of one parameter, or of a layer's two, and let its calls go."""
        calls = [call for call in self.calls.pop(key, ()) if call.grad is not None]
        if not calls:
            return
        layer = calls[0].layer
        _, bias = parameters_of(layer)
        if key == id(bias):
            parts = [form_of(call.layer).biases(call.layer, call.grad) for call in calls]
            value = sum(parts).square().sum(dim=1)
        elif len(calls) > 1:
            value = self._of_several(calls)
        else:
            both = bias is not None and self.calls.get(id(bias), ()) == calls
            value = form_of(layer).squares(layer, calls[0].x, calls[0].grad, weight=True, bias=both,
                                           factor=self._factor(layer))
            if both:
                del self.calls[id(bias)]
                calls[0].used()
        for call in calls:
            call.used()
        self.squares.append((self.layers[layer], value))

    def _of_several(self, calls):
        """Of one weight in several calls: the gradients are added before they are squared."""
        forms = [form_of(call.layer) for call in calls]
        if isinstance(forms[0], NormForm):
            parts = [form.weights(call.layer, call.x, call.grad) for form, call in zip(forms, calls, strict=True)]
            return sum(parts).square().sum(dim=1)
        factors = [self._factor(call.layer) for call in calls]
        pairs = [form.matrices(call.layer, call.x, call.grad) for form, call in zip(forms, calls, strict=True)]
        if any(factor is not factors[0] for factor in factors):
            return explicit_squares(pairs, factors)
        x, grad = (torch.cat(side, dim=2) for side in zip(*pairs, strict=True))
        factor = None if factors[0] is None else factors[0].reshape(len(x), grad.shape[3], x.shape[3])
        return sum(LINEAR.squares(None, x[i], grad[i], weight=True, bias=False,
                                  factor=None if factor is None else factor[i]) for i in range(len(x)))

    def _factor(self, layer) -> torch.Tensor | None:
        """d quantized weight / d float weight, elementwise: the clip mask and what the weight is multiplied by."""
        quantizer = getattr(layer, "weight_quantizer", None)
        if not self.latent or quantizer is None:
            return None
        if layer not in self._factors:
            with torch.enable_grad():
                weight = layer.weight_by_channel().detach().requires_grad_()
                self._factors[layer] = torch.autograd.grad(quantizer(weight).sum(), weight)[0]
        return self._factors[layer]
