"""What one call of a layer leaves behind for the gradients of its parameters, by type of layer.

N samples; x: what the parameters met, grad: the gradient of the loss, summed over samples, in the layer's output.
"""

import torch
import torch.nn.functional as F
from torch import nn

import mbq_kernels

from ..conversion.supported import base_type, parts, quant_types
from ..quantize.batch_norm import BATCH_NORMS
from ..quantize.layers import QuantTransposedLinear
from ..quantize.quantizer import weight_quantizer_of
from .layouts import Layout

_CHUNK = 2**22  # elements of gradients of single samples that are in memory at once, where nothing else will do


class LinearForm:
    """y = x @ weight.T + bias: the gradient is sum_t grad_t x_t^T. `prepare` meets what the layer does; the other
    methods have the samples first. Serves y = x @ weight + bias too, whose gradient is the transpose.
    """

    def fits(self, layer, layout: Layout, dims: int) -> bool:
        """Return whether samples that lie so in an output of `dims` dimensions can be told apart."""
        return layout.dim < dims - self.trailing(layer)

    def trailing(self, layer) -> int:
        """Return the number of dimensions of the output, the last ones, in which all of it is made of the same x."""
        return 1

    def arrange(self, layer, x, grad, layout: Layout):
        """Return (x, grad, layout) with the samples first, as far as the layer's kind lets them be moved."""
        if layout == Layout():
            return x, grad, layout
        return layout.first(x), layout.first(grad), Layout()

    def prepare(self, layer, x, out):
        """Return what must be kept of x until the gradient is there."""
        return x.to(out.dtype)

    def squares(self, layer, x, grad, *, weight: bool, bias: bool, factor):
        """Return (N,) squared norms of the gradients of weight and bias, or of one of them."""
        return mbq_kernels.sample_grad_norm_linear(x, grad, bias=bias, weight_factor=factor)

    def matrices(self, layer, x, grad):
        """Return (groups, N, T, in), (groups, N, T, out): weight gradients are products over T, one for every group."""
        x, grad = (value.reshape(len(value), -1, value.shape[-1])[None] for value in (x, grad))
        return x, grad

    def biases(self, layer, grad):
        """Return (N, C) gradients of the bias."""
        return grad.reshape(len(grad), -1, grad.shape[-1]).sum(dim=1, dtype=wide_type(grad))


class ConvForm(LinearForm):
    """Conv1d and Conv2d, with any padding, dilation and groups."""

    def fits(self, layer, layout, dims):
        return layout.dim == 0

    def arrange(self, layer, x, grad, layout):
        if x.dim() == len(layer.kernel_size) + 1:  # one image, without a dimension for samples
            return x[None], grad[None], Layout()
        return x, grad, layout

    def prepare(self, layer, x, out):
        x = x.to(out.dtype)
        if layer.padding_mode == "zeros":
            return x
        return F.pad(x, layer._reversed_padding_repeated_twice, mode=layer.padding_mode)

    def squares(self, layer, x, grad, *, weight, bias, factor):
        function = mbq_kernels.sample_grad_norm_conv1d if x.dim() == 3 else mbq_kernels.sample_grad_norm_conv2d
        padding = layer.padding if layer.padding_mode == "zeros" else 0
        return function(x, grad, kernel_size=layer.kernel_size, stride=layer.stride, padding=padding,
                        dilation=layer.dilation, groups=layer.groups, bias=bias, weight_factor=factor)

    def matrices(self, layer, x, grad):
        if layer.padding_mode == "zeros":
            x = F.pad(x, layer._reversed_padding_repeated_twice)
        sizes = [layer.kernel_size, layer.dilation, (0,) * len(layer.kernel_size), layer.stride]
        if x.dim() == 3:  # as images of one row
            x, one = x.unsqueeze(2), (1, 1, 0, 1)
            sizes = [(first, *size) for first, size in zip(one, sizes, strict=True)]
        columns = F.unfold(x, *sizes).unflatten(1, (layer.groups, -1))
        grad = grad.flatten(2).unflatten(1, (layer.groups, -1))
        return columns.permute(1, 0, 3, 2), grad.permute(1, 0, 3, 2)

    def biases(self, layer, grad):
        return grad.flatten(2).sum(dim=2, dtype=wide_type(grad))


class EmbeddingForm(LinearForm):
    """nn.Embedding: row i of the gradient is the sum of grad where x is i."""

    def prepare(self, layer, x, out):
        if layer.scale_grad_by_freq:
            raise ValueError("GradNormScorer: scale_grad_by_freq must be off, which mixes the samples of a batch, got "
                             "an embedding with it on")
        return x

    def squares(self, layer, x, grad, *, weight, bias, factor):
        return mbq_kernels.sample_grad_norm_embedding(x, grad, padding_idx=layer.padding_idx)

    def matrices(self, layer, x, grad):
        rows = F.one_hot(x.reshape(len(x), -1), layer.num_embeddings).to(grad.dtype)
        if layer.padding_idx is not None:
            rows[..., layer.padding_idx] = 0
        return grad.reshape(len(grad), -1, grad.shape[-1])[None], rows[None]


