"""The base classes of quantizers: of all, which return a tensor at the bit-width in use, and of those of weights."""

from typing import NamedTuple

import torch
from torch import nn

import mbq_kernels

from .bits import FLOAT, BitState
from .own_bits import OwnBits


class Codes(NamedTuple):
    """A weight as integers: code * scale + offset is what its layer computes with.

    codes: int8 or uint8, in the weight's shape; scale: (C,) float32, or (C, groups) where groups of weights that lie
    side by side in a channel have one each; offset: (C,) float32 or None.
    """

    codes: torch.Tensor
    scale: torch.Tensor
    offset: torch.Tensor | None


class Quantizer(OwnBits):
    """Quantize a tensor at the bit-width in use; at 32 bits return it as it is.

    A subclass names the kernel and its arguments, `current` and `options`, or overrides `_quantize`. Nothing is learned
    and nothing kept for a bit-width, unless it is a ScaledQuantizer.

    Args:
        bit_state: the model's.
        signed: code range; None: not decided yet.
        layer_name: what error messages call the layer.
        own_bits: compute at this bit-width, whatever the model's; None: at the model's, or what `set_layer_bits` gave.
    """

    axis: int | None = None
    correction = False  # whether channels get back the mean and deviation that they have in float
    switchable = False  # whether the codes of the highest bit-width are all that lower ones need
    dynamic = False  # whether the range is measured in every call
    kernel = staticmethod(mbq_kernels.fake_quantize)
    _obsolete = ("initialised", "is_signed", "scale_units.rows", "scale_floors.rows")  # in states of earlier versions

    def __init__(self, bit_state: BitState, *, signed: bool | None, layer_name: str, own_bits: int | None = None):
        super().__init__(bit_state, layer_name=layer_name, fixed_bits=own_bits)
        self._signed = signed

    def __repr__(self):
        return f"{type(self).__name__}({self.extra_repr()})"  # without a line for each Parameter

    def extra_repr(self) -> str:
        """Return bit-widths, code range and channels, as print(model) shows them."""
        bits = self.own_bits or ", ".join(map(str, self.bit_state.trained))
        signs = {None: "by the first batch", True: "signed", False: "unsigned"}[self.signed]
        return ", ".join([f"bits={bits}", signs, "per tensor" if self.axis is None else f"axis={self.axis}"])

    @property
    def signed(self) -> bool | None:
        """Return whether codes are signed; None until the first batch has decided it."""
        self.look()
        return self._signed

    @property
    def missing(self) -> set[int]:
        """Return the bit-widths whose scales have no first values yet."""
        return set()

    def kept(self) -> list[int]:
        """Return the bit-widths that have parameters, from high to low."""
        return []

    def kept_at(self, bits: int) -> int:
        """Return the bit-width under which the parameters that serve `bits` are kept."""
        return self.fixed_bits or bits

    def learned(self) -> list[nn.ParameterDict]:
        """Return what is learned: Parameters by bit-width."""
        return []

    def add(self, bit_widths) -> list[int]:
        """Make parameters for more bit-widths, which the caller must fill; return the bit-widths that have got some."""
        return []

    def check_initialised(self, bit_widths) -> None:
        """Raise RuntimeError unless the scales of all `bit_widths` have their first values."""

    def forward(self, x):
        """Return x at the bit-width in use, in x's dtype, or autocast's where that is on; x itself at 32 bits."""
        if torch.compiler.is_compiling():  # the bit-width as a symbol: two compiles serve all of them
            with torch._dynamo.patch_dynamo_config(allow_unspec_int_on_nn_module=True):
                return self._quantize(x)
        return self._quantize(x)

    def _quantize(self, x):
        if self.bit_state.bits == FLOAT:
            return x
        return self.kernel(x, *self.current(), **self.options(), out_dtype=autocast_dtype(x))

    def current(self) -> tuple[torch.Tensor | None, ...]:
        """Return the tensors that the kernel takes after x at the bit-width in use."""
        return ()

    def options(self) -> dict:
        """Return the keyword arguments of the kernel that say what is computed."""
        return {"bits": self.bits}

    def update_state(self, state: dict, prefix: str, layer_bits: torch.Tensor) -> None:
        super().update_state(state, prefix, layer_bits)
        for name in self._obsolete:
            state.pop(prefix + name, None)


