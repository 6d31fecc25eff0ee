"""Everybody else's call for the same work. One that cannot be imported or run becomes a row that says why."""

from collections.abc import Callable

import torch
from harness import FORWARD, Candidate, Case, Inputs

import mbq_kernels
from mbq_kernels import fake_quantize_multi
from mbq_train.quantize.bits import code_range

STE = "straight-through autograd, no 1/sqrt(N hi) factor"
COMPILED_TENSORS = 20  # of one compiled function
ROUNDED_MASK = "gradient mask on the rounded value, multiplies by 1/scale"


def functional(quantize: Callable) -> Callable:
    """Candidate.build from quantize(case, x, scales, zero_point) -> one x_hat per bit-width."""
    def build(case: Case, inputs: Inputs):
        jobs = list(zip(inputs.xs, inputs.scales, inputs.zero_points, strict=True))
        return (lambda: [y for x, scales, zp in jobs for y in quantize(case, x, scales, zp)]), inputs.parameters(case)
    return build


def one_by_one(quantize: Callable) -> Callable:
    """`functional` from quantize(case, x, scale, zero_point, bits) -> x_hat, a call per bit-width."""
    return functional(lambda case, x, scales, zp: [
        quantize(case, x, s, zp, b) for s, b in zip(scales, case.bits, strict=True)])


def _formula(case):
    """The case's work at one bit-width, from plain PyTorch operations."""
    import eager_quantizers as eager
    return getattr(eager, case.single)


def _eager(case, x, scale, zero_point, bits):
    return _formula(case)(x, scale, bits=bits, axis=case.axis)


def ours(case, x, scale, zero_point, bits):
    return getattr(mbq_kernels, case.single)(x, scale, bits=bits, axis=case.axis)


def _ours_multi(case, x, scales, zero_point):
    return fake_quantize_multi(x, scales, bits=case.bits, axis=case.axis)


def _compiled_each(case: Case, inputs: Inputs):
    """One compiled function per bit-width."""
    torch._dynamo.config.recompile_limit = 64
    formula = _formula(case)
    compiled = {b: torch.compile(lambda x, scale, b=b: formula(x, scale, bits=b, axis=case.axis)) for b in case.bits}
    return one_by_one(lambda case, x, scale, zp, bits: compiled[bits](x, scale))(case, inputs)


def _compiled_joint(case: Case, inputs: Inputs):
    """All bit-widths in one compiled function, so that the compiler may share the read of x."""
    torch._dynamo.config.recompile_limit = 64
    formula = _formula(case)
    joint = torch.compile(lambda x, scales: [formula(x, s, bits=b, axis=case.axis)
                                             for s, b in zip(scales, case.bits, strict=True)])
    return functional(lambda case, x, scales, zp: joint(x, scales))(case, inputs)


def _compiled_network(case: Case, inputs: Inputs):
    """All bit-widths of all tensors in one compiled function."""
    if len(inputs.xs) > COMPILED_TENSORS:
        raise NotImplementedError(f"it compiles for minutes with more than {COMPILED_TENSORS} tensors")
    formula = _formula(case)
    network = torch.compile(lambda xs, rows: [formula(x, s, bits=b, axis=case.axis)
                                              for x, scales in zip(xs, rows, strict=True)
                                              for s, b in zip(scales, case.bits, strict=True)])
    return lambda: network(inputs.xs, inputs.scales), inputs.parameters(case)


def _torch_fixed(case: Case, inputs: Inputs):
    """torch's own with a fixed scale: floats and int32 zero points are made once, outside the timed call."""
    jobs = []
    for x, scales in zip(inputs.xs, inputs.scales, strict=True):
        for scale, bits in zip(scales, case.bits, strict=True):
            if case.axis is None:
                jobs.append((torch.fake_quantize_per_tensor_affine, x, scale.item(), 0, *code_range(bits, signed=True)))
            else:
                zeros = torch.zeros_like(scale, dtype=torch.int32)
                jobs.append((torch.fake_quantize_per_channel_affine, x, scale.detach(), zeros, case.axis,
                             *code_range(bits, signed=True)))
    return lambda: [quantize(*job) for quantize, *job in jobs], inputs.xs


