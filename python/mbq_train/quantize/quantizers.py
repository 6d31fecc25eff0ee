"""Fake-quantizers for weights and activations: a learned scale for every bit-width, one bit-width at a time in use."""

import math
import warnings

import torch
from torch import nn

import mbq_kernels

from .. import distributed
from .bits import FLOAT, BitState, code_range, in_mode, same_random_numbers, set_bits

SMALLEST_SCALE = 1e-8


class _Quantizer(nn.Module):
    """What both quantizers share: scales per bit-width, when they are initialised, and the call of the kernel.

    The scales are Parameters from construction, so that an optimizer built at any time sees them, and get their
    values in place at the first training batch seen at their bit-width: of all processes, where there are several.
    """

    axis: int | None = None
    kernel = staticmethod(mbq_kernels.fake_quantize)  # what it calls with `current()` and `options()`

    def __init__(self, bit_state: BitState, shape, *, signed: bool | None, layer_name: str, like: torch.Tensor,
                 own_bits: int | None = None):
        super().__init__()
        self.bit_state, self.signed, self.layer_name, self.own_bits = bit_state, signed, layer_name, own_bits
        self._options = {"device": like.device, "dtype": torch.promote_types(like.dtype, torch.float32)}
        self.scales = self._parameter_per_bits(torch.ones, shape)
        self.offsets = None
        self.register_buffer("initialised", torch.zeros(len(self.kept()), dtype=torch.bool, device=like.device))
        self.register_buffer("is_signed", torch.tensor(bool(signed), device=like.device))
        self.missing = set(self.kept())  # the buffers' twin in Python: reading them would wait for the device
        self.register_load_state_dict_post_hook(_read_flags)

    def _parameter_per_bits(self, fill, shape) -> nn.ParameterDict:
        return nn.ParameterDict({str(b): nn.Parameter(fill(shape, **self._options)) for b in self.kept()})

    @property
    def bits(self) -> int:
        """The bit-width it computes at: its own, or the one in use."""
        return self.own_bits or self.bit_state.bits

    def kept_at(self, bits: int) -> int:
        """The bit-width under which the parameters that serve `bits` are kept."""
        return self.own_bits or bits

    def kept(self) -> list[int]:
        """The bit-widths that have parameters, from high to low."""
        return list(dict.fromkeys(map(self.kept_at, self.bit_state.trained)))

    def _apply(self, fn, recurse=True):
        """What .to(), .half() and the like do: scales and offsets stay in float32 at least."""
        def keep(tensor):
            moved = fn(tensor)
            return tensor.to(moved.device) if moved.dtype in (torch.float16, torch.bfloat16) else moved
        return super()._apply(keep, recurse)

    def add(self, bit_widths) -> list[int]:
        """Make parameters for more bit-widths, for the caller to fill: those that are returned."""
        if self.own_bits:
            return []
        for parameters in filter(None, (self.scales, self.offsets)):
            for b in bit_widths:
                parameters[str(b)] = nn.Parameter(torch.empty_like(next(iter(parameters.values()))))
        self.initialised = self.initialised.new_ones(len(self.initialised) + len(bit_widths))
        return list(bit_widths)

    def forward(self, x):
        """x at the bit-width in use, in x's dtype, or autocast's where that is on; x itself at 32 bits."""
        if torch.compiler.is_compiling():  # the bit-width as a symbol: two compiles serve all of them
            with torch._dynamo.patch_dynamo_config(allow_unspec_int_on_nn_module=True):
                return self._quantize(x)
        return self._quantize(x)

    def _quantize(self, x):
        if self.bit_state.bits == FLOAT:
            return x
        if self.missing:
            self._initialise(x.detach())
        return self.kernel(x, *self.current(), **self.options(), grad_factor=self._grad_factor(x),
                           out_dtype=autocast_dtype(x))

    def options(self) -> dict:
        """The keyword arguments of the kernel that say what is computed."""
        return {"bits": self.bits, "signed": self.signed, "axis": self.axis}

    def current(self) -> tuple[torch.Tensor | None, ...]:
        """(scale, offset) of the bit-width in use; offset is None where none is learned.

        In a compiled graph, which serves all bit-widths, they are picked at run time: the others then get gradients of
        zeros, which `drop_idle_gradients` takes away.
        """
        return self._pick(self.scales), None if self.offsets is None else self._pick(self.offsets)

    def _pick(self, parameters: nn.ParameterDict) -> torch.Tensor:
        if torch.compiler.is_compiling() and len(parameters) > 1:
            return torch.stack([parameters[str(b)] for b in self.bit_state.trained])[self.bit_state.index]
        return parameters[str(self.kept_at(self.bit_state.bits))]

    def _grad_factor(self, x) -> float | None:
        return None  # 1 / sqrt(N hi)

    def check_initialised(self, bit_widths) -> None:
        """Raise RuntimeError unless the scales of all `bit_widths` have their first values."""
        if missing := self.missing.intersection(map(self.kept_at, bit_widths)):
            raise RuntimeError(f"{self.layer_name}: {type(self).__name__} must have seen a training batch at "
                               f"{max(missing)} bits before it is used, got none")

    @torch.compiler.disable
    @torch.no_grad()
    def _initialise(self, x) -> None:
        bits = self.kept_at(self.bit_state.bits)
        if bits not in self.missing:
            return
        if not self.training:
            self.check_initialised([bits])
        x = x.to(self._options["dtype"])
        if not torch.isfinite(x).all() or not x.numel():
            raise RuntimeError(f"{self.layer_name}: the first training batch must be finite and not empty, "
                               f"got NaN, infinity or nothing at {bits} bits")
        if self.signed is None:
            self.signed = bool(distributed.minimum(x.min()) < 0)
            self.is_signed.fill_(self.signed)
        scale, offset = self._first_values(x, code_range(bits, self.signed)[1])
        self.scales[str(bits)].copy_(scale)
        if self.offsets is not None:
            self.offsets[str(bits)].copy_(offset)
        self.initialised[self.kept().index(bits)] = True
        self.missing.discard(bits)


