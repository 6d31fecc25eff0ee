"""What one store for all bit-widths costs and gains.

    python bench/compare_trainings.py RUN... [--separate RUN...] [--json FILE]

RUN: folders of `mbq train --quantizer double-rounding` that differ in their seed alone; --separate: runs of one
bit-width each, of the same network, data and float epochs. On all test images, at every bit-width of the runs, mean and
deviation over the seeds:

trained           the network of the run
store             the same with every weight read from its int8 store, switched to the bit-width by mbq_store; it must
                  be right on as many images as training's, and the command fails otherwise
separate          a network trained at this bit-width alone
float, rounded    the run's float network, weights rounded to this bit-width and scales as training begins with, from
                  one batch; BatchNorm's statistics estimated anew from 8 training batches
"""

import argparse
import json
import statistics
import sys
import tempfile
from collections import defaultdict
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parents[1] / "python")]

import torch  # noqa: E402
from rich.console import Console  # noqa: E402
from rich.table import Table  # noqa: E402

import mbq_store  # noqa: E402
from mbq_lab import evaluate  # noqa: E402
from mbq_lab.runs.folder import CONFIG, FLOAT_NETWORK, load_options  # noqa: E402
from mbq_lab.runs.networks import (  # noqa: E402
    calibration_batches,
    data_and_float_network,
    load_data_and_network,
    plan_of,
)
from mbq_train import adapt_bn, export_store, initialise, load_checkpoint  # noqa: E402
from mbq_train.quantize.bits import quantized  # noqa: E402
from mbq_train.quantize.layers import weight_layers  # noqa: E402

WAYS = ("trained", "store", "separate", "float, rounded")


def of_run(folder: Path) -> dict[str, dict[int, float]]:
    """Return {way: {bits: accuracy}} of a run, without 'separate'."""
    options, data, model = load_data_and_network(folder)
    bits = quantized(options.bits)
    found = {"trained": {b: evaluate(model, data, b) for b in bits}, "store": {}, "float, rounded": {}}
    with tempfile.TemporaryDirectory() as place:
        export_store(model, Path(place) / "store")
        for b in bits:
            found["store"][b] = evaluate(_from_store(load_data_and_network(folder)[2], Path(place) / "store", b),
                                         data, b)
    images = [batch.images for batch in calibration_batches(options, data)]
    for b in bits:
        _, network = data_and_float_network(options, data.device)
        load_checkpoint(folder / FLOAT_NETWORK, network)
        network = plan_of(options, data, network, (b,)).apply()
        initialise(network, images[0])
        found["float, rounded"][b] = evaluate(adapt_bn(network, b, images), data, b)
    return found


def _from_store(model: torch.nn.Module, path: Path, bits: int) -> torch.nn.Module:
    """Return `model` with the weights of a store at `bits` bits in the place of its quantized ones."""
    with mbq_store.open(path) as store:
        for name, layer in weight_layers(model).items():
            weight = torch.from_numpy(store.dequantize(name, bits))
            layer.weight_quantizer = _Stored(weight)
    return model


class _Stored(torch.nn.Module):
    def __init__(self, weight: torch.Tensor):
        super().__init__()
        self.register_buffer("weight", weight)

    def forward(self, _):
        return self.weight


def collect(runs: list[Path], separate: list[Path]) -> dict[str, dict[int, list[float]]]:
    """Return {way: {bits: accuracies, one a run}}."""
    found = {way: defaultdict(list) for way in WAYS}
    for folder in runs:
        for way, by_bits in of_run(folder).items():
            for b, accuracy in by_bits.items():
                found[way][b].append(accuracy)
    for folder in separate:
        _, data, model = load_data_and_network(folder)
        bits, = quantized(load_options(folder / CONFIG).bits)
        found["separate"][bits].append(evaluate(model, data, bits))
    return found


def table(found: dict[str, dict[int, list[float]]]) -> Table:
    made = Table("", *(f"{b} bits" for b in found["trained"]), title="test accuracy (%)")
    for way, by_bits in found.items():
        made.add_row(way, *(_text(by_bits.get(b, [])) for b in found["trained"]))
    return made


def _text(accuracies: list[float]) -> str:
    if not accuracies:
        return "-"
    spread = f" +- {100 * statistics.stdev(accuracies):.2f}" if len(accuracies) > 1 else ""
    return f"{100 * statistics.fmean(accuracies):.2f}{spread}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("runs", type=Path, nargs="+", help="folders of runs with double rounding")
    parser.add_argument("--separate", type=Path, nargs="+", default=[], help="folders of runs at one bit-width each")
    parser.add_argument("--json", type=Path, help="write all accuracies to this file")
    arguments = parser.parse_args()
    found = collect(arguments.runs, arguments.separate)
    Console(width=120).print(table(found))
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=1) + "\n")
    return 0 if found["trained"] == found["store"] else 1


if __name__ == "__main__":
    sys.exit(main())