def _torch_learnable(case, x, scale, zero_point, bits):
    lo, hi = code_range(bits, signed=True)
    factor = case.grad_factor(x.numel() // scale.numel(), hi)
    if case.axis is None:
        return torch._fake_quantize_learnable_per_tensor_affine(x, scale, zero_point, lo, hi, factor)
    return torch._fake_quantize_learnable_per_channel_affine(x, scale, zero_point, case.axis, lo, hi, factor)


def _torchao(case, x, scale, zero_point, bits):
    from torchao.quantization.quant_primitives import _fake_quantize_affine
    block = [1 if d == case.axis else size for d, size in enumerate(x.shape)]
    shape = [-1 if d == case.axis else 1 for d in range(x.dim())]
    return _fake_quantize_affine(x, block, scale.view(shape), zero_point.view(shape), torch.int32,
                                 *code_range(bits, signed=True))


def _torchao_compiled(case: Case, inputs: Inputs):
    import torchao  # noqa: F401  (missing: say so here, not from inside the compiler)
    compiled = torch.compile(lambda x, s, zp: _torchao(case, x, s, zp, case.bits[0]))
    return one_by_one(lambda case, x, scale, zp, bits: compiled(x, scale, zp))(case, inputs)


def _brevitas(case: Case, inputs: Inputs):
    """Brevitas' weight quantizer with a learned scale, by way of QuantLinear/QuantConv2d.quant_weight()."""
    import brevitas.nn as qnn
    from brevitas.inject.enum import RestrictValueType, ScalingImplType
    from brevitas.quant import Int8WeightPerChannelFloat, Int8WeightPerTensorFloat
    if case.axis not in (None, 0):
        raise NotImplementedError("its weight quantizers take channels on axis 0 alone")
    base = Int8WeightPerTensorFloat if case.axis is None else Int8WeightPerChannelFloat
    layers = []
    for x, scales in zip(inputs.xs, inputs.scales, strict=True):
        for scale, bits in zip(scales, case.bits, strict=True):
            quantizer = type("Learned", (base,), dict(
                scaling_impl_type=ScalingImplType.PARAMETER_FROM_STATS, restrict_scaling_type=RestrictValueType.FP,
                bit_width=bits, narrow_range=False))
            out, inner = x.shape[:2]
            layer = (qnn.QuantConv2d(inner, out, x.shape[2], bias=False, weight_quant=quantizer) if x.dim() == 4 else
                     qnn.QuantLinear(inner, out, bias=False, weight_quant=quantizer)).to(x.device, x.dtype)
            layer.weight.data = x.detach()
            layer.quant_weight()  # the first call would set the scale from statistics
            learned = layer.weight_quant.tensor_quant.scaling_impl.value
            learned.data.copy_((scale.detach() * 2 ** (bits - 1)).reshape(learned.shape))
            layers.append(layer)
    parameters = [p for layer in layers for p in layer.parameters()]
    return lambda: [layer.quant_weight().value for layer in layers], parameters


def _nncf(case: Case, inputs: Inputs):
    """NNCF learns hi * scale and takes one channel axis by broadcasting."""
    from nncf.torch.quantization.quantize_functions import QuantizeSymmetric
    jobs, learned = [], []
    for x, scales in zip(inputs.xs, inputs.scales, strict=True):
        for scale, bits in zip(scales, case.bits, strict=True):
            lo, hi = code_range(bits, signed=True)
            shape = [1] if case.axis is None else [-1 if d == case.axis else 1 for d in range(x.dim())]
            learned.append((scale.detach() * hi).reshape(shape).requires_grad_())
            jobs.append((x, learned[-1], lo, hi, 2**bits))
    return lambda: [QuantizeSymmetric.apply(*job) for job in jobs], [*inputs.xs, *learned]


def _flag_gems():
    """A context in which torch's calls reach FlagGems' Triton kernels."""
    if not torch.cuda.is_available():
        raise RuntimeError("FlagGems has Triton kernels alone, which need a GPU")
    import flag_gems
    return flag_gems.use_gems()


EAGER, COMPILED, JOINT = "eager LSQ", "torch.compile(eager LSQ)", "torch.compile, one joint function"
NETWORK = "torch.compile, all tensors in one function"
TORCH_FIXED, TORCH_LEARNABLE = "torch fake_quantize", "torch learnable"
SINGLE_CALLS, MULTI_CALLS = "mbq fake_quantize, a call each", "mbq fake_quantize_multi, a call each"
EAGER_DOUBLE, COMPILED_DOUBLE = "eager double rounding", "torch.compile(eager double rounding)"
DOUBLE_CALLS = "mbq double_round, a call each"
BREVITAS, TORCHAO_COMPILED = "Brevitas", "torch.compile(torchao)"


def double_rivals(case: Case) -> list[Candidate]:
    return [Candidate(EAGER_DOUBLE, one_by_one(_eager)), Candidate(DOUBLE_CALLS, one_by_one(ours)),
            Candidate(COMPILED_DOUBLE, _compiled_each, compiles=True),
            Candidate(JOINT, _compiled_joint, compiles=True)]


def _torch_and_torchao(case: Case, differs: str, torchao: str) -> list[Candidate]:
    fixed = [Candidate(TORCH_FIXED, _torch_fixed, differs="fixed scale, no gradient to it")]
    return [*(fixed if case.what == FORWARD else []),
            Candidate(TORCH_LEARNABLE, one_by_one(_torch_learnable), differs=differs),
            Candidate("FlagGems learnable", one_by_one(_torch_learnable), differs=differs, context=_flag_gems),
            Candidate("torchao", one_by_one(_torchao), differs=torchao)]


MODULES = [Candidate(BREVITAS, _brevitas, differs=STE), Candidate("NNCF", _nncf, differs=f"learns hi * scale; {STE}")]


def affine_rivals(case: Case) -> list[Candidate]:
    return [*_torch_and_torchao(case, "", ""), Candidate(TORCHAO_COMPILED, _torchao_compiled, compiles=True), *MODULES]


def lsq_rivals(case: Case, *more: Candidate) -> list[Candidate]:
    """All that can do, or claim to do, the case's work."""
    several = [Candidate(SINGLE_CALLS, one_by_one(ours)), Candidate(JOINT, _compiled_joint, compiles=True)]
    return [Candidate(EAGER, one_by_one(_eager)), Candidate(COMPILED, _compiled_each, compiles=True), *more,
            *(several if len(case.bits) > 1 else []),
            *_torch_and_torchao(case, ROUNDED_MASK, f"{ROUNDED_MASK}; {STE}"), *MODULES]


def foreach_rivals(case: Case) -> list[Candidate]:
    return lsq_rivals(case, Candidate(MULTI_CALLS, functional(_ours_multi)),
                      Candidate(NETWORK, _compiled_network, compiles=True))
