"""Fake-quantizers for weights and activations: a learned scale for every bit-width, one bit-width at a time in use."""

import math
import warnings

import mbq_kernels
import torch
from torch import nn

from .bits import FLOAT, BitState, code_range

SMALLEST_SCALE = 1e-8


class _Quantizer(nn.Module):
    """What both quantizers share: scales per bit-width, when they are initialised, and the call of the kernel.

    The scales are Parameters from construction, so that an optimizer built at any time sees them, and get their
    values in place at the first training batch seen at their bit-width.
    """

    axis: int | None = None

    def __init__(self, bit_state: BitState, shape, *, signed: bool, layer_name: str, like: torch.Tensor):
        super().__init__()
        self.bit_state, self.signed, self.layer_name = bit_state, signed, layer_name
        self._options = {"device": like.device, "dtype": torch.promote_types(like.dtype, torch.float32)}
        self.scales = self._parameter_per_bits(torch.ones, shape)
        self.offsets = None
        self.register_buffer("initialised", torch.zeros(len(bit_state.trained), dtype=torch.bool, device=like.device))
        self._ready = set()  # the buffer's twin in Python: reading the buffer would wait for the device
        self.register_load_state_dict_post_hook(_read_flags)

    def _parameter_per_bits(self, fill, shape) -> nn.ParameterDict:
        return nn.ParameterDict({str(b): nn.Parameter(fill(shape, **self._options)) for b in self.bit_state.trained})

    def forward(self, x):
        """x at the bit-width in use, in x's dtype, or autocast's where that is on; x itself at 32 bits."""
        bits = self.bit_state.bits
        if bits == FLOAT:
            return x
        if bits not in self._ready:
            self._initialise(x.detach(), bits)
        scale, offset = self.parameters_at(bits)
        return mbq_kernels.fake_quantize(x, scale, offset, bits=bits, signed=self.signed, axis=self.axis,
                                         out_dtype=_autocast_dtype(x))

    def parameters_at(self, bits: int):
        """(scale, offset) of one bit-width; offset is None where none is learned."""
        return self.scales[str(bits)], None if self.offsets is None else self.offsets[str(bits)]

    @torch.no_grad()
    def _initialise(self, x, bits: int) -> None:
        if not self.training:
            raise RuntimeError(f"{self.layer_name}: {type(self).__name__} must have seen a training batch at {bits} "
                               "bits before it is used in eval mode, got none")
        scale, offset = self._first_values(x.to(self._options["dtype"]), bits)
        if not torch.isfinite(scale).all():
            raise RuntimeError(f"{self.layer_name}: the first training batch must be finite and not empty, "
                               f"got NaN, infinity or nothing at {bits} bits")
        own_scale, own_offset = self.parameters_at(bits)
        own_scale.copy_(scale)
        if own_offset is not None:
            own_offset.copy_(offset)
        self.initialised[self.bit_state.trained.index(bits)] = True
        self._ready.add(bits)


class WeightQuantizer(_Quantizer):
    """Weights: signed, symmetric, one learned scale per output channel (axis 0) and bit-width.

    scale starts at 2 mean|w| / sqrt(hi) of its channel (Esser et al., 2020, arXiv 1902.08153, section 2.1).

    Args:
        bit_state: the model's.
        weight: (C, ...), floating point - gives the number of channels, device and dtype.
        layer_name: what error messages call the layer.
    """

    axis = 0

    def __init__(self, bit_state: BitState, weight: torch.Tensor, *, layer_name: str = "layer"):
        super().__init__(bit_state, (weight.shape[0],), signed=True, layer_name=layer_name, like=weight)

    def _first_values(self, weight, bits):
        return _first_scale(weight.abs().flatten(1).mean(dim=1), code_range(bits, self.signed)[1]), None


class ActivationQuantizer(_Quantizer):
    """Activations: one learned scale per bit-width for the whole tensor, unsigned unless `signed`.

    scale starts at 2 mean|x - offset| / sqrt(hi) of the first training batch at its bit-width (Huang et al., 2025,
    arXiv 2502.01199, eq. 4-5; initial values as in its public code).

    Args:
        bit_state: the model's.
        signed: code range of inputs that can be negative (with an offset: leave it off).
        learn_offset: learn a real offset per bit-width; it starts at the batch's minimum, 0 after ReLU (our choice).
        layer_name: what error messages call the layer.
        like: a tensor that gives device and dtype [default float32 on CPU].
    """

    def __init__(self, bit_state: BitState, *, signed: bool = False, learn_offset: bool = False,
                 layer_name: str = "layer", like: torch.Tensor | None = None):
        like = torch.empty(0) if like is None else like
        super().__init__(bit_state, (), signed=signed, layer_name=layer_name, like=like)
        if learn_offset:
            self.offsets = self._parameter_per_bits(torch.zeros, ())

    def _first_values(self, x, bits):
        hi = code_range(bits, self.signed)[1]
        if self.offsets is not None and x.numel():
            return _first_scale((x - x.min()).abs().mean(), hi), x.min()
        if not self.signed and (x < 0).any():
            warnings.warn(f"{self.layer_name}: inputs are negative and its activation quantizer is unsigned: they "
                          "become 0; name the layer in convert(..., signed_inputs=...)", RuntimeWarning, stacklevel=2)
        return _first_scale(x.abs().mean(), hi), None


def quantizers(model: nn.Module) -> list[_Quantizer]:
    """Every quantizer in `model`, in the order of registration."""
    return [module for module in model.modules() if isinstance(module, _Quantizer)]


@torch.no_grad()
def clamp_scales(model: nn.Module) -> None:
    """Bring every scale back to at least 1e-8, in place: an optimizer step can carry one through zero."""
    for quantizer in quantizers(model):
        for scale in quantizer.scales.values():
            scale.clamp_(min=SMALLEST_SCALE)


def _first_scale(mean_abs, hi: int):
    """2 mean|v| / sqrt(hi); a channel of zeros takes the mean of all channels, and 1 where all are zero."""
    whole = mean_abs.mean()
    spare = torch.where(whole == 0, torch.ones_like(whole), whole)
    scale = 2 * torch.where(mean_abs == 0, spare, mean_abs) / math.sqrt(hi)
    return torch.where(scale < SMALLEST_SCALE, SMALLEST_SCALE, scale)


def _autocast_dtype(x) -> torch.dtype | None:
    device = x.device.type
    if x.dtype == torch.float64 or not torch.is_autocast_enabled(device):  # autocast leaves float64 alone
        return None
    return torch.get_autocast_dtype(device)


def _read_flags(quantizer: _Quantizer, incompatible_keys) -> None:
    flags = quantizer.initialised.tolist()
    quantizer._ready = {b for b, done in zip(quantizer.bit_state.trained, flags, strict=True) if done}
