"""One training step of ResNet-18, ViT-S and a Llama block at 4 bits, quantized by ours and by other libraries.

    mbq bench training [--full]        or        pytest bench/bench_networks.py [--mbq-full] [--mbq-small]

A step is forward, loss, backward and SGD. All quantize the same layers: those that `convert` quantizes. Losses of the
first steps must be finite, those of LSQ's formula must be ours, because it starts from the same scales. The others are
other quantizers: what they cost is compared, and "unquantized" is what all of them add to. accelerate(...) is a network
of theirs on our kernels: its losses must be those that it has without.
"""

import warnings
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
import training_rivals as rivals
from checking import Wrong
from harness import wanted
from rivals import BREVITAS, COMPILED, EAGER
from step_rows import Way, measure_steps
from targets import UNQUANTIZED
from torch import nn

from mbq_lab.models import Decoder, build_model
from mbq_lab.models.vision_transformer import VisionTransformer
from mbq_train import convert

OURS = "mbq"
BITS = 4
# Of the first and second loss: behind sums of another order codes flip, and a ResNet at 4 bits then goes its own way.
TOLERANCES = (1e-3, 2e-2)
OTHERS = {EAGER: rivals.lsq, COMPILED: rivals.compiled_lsq, "torchao": rivals.torchao, BREVITAS: rivals.brevitas,
          "torch.ao": rivals.torch_ao}
ACCELERATED = {f"accelerate({name})": name for name in OTHERS if name != COMPILED}
WANTED = {EAGER: OURS, **ACCELERATED}  # whose losses must be whose; a compiler's own sums decide over COMPILED's


@dataclass(frozen=True)
class Size:
    """Images of `side` pixels, or sequences of `side` tokens; depth and width of transformers."""
    batch: int
    side: int
    depth: int = 0
    width: int = 0


SIZES = {  # small, default, full
    "resnet18": (Size(2, 32), Size(4, 64), Size(32, 224)),
    "vit_s": (Size(2, 32, 1, 96), Size(8, 96, 4, 384), Size(16, 224, 12, 384)),
    "llama_block": (Size(1, 8, 1, 32), Size(2, 256, 1, 512), Size(1, 2048, 1, 2048)),
}


def network(name: str, size: Size) -> nn.Module:
    """Return the float network, of the same weights in every call."""
    torch.manual_seed(0)
    images = dict(classes=1000, in_channels=3, image_size=(size.side, size.side))
    if name == "resnet18":
        return build_model(name, **images)
    if name == "vit_s":
        return VisionTransformer(patch=16, width=size.width, depth=size.depth, heads=6, **images)
    return Decoder(vocabulary=256, width=size.width, depth=size.depth, heads=8)


def batch_of(name: str, size: Size, device: str) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator(device).manual_seed(0)
    shape = (size.batch, size.side) if name == "llama_block" else (size.batch, 3, size.side, size.side)
    make = dict(generator=generator, device=device)
    if name == "llama_block":
        return torch.randint(256, shape, **make), torch.randint(256, shape, **make)
    return torch.randn(shape, **make), torch.randint(1000, shape[:1], **make)


def step_of(model: nn.Module, inputs: torch.Tensor, target: torch.Tensor) -> Callable:
    """Return a step of SGD, which gives the loss."""
    with torch.no_grad():
        model.eval()(inputs[:1])  # what a library makes at its first call belongs to the optimizer too
    optimizer = torch.optim.SGD(model.train().parameters(), lr=1e-3)

    def step():
        optimizer.zero_grad()
        logits = model(inputs)
        loss = F.cross_entropy(logits.flatten(0, -2), target.flatten())
        loss.backward()
        optimizer.step()
        return loss.detach()
    return step


def networks_of(make: Callable[[], nn.Module], inputs, **options) -> dict[str, Callable[[], nn.Module]]:
    """Return how to make ours, `make()` itself, everybody else's on the layers of ours, and those again after
    accelerate; options: convert's."""
    def ours():
        with warnings.catch_warnings():  # of layers that stay in float
            warnings.simplefilter("ignore")
            return convert(make(), (BITS,), example=inputs, **options)

    layers = rivals.quantized_layers(ours())
    found = {OURS: ours, UNQUANTIZED: make}
    for rival, quantize in OTHERS.items():
        found[rival] = lambda quantize=quantize: quantize(make(), layers)
    for mine, rival in ACCELERATED.items():
        found[mine] = lambda rival=rival: rivals.accelerated(OTHERS[rival], make(), layers)
    return {way: value for way, value in found.items()
            if wanted(way) and wanted(ACCELERATED.get(way, way)) or way == UNQUANTIZED}


def ways_of(name: str, size: Size, inputs, target) -> dict[str, Way]:
    """Return the ways to take the step: networks_of, on the device of inputs."""
    networks = networks_of(lambda: network(name, size).to(inputs.device), inputs)
    same = (OURS, UNQUANTIZED, EAGER, COMPILED, *ACCELERATED)
    return {way: Way(lambda make=make: step_of(make(), inputs, target),
                     differs="" if way in same else "another quantizer") for way, make in networks.items()}


def checked(name: str, losses: dict) -> str:
    """Return what the losses of the first steps say."""
    got = losses[name]
    if not got.isfinite().all():
        raise Wrong(f"the losses of the first steps are {got.tolist()}")
    if name not in WANTED:
        return f"losses {', '.join(f'{loss:.4f}' for loss in got.tolist())}"
    wanted_losses = losses[WANTED[name]]
    errors = (got - wanted_losses).abs()
    if not (errors <= torch.tensor(TOLERANCES, device=errors.device)).all():
        raise Wrong(f"the losses of the first steps are {got.tolist()}, of {WANTED[name]} {wanted_losses.tolist()}")
    return f"losses within {', '.join(f'{error:.1e}' for error in errors.tolist())} of {WANTED[name]}"


@pytest.mark.parametrize("name", SIZES, ids=lambda name: f"training_step_of-{name}")
def test_training_step_of(name, device, pytestconfig, record):
    scale = 0 if pytestconfig.getoption("--mbq-small") else 2 if pytestconfig.getoption("--mbq-full") else 1
    size = SIZES[name][scale]
    inputs, target = batch_of(name, size, device)
    case = f"training_step_of-{name}-{'x'.join(map(str, inputs.shape))}"
    record(measure_steps(case, "training_step_of", ways_of(name, size, inputs, target), checked, OURS, device))