class WeightQuantizer(_Quantizer):
    """Weights: signed, symmetric, one learned scale per output channel (axis 0) and bit-width.

    scale starts at 2 mean|w| / sqrt(hi) of its channel (Esser et al., 2020, arXiv 1902.08153, section 2.1).

    Args:
        bit_state: the model's.
        weight: (C, ...), floating point - gives the number of channels, device and dtype.
        layer_name: what error messages call the layer.
        correction: give every channel of the quantized weight the mean and deviation that it has in float, at every
            bit-width, so that one BatchNorm can serve all of them (Kim et al., 2025, arXiv 2510.20673).
    """

    axis = 0
    corrected_kernel = staticmethod(mbq_kernels.fake_quantize_corrected)

    def __init__(self, bit_state: BitState, weight: torch.Tensor, *, layer_name: str = "layer",
                 correction: bool = False):
        super().__init__(bit_state, (weight.shape[0],), signed=True, layer_name=layer_name, like=weight)
        self.correction = correction
        if correction:
            self.kernel = self.corrected_kernel
        self.held = {}  # {bits: quantized weight}: what a WeightBank has made ready, empty without one

    def forward(self, weight):
        if self.held and self.bit_state.bits in self.held:
            return self.held[self.bit_state.bits]
        return super().forward(weight)

    def _first_values(self, weight, hi):
        return first_scale(weight.abs().flatten(1).mean(dim=1), math.sqrt(hi) / 2), None

    def stored(self, weight, bits: int):
        """(x, scale, offset or None, signed): what is rounded to codes of `bits` bits, before any correction."""
        return weight, self.scales[str(bits)], None, True

    @staticmethod
    def quantize_all(quantizers, weights, bits) -> list:
        """Of every weight, quantized by its quantizer, one tensor per bit-width in `bits`; the weights share a dtype
        and a device."""
        scales = [[quantizer.scales[str(b)] for b in bits] for quantizer in quantizers]
        if quantizers[0].correction:
            return [mbq_kernels.fake_quantize_corrected(weight, of_weight, bits=bits, axis=0,
                                                        out_dtype=autocast_dtype(weight))
                    for weight, of_weight in zip(weights, scales, strict=True)]
        return mbq_kernels.fake_quantize_foreach(weights, scales, bits=bits, axis=0,
                                                 out_dtype=autocast_dtype(weights[0]))


