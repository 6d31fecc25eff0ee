"""What quantization adds to the memory of training, in two Markdown tables: bytes that graphs save, peaks of steps.

    python bench/training_memory.py [--quick] [--full]

Counted are tensors on the CPU, to the byte. A quantizer: all that its graph saves, with x. A layer: what lives on with
its output, of an input that nobody else keeps. A step: the most that is held beyond parameters, inputs and what the
optimizer keeps, that is gradients, activations and all that operators allocate meanwhile. --quick leaves out what
torch.compile must compile first; --full takes ViT-S whole, of 12 blocks.
"""

import argparse
from collections.abc import Callable

import harness
import memory
import torch
from bench_networks import OURS, Size, batch_of, network, networks_of, step_of
from harness import FORWARD, Candidate, Case, wanted
from report import table
from rivals import lsq_rivals, one_by_one, ours
from targets import UNQUANTIZED
from torch import nn

from mbq_train import recompute_quantized

RECOMPUTED = f"{OURS}, recompute_quantized"
LAYERS = {"linear": (lambda: nn.Linear(256, 256), (4096, 256)),
          "convolution": (lambda: nn.Conv2d(64, 64, 3, padding=1), (8, 64, 32, 32))}
NETWORKS = {"resnet18": (Size(8, 64), Size(8, 64)), "vit_s": (Size(4, 96, 4, 384), Size(4, 96, 12, 384))}


def of_a_quantizer() -> dict[str, float | str]:
    """Return the bytes an element that quantizers with a learned scale save."""
    case = Case("fake_quantize", "512x512", ((512, 512),), what=FORWARD)
    inputs = case.inputs()
    scale = inputs.scales[0][0].detach()
    frozen = Candidate(f"{OURS}, scale without a gradient",
                       lambda case, inputs: (lambda: ours(case, inputs.xs[0], scale, None, case.bits[0]), []))

    def per_element(call):
        call(), call()
        return memory.saved_bytes(call) / case.numel
    candidates = [Candidate(OURS, one_by_one(ours)), frozen, *lsq_rivals(case)]
    return _measured({candidate.name: lambda candidate=candidate: candidate.build(case, inputs)[0]
                      for candidate in candidates if wanted(candidate.name)}, per_element)


def of_a_layer(make: Callable[[], nn.Module], shape: tuple[int, ...]) -> dict[str, float | str]:
    """Return the bytes for an element of its input that a layer keeps from forward to backward."""
    x = torch.randn(shape, requires_grad=True)

    def per_element(layer):
        layer(x * 1), layer(x * 1)
        return memory.kept_bytes(lambda: layer(x * 1)) / x.numel()
    return _measured(_with_recomputed(networks_of(lambda: nn.Sequential(make()), x.detach(), keep_float=())),
                     per_element)


def of_a_step(name: str, size: Size) -> dict[str, tuple[float, float] | str]:
    """Return (MB that are kept from forward to backward, the most MB in a step)."""
    inputs, target = batch_of(name, size, "cpu")

    def megabytes(model):
        step = step_of(model, inputs, target)
        step(), step()
        kept, (_, held) = memory.kept_bytes(lambda: model(inputs)), memory.tensor_bytes(step)
        return kept / 1e6, (max(held) - min(held)) / 1e6  # the least when the old gradients have been let go
    return _measured(_with_recomputed(networks_of(lambda: network(name, size), inputs)), megabytes)


def _with_recomputed(networks: dict[str, Callable]) -> dict[str, Callable]:
    def recomputed():
        model = networks[OURS]()
        recompute_quantized(model)
        return model
    return {UNQUANTIZED: networks[UNQUANTIZED], OURS: networks[OURS], RECOMPUTED: recomputed, **networks}


def _measured(makers: dict[str, Callable], number: Callable) -> dict:
    """Return number(make()) of each; the reason where a rival is missing or refuses."""
    found = {}
    for name, make in makers.items():
        torch.manual_seed(0)
        try:
            found[name] = number(make())
        except Exception as error:
            found[name] = f"{type(error).__name__}: {' '.join(str(error).split())[:80]}"
    return found


def saved_table() -> str:
    columns = {"quantizer": of_a_quantizer()} | {name: of_a_layer(*made) for name, made in LAYERS.items()}
    ways = dict.fromkeys(way for column in columns.values() for way in column)
    lines = [[way, *(_cell(column.get(way, "-")) for column in columns.values())] for way in ways]
    return table(("saved bytes an element", *columns), lines)


def _cell(value: float | str) -> str:
    return value if isinstance(value, str) else f"{value:.2f}"


def step_table(full: bool) -> str:
    head, columns = ["MB (times unquantized)"], []
    for name, sizes in NETWORKS.items():
        size = sizes[full]
        head += [f"{name}, {size.batch} x {size.side}: saved", "the most in a step"]
        columns.append(of_a_step(name, size))
    return table(head, [[way, *(cell for column in columns for cell in _shares(column[way], column[UNQUANTIZED]))]
                        for way in columns[0]])


def _shares(found: tuple | str, plain: tuple) -> tuple[str, ...]:
    if isinstance(found, str):
        return found, ""
    return tuple(f"{value:.1f} ({value / base:.2f})" for value, base in zip(found, plain, strict=True))


def main() -> None:
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--full", action="store_true")
    arguments = parser.parse_args()
    harness.RIVALS = "quick" if arguments.quick else "all"
    print(saved_table(), step_table(arguments.full), sep="\n\n")


if __name__ == "__main__":
    main()
