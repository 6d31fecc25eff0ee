"""The quantizers of Any-Precision: no learned scales, weights through tanh, inputs clamped to 0..1."""

import math
import warnings
from dataclasses import dataclass
from typing import ClassVar

import torch

import mbq_kernels

from .bits import FLOAT, BitState
from .quantizer import BaseWeightQuantizer, Quantizer, autocast_dtype
from .specs import ActivationSpec, WeightSpec, correction_option


def normalised(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return (E tanh(W) / max|tanh W|, E), E = mean|W|: the weight before it is rounded; E and the maximum are
    constants in the gradient (the maximum by our choice), and a weight of zeros stays one."""
    squashed = weight.tanh()
    with torch.no_grad():
        reach = weight.abs().mean()
        largest = torch.linalg.vector_norm(squashed, math.inf)
        largest = torch.where(largest == 0, torch.ones_like(largest), largest)
    return squashed / largest * reach, reach


def any_precision(weight: torch.Tensor, *, bits, correction: bool = False, out_dtype=None):
    """Return W_b = E (2 round((2^b - 1) u) / (2^b - 1) - 1), u = tanh(W) / (2 max|tanh W|) + 1/2, E = mean|W|.

    The gradient goes straight through to u. `correction` gives every channel the mean and deviation of
    E tanh(W) / max|tanh W|. bits: one bit-width, or a tuple of them for a tuple of results.

    Reference: Yu et al., "Any-Precision Deep Neural Networks", 2021, arXiv 1911.07346; Zhou et al., "DoReFa-Net", 2016,
    arXiv 1606.06160, eq. 9.
    """
    x, reach = normalised(weight)
    scale, offset = grid(reach, bits)
    options = {"bits": bits, "signed": False, "out_dtype": out_dtype}
    if correction:
        return mbq_kernels.fake_quantize_corrected(x, scale, offset, **options)
    function = mbq_kernels.fake_quantize_multi if isinstance(bits, tuple) else mbq_kernels.fake_quantize
    return function(x, scale, offset, **options)


def grid(reach, bits):
    """Return (scale, offset) of codes 0..2^b - 1 over [-E, E], (K,) each for several bit-widths."""
    reach = reach.to(torch.promote_types(reach.dtype, torch.float32)).clamp_min(torch.finfo(torch.float32).tiny)
    if not isinstance(bits, tuple):
        return _step(reach, bits), -reach
    return torch.stack([_step(reach, b) for b in bits]), -reach.expand(len(bits)).contiguous()


def _step(reach, bits):
    """Return 2 reach / hi and one ulp more, because a step rounded down would put the largest value beyond hi, where it
    has no gradient."""
    step = 2 * reach / (2**bits - 1)
    return torch.nextafter(step, torch.full_like(step, math.inf))


class AnyPrecisionWeight(BaseWeightQuantizer):
    """Weights: `any_precision` of them. At 32 bits E tanh(W) / max|tanh W|, the same without rounding.

    Args:
        bit_state, weight, layer_name, correction: as for WeightQuantizer. There are no scales to learn.
    """

    kernel = staticmethod(any_precision)

    def __init__(self, bit_state: BitState, weight: torch.Tensor, *, layer_name: str = "layer",
                 correction: bool = False):
        super().__init__(bit_state, signed=False, layer_name=layer_name)
        self.correction = correction

    def options(self):
        return {"bits": self.bits, "correction": self.correction}

    def _quantize(self, weight):
        if self.bit_state.bits == FLOAT:
            value, dtype = normalised(weight)[0], autocast_dtype(weight)
            return value if dtype is None else value.to(dtype)
        return super()._quantize(weight)

    def stored(self, weight, bits: int):
        x, reach = normalised(weight)
        return x, *grid(reach, bits), False

    @staticmethod
    def quantize_all(quantizers, weights, bits) -> list:
        """Return what the base class's does, from one read of each weight."""
        return [any_precision(weight, bits=tuple(bits), correction=quantizer.correction,
                              out_dtype=autocast_dtype(weight))
                for quantizer, weight in zip(quantizers, weights, strict=True)]


class AnyPrecisionActivation(Quantizer):
    """Activations: round((2^b - 1) clamp(x, 0, 1)) / (2^b - 1); at 32 bits max(x, 0), a plain ReLU.

    For inputs after a ReLU: what is negative becomes 0, with a warning where the first training batch shows it.

    Args:
        bit_state, layer_name: as for ActivationQuantizer.
    """

    def __init__(self, bit_state: BitState, *, layer_name: str = "layer"):
        super().__init__(bit_state, signed=False, layer_name=layer_name)
        self.looked = False  # for negative inputs

    def options(self):
        return {"bits": self.bits, "signed": False}

    def grid(self, bits: int):
        """Raise ValueError: these inputs are not exported."""
        raise ValueError("export_onnx: quantizer must be learned, double-rounding or round-clamp, got any-precision")

    def _quantize(self, x):
        if self.training and not self.looked and not torch.compiler.is_compiling():
            self.looked = True
            if (x < 0).any():
                warnings.warn(f"{self.layer_name}: inputs are negative and its activation quantizer is unsigned: they "
                              "become 0; Learned() activations keep them", RuntimeWarning, stacklevel=2)
        if self.bit_state.bits == FLOAT:
            return x.relu()
        return self.kernel(x, self.step(x), **self.options(), out_dtype=autocast_dtype(x))

    def step(self, x: torch.Tensor) -> torch.Tensor:
        """Return the step between two values at the bit-width in use. It is computed each time, because nothing fills a
        buffer outside the state dict after to_empty() or on the meta device."""
        half = torch.full((), 0.5, device=x.device, dtype=torch.promote_types(x.dtype, torch.float32))
        return _step(half, self.bits)


@dataclass(frozen=True)
class AnyPrecision(WeightSpec, ActivationSpec):
    """No learned scales: weights through tanh, inputs clamped to 0..1, for inputs after a ReLU.

    Args:
        correction: of weights - as for Learned.

    Reference: Yu et al., "Any-Precision Deep Neural Networks", 2021, arXiv 1911.07346.
    """

    name: ClassVar[str] = "any-precision"
    correction: bool = correction_option()

    def activations(self) -> "AnyPrecision":
        return AnyPrecision()

    def weight_quantizer(self, bit_state: BitState, weight: torch.Tensor, *, layer_name: str) -> AnyPrecisionWeight:
        return AnyPrecisionWeight(bit_state, weight, layer_name=layer_name, correction=self.correction)

    def input_quantizer(self, bit_state: BitState, *, like: torch.Tensor, layer_name: str) -> AnyPrecisionActivation:
        return AnyPrecisionActivation(bit_state, layer_name=layer_name)
