"""start: a network takes the values of a finished run, to be trained further by another recipe."""

import copy
from pathlib import Path

from torch import nn

import mbq_train
from mbq_train.checkpoint import load_checkpoint
from mbq_train.conversion.description import describe

from .folder import CHECKPOINT, FLOAT_NETWORK, check_folder, standing


def start(model: nn.Module, path, network: nn.Module) -> tuple[nn.Module, float]:
    """Give the converted `model` the values that the finished run in the folder `path` has; return the run's float
    network and its accuracy.

    Args:
        network: a float network, built as `model` was; left as it is.

    Raises ValueError, naming the folder, where there is no finished run, or one of another network, at other bit-widths
    or with other quantizers or norms.
    """
    check_folder("train", Path(path))
    file = Path(path) / CHECKPOINT
    standing_at = standing(file)
    if standing_at["phase"] != "finished":
        raise ValueError(f"train: start_from must hold a finished run, got {path}, whose phase is "
                         f"{standing_at['phase']}")
    before = mbq_train.load_quantized(file, copy.deepcopy(network))
    was, now = describe(before), describe(model)
    if was["bits"] != now["bits"]:
        raise ValueError(f"train: start_from must hold a run at the same bits, {now['bits']}, got {was['bits']} in "
                         f"{path}")
    other = [name for name in {**now["layers"], **was["layers"]} if was["layers"].get(name) != now["layers"].get(name)]
    if other:
        raise ValueError(f"train: start_from must hold a run with the same quantizers, got others at {other[0]!r} in "
                         f"{path}")
    try:
        model.load_state_dict(before.state_dict())
    except RuntimeError as error:  # that names every tensor, and at its end a norm that cannot become that of `model`
        raise ValueError(f"train: start_from must hold a run whose norms fit, got {path} "
                         f"({str(error).splitlines()[-1].strip()})") from error
    float_network = copy.deepcopy(network)
    load_checkpoint(Path(path) / FLOAT_NETWORK, float_network)
    return float_network, standing_at["float_accuracy"]