class BaseWeightQuantizer(Quantizer):
    """Quantize weights, output channels first: what a WeightBank, exports and deployment ask of every kind."""

    axis = 0
    rounding: str | None = None  # of the codes, where they are switchable
    sets_inputs = True  # whether `set_layer_bits` gives the layer's input the bit-width of the weight

    def hold(self, values: dict[int, torch.Tensor]) -> None:
        """Have the coming forwards return `values`, {bits: quantized weight}, until `bit_state.held` is emptied."""
        self.bit_state.held[self] = self.own_bits, values

    @property
    def held(self) -> dict[int, torch.Tensor]:
        """Return what a bank has made ready for the coming forwards, {bits: quantized weight}; empty without one, and
        where the layer has got another bit-width of its own since."""
        own, values = self.bit_state.held.get(self, (None, {}))
        return values if own == self.own_bits else {}

    def forward(self, weight):
        if self.bit_state.held and self.bit_state.bits in self.held:
            return self.held[self.bit_state.bits]
        return super().forward(weight)

    @staticmethod
    def quantize_all(quantizers, weights, bits) -> list:
        """Return every weight, quantized by its quantizer, one tensor per bit-width in `bits`; the quantizers are of
        one kind, the weights share a dtype and a device. A kind that can do it in fewer passes overrides this."""
        return [[quantizer.at(weight, b) for b in bits] for quantizer, weight in zip(quantizers, weights, strict=True)]

    def at(self, weight: torch.Tensor, bits: int) -> torch.Tensor:
        """Return `weight` at one of the trained bit-widths, whatever is in use."""
        state, before = self.bit_state, self.bit_state.snapshot()
        state.restore((bits, state.trained.index(bits), {}, before[-1]))
        try:
            return self(weight)
        finally:
            state.restore(before)

    def stored(self, weight: torch.Tensor, bits: int):
        """Return (x, scale, offset or None, signed): what is rounded to codes of `bits` bits, before any correction."""
        raise NotImplementedError(f"{self.layer_name}: {type(self).__name__} must define stored, or codes, to be "
                                  "exported, got neither")

    @torch.no_grad()
    def codes(self, weight: torch.Tensor, bits: int) -> Codes:
        """Return the codes of `weight` (C, ...) at `bits` bits, or at the layer's own bit-width, with the weight
        correction folded into the scale and the offset.

        Raises RuntimeError where the scale has no value yet, ValueError where no store can hold the codes.
        """
        bits = self.bits_at(bits)
        self.check_initialised([bits])
        x, scale, offset, signed = self.stored(weight, bits)
        options = {"bits": bits, "signed": signed, "axis": 0 if scale.dim() else None}
        codes = mbq_kernels.quantize_codes(x, scale, offset, **options)
        if self.correction:
            scale, offset = mbq_kernels.fold_correction(x, scale, offset, **options)
        return Codes(codes, *(None if parameter is None else parameter.float().expand(len(codes)).contiguous()
                              for parameter in (scale, offset)))

    def store_codes(self, weight: torch.Tensor, bits: int) -> Codes:
        """Return what `codes` does, as a store keeps it: signed codes of 1 bit are -1 and 1."""
        return self.codes(weight, bits)

    def stored_bits(self, bits: int | None) -> int | None:
        """Return the bit-width that a store of `bits` keeps of this layer: its own where it has one."""
        return self.own_bits or bits

    def code_bits(self, bits: int) -> int:
        """Return the bit-width of the integers that `codes` gives."""
        return self.bits_at(bits)


def quantizers(model: nn.Module) -> list[Quantizer]:
    """Return every quantizer in `model`, in the order of registration."""
    return [module for module in model.modules() if isinstance(module, Quantizer)]


def weight_quantizer_of(layer: nn.Module) -> BaseWeightQuantizer | None:
    """Return what quantizes the weight of a converted layer; None for any other module."""
    quantizer = layer._modules.get("weight_quantizer")  # getattr takes thrice the time
    return quantizer if isinstance(quantizer, BaseWeightQuantizer) else None


def autocast_dtype(x: torch.Tensor) -> torch.dtype | None:
    """Return the dtype that autocast asks for on x's device, None where it is off."""
    device = x.device.type
    if x.dtype == torch.float64 or not torch.is_autocast_enabled(device):  # autocast leaves float64 alone
        return None
    return torch.get_autocast_dtype(device)
