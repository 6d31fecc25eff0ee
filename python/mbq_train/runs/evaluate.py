"""evaluate_run and dry_run: what a run has reached, and what one would do."""

import copy
from dataclasses import dataclass, field
from pathlib import Path

from torch import nn

from ..conversion.plan import Conversion
from ..data import Data
from ..options import Options
from ..quantize.adaptation import adapt_bn
from ..quantize.bits import FLOAT, check_bit_widths
from ..quantize.round_clamp import own_layer_bits
from ..quantize.untrained import add_bits
from ..training.loop import evaluate
from .checkpoint import CheckpointError, load_checkpoint
from .checks import check_run
from .folder import CHECKPOINT, CONFIG, FLOAT_NETWORK, check_free, load_options, standing
from .memory import MemoryEstimate, estimate_memory
from .prepare import check_device, example_images, plan_of, prepare

_CALIBRATION_BATCHES = 8


@dataclass(frozen=True)
class Evaluation:
    """Test accuracies in [0, 1] of a run; `untrained` are the bit-widths that were made by `add_bits`, `layer_bits` the
    weights' of layers that have their own."""

    accuracy: dict[int, float]
    untrained: tuple[int, ...]
    float_accuracy: float
    finished: bool
    layer_bits: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class DryRun:
    """What a run would convert, and hold in memory."""

    conversion: Conversion
    memory: MemoryEstimate
    steps: int


def dry_run(options: Options, *, device: str = "cpu", folder=None, overwrite: bool = False) -> DryRun:
    """Return what `train_run` would do, in `folder` if one is given, without training or writing. Raises as it does."""
    if folder is not None:
        check_free(Path(folder), overwrite)
    data, model = prepare(options, check_device(device))
    plan = check_run(options, data, model)
    memory = estimate_memory(plan.model, example_images(data, 4), options, train_size=data.train_size,
                             classes=data.classes)
    return DryRun(plan, memory, data.steps(options.batch_size))


def evaluate_run(folder, *, bits=None, device: str = "cpu", adapt: bool = False) -> Evaluation:
    """Measure a run from its checkpoints: at `bits`, trained or not [default: the trained], and its float network.

    With `adapt` BatchNorm's statistics are first estimated anew for each bit-width, from 8 training batches.
    Raises ValueError, naming the file, for a missing, broken or foreign one, and for a run still in its float phase.
    """
    folder, device = Path(folder), check_device(device)
    options = load_options(folder / CONFIG)
    metadata = standing(folder)
    data, model = prepare(options, device)
    quantized = _quantized(folder, metadata, options, data, copy.deepcopy(model))
    load_checkpoint(folder / FLOAT_NETWORK, model)
    bits = options.bits if bits is None else check_bit_widths("evaluate_run", bits, float_path=True)
    untrained = tuple(b for b in bits if b not in (FLOAT, *options.bits))
    images = []
    if untrained or adapt:
        batches = data.train_batches(options.batch_size, seed=options.seed, epoch=0)
        images = [batch.images for batch, _ in zip(batches, range(_CALIBRATION_BATCHES), strict=False)]
    if untrained:
        quantized = add_bits(quantized, untrained, images)
    networks = {b: adapt_bn(copy.deepcopy(quantized), b, images) if adapt else quantized for b in bits}
    return Evaluation({b: evaluate(network, data, b) for b, network in networks.items()}, untrained,
                      evaluate(model, data, FLOAT), metadata["phase"] == "finished", own_layer_bits(quantized))


def load_quantized(folder) -> tuple[nn.Module, Data]:
    """Return the network of a run as it was at its last checkpoint, in eval mode on the CPU, and its data.

    Raises as `evaluate_run`.
    """
    _, data, model = load_data_and_network(folder)
    return model, data


def load_data_and_network(folder, device: str = "cpu") -> tuple[Options, Data, nn.Module]:
    """Return a run's options, its data, and its network as it was at its last checkpoint. Raises as `evaluate_run`."""
    folder = Path(folder)
    options = load_options(folder / CONFIG)
    data, model = prepare(options, check_device(device))
    return options, data, _quantized(folder, standing(folder), options, data, model).eval()


def _quantized(folder: Path, metadata: dict, options: Options, data, model: nn.Module) -> nn.Module:
    if metadata["phase"] == "float":
        raise CheckpointError(f"evaluate_run: folder must hold a network trained at several bit-widths, got {folder}, "
                              "which is still training its float network")
    quantized = plan_of(options, data, model).apply()
    load_checkpoint(folder / CHECKPOINT, quantized)
    return quantized