class NormForm(LinearForm):
    """weight * normalised + bias; the gradient of the weight is the sum of grad * normalised."""

    def __init__(self, normalise, *, channels_first: bool = False):
        self.normalise, self.channels_first = normalise, channels_first

    def fits(self, layer, layout, dims):
        return layout.dim == 0 if self.channels_first else super().fits(layer, layout, dims)

    def trailing(self, layer):
        return len(layer.normalized_shape)

    def arrange(self, layer, x, grad, layout):
        return (x, grad, layout) if self.channels_first else super().arrange(layer, x, grad, layout)

    def prepare(self, layer, x, out):
        return x

    def squares(self, layer, x, grad, *, weight, bias, factor):
        x = self._normal(layer, x, grad)
        if self.channels_first:
            return mbq_kernels.sample_grad_norm_batch_norm(x, grad, weight=weight, bias=bias)
        return mbq_kernels.sample_grad_norm_layer_norm(x, grad, normalized_shape=layer.normalized_shape,
                                                       weight=weight, bias=bias)

    def weights(self, layer, x, grad):
        """Return (N, C) gradients of the weight."""
        return self.biases(layer, wide(grad) * self._normal(layer, x, grad))

    def biases(self, layer, grad):
        if self.channels_first:
            return grad.flatten(2).sum(dim=2, dtype=wide_type(grad)) if grad.dim() > 2 else wide(grad)
        return grad.reshape(len(grad), -1, layer.weight.numel()).sum(dim=1, dtype=wide_type(grad))

    def _normal(self, layer, x, grad):
        return self.normalise(layer, x.to(torch.promote_types(x.dtype, grad.dtype)))  # autocast may have widened it


def _batch_normal(layer, x):
    return F.batch_norm(x, layer.running_mean, layer.running_var, eps=layer.eps)


LINEAR = LinearForm()
_FORM_OF = {nn.Linear: LINEAR, QuantTransposedLinear: LINEAR, nn.Conv1d: ConvForm(), nn.Conv2d: ConvForm(),
         nn.Embedding: EmbeddingForm(),
         nn.LayerNorm: NormForm(lambda layer, x: F.layer_norm(x, layer.normalized_shape, eps=layer.eps)),
         nn.RMSNorm: NormForm(lambda layer, x: F.rms_norm(x, layer.normalized_shape, eps=layer.eps)),
         nn.GroupNorm: NormForm(lambda layer, x: F.group_norm(x, layer.num_groups, eps=layer.eps), channels_first=True),
         **dict.fromkeys(BATCH_NORMS, NormForm(_batch_normal, channels_first=True))}
SUPPORTED = ("Linear, Conv1d, Conv2d, Embedding, LayerNorm, RMSNorm, GroupNorm, BatchNorm, transformers' Conv1D or "
             "their subclasses")


def form_of(layer: nn.Module):
    """Return what knows the gradients of `layer`, None where nothing does."""
    return next((form for base, form in _FORM_OF.items() if isinstance(layer, base)), None) or (
        LINEAR if _transposed_linear(layer) else None)


def base_output(layer: nn.Module, x) -> torch.Tensor | None:
    """Return what a layer of the supported type would compute where `layer`, a subclass, may do something else."""
    base = _transposed_linear(layer) or next(base for base in _FORM_OF if isinstance(layer, base))
    if type(layer) is base or weight_quantizer_of(layer) is not None:
        return None
    return base.forward(layer, x)


def _transposed_linear(layer: nn.Module) -> type | None:
    """Return the Conv1D of transformers where `layer` is an instance of it, without importing it."""
    base = base_type(layer)
    return base if quant_types().get(base) is QuantTransposedLinear else None


def scored_layers(model: nn.Module) -> dict[nn.Module, str]:
    """Return every layer whose gradients are known, with its first name."""
    hidden = {part for module in model.modules() for part in parts(module)}
    return {module: name for name, module in model.named_modules()
            if module not in hidden and form_of(module) and any(True for _ in module.parameters(recurse=False))}


def explicit_squares(pairs, factors) -> torch.Tensor:
    """Return squared norms where quantizers of tied weights differ: of sums of factor * gradient, a few samples at a
    time."""
    (groups, samples, _, width), height = pairs[0][0].shape, pairs[0][1].shape[3]
    chunk = max(1, _CHUNK // (groups * height * width))
    squares = []
    for begin in range(0, samples, chunk):
        total = 0
        for (x, grad), factor in zip(pairs, factors, strict=True):
            part = torch.einsum("gnto,gnti->ngoi", *(wide(v[:, begin:begin + chunk]) for v in (grad, x)))
            total = total + (part if factor is None else part * factor.reshape(part.shape[1:]))
        squares.append(total.square().flatten(1).sum(dim=1))
    return torch.cat(squares)


def parameters_of(layer: nn.Module) -> tuple[nn.Parameter | None, nn.Parameter | None]:
    """Return (weight, bias)."""
    return layer.weight, getattr(layer, "bias", None)


def wide_type(x: torch.Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)


def wide(x: torch.Tensor) -> torch.Tensor:
    return x.to(wide_type(x))
