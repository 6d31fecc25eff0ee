"""started: the network of a finished run, from which another begins."""

import copy
from pathlib import Path

from torch import nn

import mbq_train
from mbq_train.checkpoint import CONVERSION, load_checkpoint, load_metadata

from .folder import CHECKPOINT, FLOAT_NETWORK, check_folder, standing


def started(path, model: nn.Module, conversion: dict) -> tuple[nn.Module, nn.Module, float]:
    """Return the quantized network of the finished run in the folder `path`, its float network and that one's accuracy.

    Args:
        model: a float network, built as that of the run; left as it is.
        conversion: what `describe` says of the network that is to begin with these values.

    Raises ValueError, naming the folder, where there is no finished run, or one of another network, other bit-widths or
    other quantizers.
    """
    check_folder("train", Path(path))
    file = Path(path) / CHECKPOINT
    phase = standing(file)["phase"]
    if phase != "finished":
        raise ValueError(f"train: start_from must hold a finished run, got {path}, whose phase is {phase}")
    quantized = mbq_train.load_quantized(file, copy.deepcopy(model))
    before = load_metadata(file)[CONVERSION]
    if before["bits"] != conversion["bits"]:
        raise ValueError(f"train: start_from must hold a run at the same bits, {conversion['bits']}, got "
                         f"{before['bits']} in {path}")
    layers = {**conversion["layers"], **before["layers"]}
    if other := [name for name in layers if before["layers"].get(name) != conversion["layers"].get(name)]:
        raise ValueError(f"train: start_from must hold a run with the same quantizers, got another or none in one of "
                         f"both at {other[0]!r}, in {path}")
    float_network = copy.deepcopy(model)
    load_checkpoint(Path(path) / FLOAT_NETWORK, float_network)
    return quantized, float_network, standing(file)["float_accuracy"]
