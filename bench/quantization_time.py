"""How long a training step spends in quantization: this package's kernels beside eager PyTorch."""

import argparse
import math
import statistics
import time
from dataclasses import dataclass

import eager_quantizers as eager
import torch
from torch import nn

import mbq_kernels
from mbq_lab.runs.networks import load_data_and_network
from mbq_train.quantize.any_precision import AnyPrecisionActivation, any_precision
from mbq_train.quantize.bits import bit_states, in_mode, set_bits
from mbq_train.quantize.double_rounding import corrected_double_round
from mbq_train.quantize.quantizer import quantizers
from mbq_train.quantize.round_clamp import round_clamp

_EAGER = {mbq_kernels.fake_quantize: eager.fake_quantize, mbq_kernels.double_round: eager.double_round,
          mbq_kernels.fake_quantize_corrected: eager.fake_quantize_corrected, any_precision: eager.any_precision,
          corrected_double_round: eager.corrected_double_round, round_clamp: eager.round_clamp}


@dataclass(frozen=True)
class QuantizationTime:
    """Milliseconds of all quantizers, forward and backward, at every bit-width on `images` images, in `calls` calls."""

    kernels_ms: float
    eager_ms: float
    calls: int
    images: int


@dataclass(frozen=True)
class _Call:
    """A quantizer's kernel, the arguments of one call - x, perhaps scale and offset - and a gradient for its result."""

    kernel: object
    arguments: tuple
    options: dict
    grad: torch.Tensor
    corrected: bool

    def run(self, eager: bool):
        """Return (x_hat, gradients of x, scale and offset as far as they are wanted)"""
        inputs = [tensor for tensor in self.arguments if tensor is not None and tensor.requires_grad]
        x_hat = (_EAGER[self.kernel] if eager else self.kernel)(*self.arguments, **self.options)
        return x_hat, torch.autograd.grad(x_hat, inputs, self.grad) if inputs else ()


def quantization_time(model: nn.Module, images: torch.Tensor, *, repeats: int = 9) -> QuantizationTime:
    """Time every quantizer call of one training step on `images`, with mbq_kernels and with eager PyTorch.

    The tensors that each quantizer sees are recorded for one batch at every trained bit-width (in eval mode, so that
    no statistics move). Both functions then run forward and backward on exactly these, in turns; the medians of
    `repeats` turns are returned, after one that is not counted.

    Raises ValueError when no layer was converted, RuntimeError when the two results differ or a bit-width has not seen
    a training batch.
    """
    calls = _record(model, images)
    if not calls:
        raise ValueError("quantization_time: model must hold layers made by convert, got "
                         f"{type(model).__name__} without any")
    for call in calls:
        _check_agreement(call)
    times = [[_milliseconds(calls, eager) for eager in (False, True)] for _ in range(repeats + 1)]
    return QuantizationTime(*map(statistics.median, zip(*times[1:], strict=True)), len(calls), len(images))


def _record(model, images) -> list[_Call]:
    """Return what every quantizer is called with for one batch at every trained bit-width."""
    calls = []
    hooks = [quantizer.register_forward_pre_hook(lambda quantizer, args: calls.append(_call(quantizer, *args)))
             for quantizer in quantizers(model)]
    try:
        with in_mode(model, training=False):
            for bits in sorted({b for state in bit_states(model) for b in state.trained}, reverse=True):
                set_bits(model, bits)
                model(images)
    finally:
        for hook in hooks:
            hook.remove()
    return calls


def _call(quantizer, x) -> _Call:
    x = x.detach().requires_grad_(x.requires_grad)
    parameters, options = list(quantizer.current()), quantizer.options()
    if isinstance(quantizer, AnyPrecisionActivation):
        parameters = [quantizer.step(x)]
    if options.pop("scale_unit", None) is not None:  # which no eager rival knows, nor floors
        del options["scale_floor"]
        parameters[0] = quantizer.scale(quantizer.bits).requires_grad_(parameters[0].requires_grad)
    return _Call(quantizer.kernel, (x, *parameters), options, torch.randn_like(x),
                 quantizer.correction)


def _check_agreement(call: _Call) -> None:
    """Both functions give the same values; the sums behind gradients of scale and offset, and behind corrections,
    differ in rounding."""
    (ours, our_grads), (theirs, their_grads) = (call.run(eager) for eager in (False, True))
    x, *parameters = call.arguments
    sharing = x.numel() / (parameters[0].numel() if parameters else 1)
    equal = torch.allclose(ours, theirs, rtol=1e-4, atol=1e-6) if call.corrected else torch.equal(ours, theirs)
    same = equal and all(
        torch.allclose(a, b, rtol=1e-3, atol=1e-6 * math.sqrt(sharing))
        for a, b in zip(our_grads, their_grads, strict=True))
    if not same:
        raise RuntimeError(f"quantization_time: the results of mbq_kernels and of eager PyTorch must agree, got "
                           f"different ones for x of shape {tuple(x.shape)} at {call.options['bits']} bits")


def _milliseconds(calls: list[_Call], eager: bool) -> float:
    synchronize = torch.cuda.synchronize if calls[0].grad.is_cuda else (lambda: None)
    synchronize()
    start = time.perf_counter()
    for call in calls:
        call.run(eager)
    synchronize()
    return 1000 * (time.perf_counter() - start)


def main() -> None:
    """Print the time of the quantizers of a run's network."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("run", help="folder of a run")
    parser.add_argument("--images", type=int, default=64)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    _, data, model = load_data_and_network(arguments.run)
    found = quantization_time(model, next(data.test_batches(arguments.images)).images)
    print(f"{found.calls} quantizers, {found.images} images: {found.kernels_ms:.2f} ms with mbq_kernels, "
          f"{found.eager_ms:.2f} ms with eager PyTorch ({found.eager_ms / found.kernels_ms:.2f} x)")


if __name__ == "__main__":
    main()
