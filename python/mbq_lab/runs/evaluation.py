"""evaluate_run: what a run has reached."""

import copy
from dataclasses import dataclass, field
from pathlib import Path

from torch import nn

from mbq_train.checkpoint import load_checkpoint
from mbq_train.quantize.adaptation import adapt_bn
from mbq_train.quantize.add_bits import add_bits
from mbq_train.quantize.bits import FLOAT, check_bit_widths
from mbq_train.quantize.layer_bits import own_layer_bits

from ..training.accuracy import evaluate
from .devices import check_device
from .folder import CHECKPOINT, CONFIG, FLOAT_NETWORK, load_options, standing
from .given import data_given
from .networks import calibration_batches, data_and_float_network, load_quantized


@dataclass(frozen=True)
class Evaluation:
    """Test accuracies in [0, 1] of a run; `untrained` are the bit-widths that were made by `add_bits`, `layer_bits` the
    weights' of layers that have their own."""

    accuracy: dict[int, float]
    untrained: tuple[int, ...]
    float_accuracy: float
    finished: bool
    layer_bits: dict[str, int] = field(default_factory=dict)


def evaluate_run(folder, *, data=None, model: nn.Module | None = None, bits=None, device: str = "cpu",
                 adapt: bool = False) -> Evaluation:
    """Measure a run from its checkpoints: at `bits`, trained or not [default: the trained], and its float network.

    Data and a model that were given to `train_run` must be given again, the model in float; it is left as it is. With
    `adapt` BatchNorm's statistics are first estimated anew for each bit-width, from 8 training batches.
    Raises ValueError, naming the file, for a missing, broken or foreign one, and for a run still in its float phase.
    """
    folder, device = Path(folder), check_device(device)
    options = load_options(folder / CONFIG)
    data, model = data_and_float_network(options, device, data=data_given(data, device), model=copy.deepcopy(model))
    quantized = load_quantized(folder, copy.deepcopy(model))
    load_checkpoint(folder / FLOAT_NETWORK, model)
    bits = options.bits if bits is None else check_bit_widths("evaluate_run", bits, float_path=True)
    untrained = tuple(b for b in bits if b not in (FLOAT, *options.bits))
    images = []
    if untrained or adapt:
        images = [batch.images for batch in calibration_batches(options, data)]
    if untrained:
        quantized = add_bits(quantized, untrained, images)
    networks = {b: adapt_bn(copy.deepcopy(quantized), b, images) if adapt else quantized for b in bits}
    return Evaluation({b: evaluate(network, data, b) for b, network in networks.items()}, untrained,
                      evaluate(model, data, FLOAT), standing(folder / CHECKPOINT)["phase"] == "finished",
                      own_layer_bits(quantized))
