"""A trained network at one bit-width in operators of ONNX, which torch.onnx.export takes over as they are."""

import copy

import torch
from torch import nn

from ..conversion.plan import replace_modules
from ..quantize.batch_norm import BitBatchNorm
from ..quantize.bits import code_range, set_bits
from ..quantize.dynamic import DynamicQuantizer, token_range
from ..quantize.quantizer import Codes, Quantizer, quantizers
from .quantized_layers import quantized_layers

OPSET = 21  # the first with 4-bit integers
DEQUANTIZE = ("mbq", "Dequantize")  # codes * scale: domain and name of an operator that is in no file


def at_one_bit_width(model: nn.Module, bits: int) -> nn.Module:
    """Return a copy of `model`, on the CPU in eval mode, for export alone: its weights are codes at `bits` bits.

    Raises ValueError where nothing is quantized and for any-precision quantizers, and as BaseWeightQuantizer.codes,
    RuntimeError where a scale has no value yet.
    """
    model = copy.deepcopy(model).cpu().eval()
    layers = dict.fromkeys(quantized_layers("export_onnx", model).values())
    set_bits(model, bits)
    every, of_inputs = quantizers(model), {layer.input_quantizer for layer in layers}
    for quantizer in every:
        quantizer.check_initialised([quantizer.bits])
    rounded = {quantizer: (_DynamicInput if quantizer.dynamic else _RoundedInput)(quantizer) for quantizer in every
               if quantizer in of_inputs}
    for layer in layers:
        quantizer = layer.weight_quantizer
        codes = quantizer.codes(layer.weight_by_channel(), bits)
        layer.weight_quantizer = _StoredWeight(codes, bits=quantizer.code_bits(bits))
        layer.weight = None
        layer.input_quantizer = rounded.get(layer.input_quantizer, layer.input_quantizer)
    replace_modules(model, {module: module.in_use() for module in model.modules()
                            if isinstance(module, BitBatchNorm)})
    return model


def packed_codes(frozen: nn.Module) -> set[str]:
    """Return names of the codes in what `at_one_bit_width` returned of which two fit a byte."""
    return {f"{name}.codes" for name, module in frozen.named_modules()
            if isinstance(module, _StoredWeight) and module.bits <= 4}


class _StoredWeight(nn.Module):
    """x_hat = code * scale + offset, per output channel or group; `DEQUANTIZE` is an operator that torch cannot fold.

    Codes with a scale per group are (C, groups, size), and Reshape gives the product the weight's shape.
    """

    def __init__(self, weight: Codes, *, bits: int):
        super().__init__()
        self.bits, self.shape, groups = bits, weight.codes.shape, weight.scale.dim() > 1
        self.register_buffer("codes", weight.codes.reshape(*weight.scale.shape, -1) if groups else weight.codes)
        ones = [1] * (self.codes.dim() - weight.scale.dim())
        for name, values in (("scale", weight.scale), ("offset", weight.offset)):
            self.register_buffer(name, None if values is None else values.reshape(*values.shape, *ones))

    def forward(self, _):
        x = _onnx("::".join(DEQUANTIZE), self.codes, self.scale, like=self.codes, dtype=torch.float32)
        x = x if x.shape == self.shape else x.reshape(self.shape)
        return x if self.offset is None else x + self.offset


class _RoundedInput(nn.Module):
    """x_hat = clamp(rint((x - offset) / scale), lo, hi) * scale + offset; Clip only where 8 bits hold more codes.

    No DequantizeLinear: onnxruntime takes one before a layer for leave to compute the layer in integers, its bias too.
    """

    def __init__(self, quantizer: Quantizer):
        super().__init__()
        bits = quantizer.bits
        self.dtype = torch.int8 if quantizer.signed else torch.uint8
        self.is_sign = bits == 1 and quantizer.signed
        self.clips = bits < 8
        for name, values in zip(("scale", "offset"), quantizer.grid(bits), strict=True):
            self.register_buffer(name, values)
        for name, code in zip(("lo", "hi"), code_range(bits, quantizer.signed), strict=True):
            self.register_buffer(name, torch.tensor(code, dtype=self.dtype))
        self.register_buffer("zero_point", torch.tensor(0, dtype=self.dtype))

    def forward(self, x):
        x = x if self.offset is None else x - self.offset
        x = self._sign(x) if self.is_sign else self._rounded(x)
        return x if self.offset is None else x + self.offset

    def _rounded(self, x):
        code = _onnx("QuantizeLinear", x, self.scale, self.zero_point, like=x, dtype=self.dtype)
        if self.clips:
            code = _onnx("Clip", code, self.lo, self.hi, like=x, dtype=self.dtype)
        return code.float() * self.scale

    def _sign(self, x):
        """Return x at 1 bit, its sign times the scale: the code 0 that rounding could give does not exist."""
        return torch.where(x / self.scale < 0, -self.scale, self.scale)


class _DynamicInput(nn.Module):
    """What fake_quantize_dynamic does to a token, in operators whose every result is rounded by itself.

    1 / scale is 2 / scale / 2, the same number: onnxruntime makes x / scale of x * (1 / scale), which has other
    codes, and approximates Reciprocal. Codes stay floats, which hold them exactly.
    """

    def __init__(self, quantizer: DynamicQuantizer):
        super().__init__()
        self.lo, self.hi = token_range(quantizer.bits, quantizer.symmetric)
        self.symmetric = quantizer.symmetric
        self.register_buffer("two", torch.full((), 2.0))

    def forward(self, x):
        steps = float(self.hi - self.lo)
        if self.symmetric:
            scale, zero_point = x.abs().amax(-1, keepdim=True) / (steps / 2), 0
        else:
            least = x.amin(-1, keepdim=True).clamp(max=0)
            scale = (x.amax(-1, keepdim=True).clamp(min=0) - least) / steps
        scale = scale.clamp(min=torch.finfo(torch.float32).smallest_normal)
        if not self.symmetric:
            zero_point = (self.lo - (least / scale).round()).clamp(self.lo, self.hi)
        code = ((x * (self.two / scale * 0.5)).round() + zero_point).clamp(self.lo, self.hi)
        return (code - zero_point) * scale


def _onnx(operator: str, *inputs, like: torch.Tensor, dtype: torch.dtype, **attributes) -> torch.Tensor:
    """Return one node of the exported graph, with the shape of `like`."""
    return torch.onnx.ops.symbolic(operator, inputs, attributes, dtype=dtype, shape=like.shape, version=OPSET)