class ActivationQuantizer(_Quantizer):
    """Activations: one learned scale per bit-width for the whole tensor.

    scale starts at 2 mean|x - offset| / sqrt(hi) of the first training batch at its bit-width (Huang et al., 2025,
    arXiv 2502.01199, eq. 4-5; initial values as in its public code). In several processes the means are those of the
    whole batch, and so are the gradients of the scales once they are averaged.

    Args:
        bit_state: the model's.
        signed: code range; None: signed if the first training batch, at any bit-width, shows a negative value. With
            an offset None means unsigned.
        learn_offset: learn a real offset per bit-width; it starts at the batch's minimum, 0 after ReLU, and at 0 with
            signed codes (our choice).
        own_bits: compute at this bit-width, whatever the model's; None: at the model's.
        layer_name: what error messages call the layer.
        like: a tensor that gives device and dtype [default float32 on CPU].
    """

    def __init__(self, bit_state: BitState, *, signed: bool | None = None, learn_offset: bool = False,
                 own_bits: int | None = None, layer_name: str = "layer", like: torch.Tensor | None = None):
        like = torch.empty(0) if like is None else like
        signed = False if learn_offset and signed is None else signed
        super().__init__(bit_state, (), signed=signed, layer_name=layer_name, like=like, own_bits=own_bits)
        if learn_offset:
            self.offsets = self._parameter_per_bits(torch.zeros, ())

    def _first_values(self, x, hi):
        if self.offsets is None and not self.signed and (x < 0).any():
            warnings.warn(f"{self.layer_name}: inputs are negative and its activation quantizer is unsigned: they "
                          "become 0; a rule of convert can say signed", RuntimeWarning, stacklevel=2)
        offset = None
        if self.offsets is not None:
            offset = torch.zeros_like(x.min()) if self.signed else distributed.minimum(x.min())
        distances = x if offset is None else x - offset
        return first_scale(distributed.mean(distances.abs().mean()), math.sqrt(hi) / 2), offset

    def _grad_factor(self, x):
        processes = distributed.world_size()
        if processes == 1:
            return None
        return 1 / math.sqrt(max(1, x.numel() * processes) * code_range(self.bits, self.signed)[1])


def quantizers(model: nn.Module) -> list[_Quantizer]:
    """Every quantizer in `model`, in the order of registration."""
    return [module for module in model.modules() if isinstance(module, _Quantizer)]


@torch.no_grad()
def clamp_scales(model: nn.Module) -> None:
    """Bring every scale back to at least 1e-8, in place: an optimizer step can carry one through zero."""
    scales = [scale for quantizer in quantizers(model) for scale in quantizer.scales.values()]
    if scales:
        torch._foreach_clamp_min_(scales, SMALLEST_SCALE)


def drop_idle_gradients(model: nn.Module, used) -> None:
    """Set the gradients of scales and offsets of bit-widths that are not in `used` to None.

    A compiled model gives them zeros, and an optimizer with momentum would move them. Call it before the step.
    """
    for quantizer in quantizers(model):
        kept = {str(quantizer.kept_at(b)) for b in used}
        for parameters in filter(None, (quantizer.scales, quantizer.offsets)):
            for bits, parameter in parameters.items():
                if bits not in kept:
                    parameter.grad = None


@torch.no_grad()
def initialise(model: nn.Module, *batch) -> None:
    """Give every quantizer that still lacks them its first values from one training batch, at every bit-width.

    Runs model(*batch) in training mode without gradients. Afterwards BatchNorm's statistics, the random numbers, modes
    and bit-width are as before. torch.compile and CUDA graphs need it before they start; otherwise the first
    forward at each bit-width does the same.
    """
    missing = {next(b for b in quantizer.bit_state.trained if quantizer.kept_at(b) == kept)
               for quantizer in quantizers(model) for kept in quantizer.missing}
    own = {id(buffer) for quantizer in quantizers(model) for buffer in quantizer.buffers()}
    others = [buffer for buffer in model.buffers() if id(buffer) not in own]
    before = [buffer.clone() for buffer in others]
    try:
        with same_random_numbers(model), in_mode(model, training=True):
            for bits in sorted(missing, reverse=True):
                set_bits(model, bits)
                model(*batch)
    finally:
        for buffer, value in zip(others, before, strict=True):
            buffer.copy_(value)


def first_scale(size, divisor: float):
    """size / divisor, at least 1e-8; a channel of size 0 takes the mean of all channels, and 1 where all are 0."""
    whole = size.mean()
    spare = torch.where(whole == 0, torch.ones_like(whole), whole)
    scale = torch.where(size == 0, spare, size) / divisor
    return torch.where(scale < SMALLEST_SCALE, SMALLEST_SCALE, scale)


def autocast_dtype(x) -> torch.dtype | None:
    device = x.device.type
    if x.dtype == torch.float64 or not torch.is_autocast_enabled(device):  # autocast leaves float64 alone
        return None
    return torch.get_autocast_dtype(device)


def _read_flags(quantizer: _Quantizer, incompatible_keys) -> None:
    flags = quantizer.initialised.tolist()
    quantizer.missing = {b for b, done in zip(quantizer.kept(), flags, strict=True) if not done}
    if any(flags):
        quantizer.signed = bool(quantizer.is_signed)
