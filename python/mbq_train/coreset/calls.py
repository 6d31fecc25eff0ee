"""The calls of layers in one forward, and the squared gradient norms that the backward makes of them."""

import contextlib
from collections import Counter, defaultdict

import torch
from torch import nn

from ..quantize.quantizer import weight_quantizer_of
from .call import Call, bias_gradients, matrices_of, norm_gradients
from .gradient_forms import LINEAR, NormForm, base_output, explicit_squares, form_of, parameters_of
from .layouts import Layout, profile
from .watch import Watch


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
        counted: ids of the parameters that count.
        latent: norms for the float weights of quantized layers.
        unproved: layers whose output is to be compared with their base's; they are taken out once it was.
        shared: names of parameters that are counted along the graph.
        watch: of the forward, where it is watched.

    squares: after `backward`, (name of a layer, (N,) squared norms) of every parameter that was used. other: layers
    that do not compute what their base does. anchor: a leaf that every graph of a forward leads to.
    """

    def __init__(self, layers: dict[nn.Module, str], counted: set[int], *, latent: bool, unproved: set,
                 shared: list[str], watch: Watch | None = None):
        self.layers, self.counted, self.latent, self.unproved, self.watch = layers, counted, latent, unproved, watch
        self.calls = defaultdict(list)  # by id of a parameter
        self.squares, self.other, self._inputs, self._factors, self._seen = [], [], {}, {}, []
        self._hidden = set()  # parameters in calls without a graph: a checkpoint may make them again in the backward
        self._profiles, self._missing, self._forward, self._shared = None, Counter(), True, shared
        self.anchor = torch.zeros((), requires_grad=True)

    @contextlib.contextmanager
    def recorded(self):
        """Record the calls inside the block."""
        # first of all hooks: what others make of a layer's output is not its parameters' doing
        hooks = [layer.register_forward_hook(self._on_call, prepend=True) for layer in self.layers]
        hooks += [layer.input_quantizer.register_forward_hook(self._on_input(layer)) for layer in self.layers
                  if weight_quantizer_of(layer) is not None]
        fast_paths = torch.backends.mha.get_fastpath_enabled()  # of nn.TransformerEncoder, past its layers
        torch.backends.mha.set_fastpath_enabled(False)
        try:
            yield
        finally:
            torch.backends.mha.set_fastpath_enabled(fast_paths)
            for hook in hooks:
                hook.remove()

    def end_forward(self) -> tuple:
        """Return what is equal for forwards that call the same layers with the same shapes. From now on calls are those
        of checkpoints, in the backward."""
        self._forward = False
        return tuple(self._seen)

    def made_of_inputs(self, layer: nn.Module) -> bool:
        """Return whether the input of a watched call of `layer` was made of the network's inputs."""
        return any(call.from_inputs for p in parameters_of(layer) for call in self.calls.get(id(p), ())
                   if call.layer is layer)

    @contextlib.contextmanager
    def profiled(self, samples: int):
        """In the backward inside the block nothing is counted: {(layer, number of its gradient): (its dimensions,
        its profile)}."""
        self._profiles, self._arrived, self._samples = {}, Counter(), samples
        try:
            yield self._profiles
        finally:
            self._profiles = None

    @contextlib.contextmanager
    def counting(self, layouts: dict):
        """Count in the backward inside the block; layouts: of gradients, with keys as of `profiled`."""
        self._layouts, self._arrived, self.unknown = layouts, Counter(), False
        self._missing = Counter({key: len(calls) for key, calls in self.calls.items()})
        yield
        for key in list(self.calls):  # calls that the loss does not depend on have no gradient
            self._finish(key)

    def _on_input(self, layer):
        def keep(module, args, out):
            self._inputs[layer] = out

        return keep

    def _on_call(self, layer, args, out):
        name = self.layers[layer]
        x = self._inputs.pop(layer, args[0] if args else None)
        if not isinstance(x, torch.Tensor):
            raise ValueError(f"GradNormScorer: layers must be called with their input as the first argument, got none "
                             f"for {name}")
        if layer in self.unproved:
            self._prove(layer, x, out)
        keys = [id(p) for p in parameters_of(layer) if id(p) in self.counted]
        if not keys or not isinstance(out, torch.Tensor):
            return None
        if self._forward:
            self._seen.append((name, tuple(x.shape), tuple(out.shape), torch.is_grad_enabled()))
        if not torch.is_grad_enabled():  # a forward may switch gradients off for a part
            self._hidden.update(keys)
            return None
        if not out.requires_grad:
            out = _Start.apply(out, self.anchor)
        if not self._forward and self._hidden.isdisjoint(keys):
            return out  # of a checkpoint that makes its tensors again, not its graph
        if not self._forward and self._shared:
            raise RuntimeError("GradNormScorer: layers must not be called in the backward where all samples use a "
                               f"parameter alike, got {name} in a checkpoint and {', '.join(self._shared)}")
        kept = form_of(layer).prepare(layer, x.detach(), out)
        from_inputs = self.watch is not None and any(map(self.watch.depends_on_inputs, (x, *args[:1])))
        call = Call(layer, kept, kept._version, len(keys), from_inputs)
        for key in keys if self._profiles is None else ():
            self.calls[key].append(call)
        out.register_hook(lambda grad: self._on_grad(call, keys, grad))
        return out

    @torch.no_grad()
    def _prove(self, layer, x, out) -> None:
        try:
            expected = base_output(layer, x.detach())
        except Exception:  # whatever a base raises that cannot take this input
            self.other.append(layer)
        else:
            if expected is not None and not (expected.shape == out.shape and torch.allclose(
                    expected.to(out.dtype), out.detach(), rtol=1e-3, atol=1e-5, equal_nan=True)):
                self.other.append(layer)
        self.unproved.discard(layer)

    def _on_grad(self, call, keys, grad) -> None:
        number = self._arrived[call.layer]
        self._arrived[call.layer] += 1
        if self._profiles is not None:
            self._profiles[call.layer, number] = grad.dim(), profile(grad, self._samples)
            return
        layout = self._layouts.get((call.layer, number))
        if layout is None and grad.numel() and bool(grad.any()):  # first of its kind, or 0 till now
            self.unknown = True
            return
        if call.x._version != call.version:
            raise RuntimeError(f"GradNormScorer: inputs must not be changed in place, got that of "
                               f"{self.layers[call.layer]}")
        call.x, call.grad, call.layout = form_of(call.layer).arrange(
            call.layer, call.x, grad.detach(), layout or Layout())
        for key in keys:
            self._missing[key] -= 1
            if not self._missing[key] and key not in self._hidden:
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
            value = sum(map(bias_gradients, calls)).square().sum(dim=1)
        elif len(calls) > 1 or calls[0].layout.rows > 1:
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
        """Return the squared norms of one weight in several calls: the gradients are added before they are squared."""
        if isinstance(form_of(calls[0].layer), NormForm):
            return sum(map(norm_gradients, calls)).square().sum(dim=1)
        factors = [self._factor(call.layer) for call in calls]
        pairs = [matrices_of(call) for call in calls]
        if any(factor is not factors[0] for factor in factors):
            return explicit_squares(pairs, factors)
        x, grad = (torch.cat(side, dim=2) for side in zip(*pairs, strict=True))
        factor = None if factors[0] is None else factors[0].reshape(len(x), grad.shape[3], x.shape[3])
        return sum(LINEAR.squares(None, x[i], grad[i], weight=True, bias=False,
                                  factor=None if factor is None else factor[i]) for i in range(len(x)))

    def _factor(self, layer) -> torch.Tensor | None:
        """Return d quantized weight / d float weight, elementwise: the clip mask and what the weight is multiplied by.
        """
        quantizer = weight_quantizer_of(layer)
        if not self.latent or quantizer is None:
            return None
        if layer not in self._factors:
            with torch.enable_grad():
                weight = layer.weight_by_channel().detach().requires_grad_()
                self._factors[layer] = torch.autograd.grad(quantizer(weight).sum(), weight)[0]
        return self._factors[layer]
