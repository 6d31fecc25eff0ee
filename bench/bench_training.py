"""One training step of ResNet-20 at 8, 6, 4 and 2 bits on 128 images of 32x32, against four float steps.

    pytest bench/bench_training.py [--mbq-json FILE] [--mbq-small] [--mbq-device cpu|cuda]

A step is forward, backward and optimizer step, at each bit-width in turn; the float network takes as many. The rivals
are the same network with quantizers of eager PyTorch, as they are and under torch.compile. A number is printed only
where the losses of the first step agree with those of our kernels.
"""

import contextlib
from collections.abc import Callable
from dataclasses import dataclass, replace

import eager_quantizers as eager
import torch
from harness import wanted
from rivals import COMPILED, EAGER
from step_rows import Way, measure_steps
from targets import FLOAT_STEPS

from mbq_lab import Options, build_model
from mbq_lab.training.loop import stepper_of
from mbq_lab.training.optimizers import build_optimizer
from mbq_train import convert, initialise
from mbq_train.batches import Batch
from mbq_train.quantize.quantizer import Quantizer
from mbq_train.training.cuda_graph import GraphedStep

BITS = (8, 6, 4, 2)
OURS = "mbq"
TOLERANCE = 1e-3  # of a loss: sums of other order, and codes that flip behind them


@dataclass(frozen=True)
class Work:
    """One way to take the step: `options` of ours, `eager`: quantizers of eager PyTorch, `quantized`: or float."""
    options: Options
    eager: bool = False
    quantized: bool = True


EACH = Options(model="resnet20", bits=BITS, batch_size=128)
WORKS = {
    OURS: Work(EACH),
    "mbq, shared BatchNorm": Work(replace(EACH, batch_norm="shared")),
    "mbq, accumulate": Work(replace(EACH, schedule="accumulate")),
    "mbq, accumulate, weight bank": Work(replace(EACH, schedule="accumulate", weight_bank=True)),
    "mbq, CUDA graph": Work(replace(EACH, cuda_graph=True)),
    "mbq, torch.compile": Work(replace(EACH, compile=True, batch_norm="shared")),
    FLOAT_STEPS: Work(EACH, quantized=False),
    EAGER: Work(EACH, eager=True),
    COMPILED: Work(replace(EACH, compile=True, batch_norm="shared"), eager=True),
}


def eager_fake_quantize(x, scale, offset=None, *, bits, signed, axis, scale_unit, scale_floor, grad_factor, out_dtype):
    scale = torch.maximum(scale * scale_unit, scale_floor)
    return eager.fake_quantize(x, scale, offset, bits=bits, signed=signed, axis=axis)


@contextlib.contextmanager
def eager_quantizers():
    kernel = vars(Quantizer)["kernel"]
    Quantizer.kernel = staticmethod(eager_fake_quantize)
    try:
        yield
    finally:
        Quantizer.kernel = kernel


def step_of(work: Work, batch: Batch) -> Callable:
    """A step, on a network of its own from the same seed."""
    torch.manual_seed(0)
    model = build_model(work.options.model, classes=10, in_channels=3, image_size=tuple(batch.images.shape[2:]))
    model = model.to(batch.images.device)
    if not work.quantized:
        stepper = stepper_of(work.options, model, (32,), build_optimizer(model, work.options))
        return lambda: torch.cat([stepper(batch) for _ in BITS])
    convert(model, BITS, example=batch.images[:2], batch_norm=work.options.batch_norm)
    initialise(model, batch.images)
    step = stepper_of(work.options, model, BITS, build_optimizer(model, work.options))
    if work.options.cuda_graph:
        step = GraphedStep(step, len(batch.images))
    return lambda: step(batch)


def rows_of(batch: Batch) -> list[dict]:
    """Return a row for every way."""
    ways = {name: Way(lambda work=work: step_of(work, batch),
                      eager_quantizers if work.eager else contextlib.nullcontext)
            for name, work in WORKS.items()
            if (wanted(name) or name == FLOAT_STEPS) and (batch.images.is_cuda or not work.options.cuda_graph)}
    size = "x".join(map(str, batch.images.shape))
    return measure_steps(f"training_step-resnet20-{size}", "training_step", ways, checked, OURS,
                         batch.images.device.type)


def checked(name: str, losses: dict) -> str:
    """What the losses of the first step say: at the highest bit-width all start from the same network."""
    if not WORKS[name].quantized:
        return "another network"
    first, ours = losses[name][0, 0], losses[OURS][0, 0]
    error = (first - ours).abs().item()
    if not error <= TOLERANCE:
        raise RuntimeError(f"loss at 8 bits is {first.item()}, ours {ours.item()}")
    return "the definition" if name == OURS else f"loss within {error:.1e}"


def test_training_step(device, pytestconfig, record):
    images = 8 if pytestconfig.getoption("--mbq-small") else 128
    generator = torch.Generator(device).manual_seed(0)
    batch = Batch(torch.randn(images, 3, 32, 32, generator=generator, device=device),
                  torch.randint(10, (images,), generator=generator, device=device), torch.arange(images), images)
    record(rows_of(batch))
