"""Does every deployment of a network compute what was trained?   python bench/compare_deployments.py RUN

RUN is a folder of `mbq train --quantizer double-rounding`. At every trained bit-width and for every form of the network
(weights read by mbq_store; deploy with codes and with planes; ONNX in a default session of onnxruntime), over the test
set:

weights         layers whose weight is that of training, bit for bit
logits          whether those of all images are, bit for bit
layer error     the worst of all layers and batches: the layer of training is fed what the deployed layer was fed;
                largest absolute difference of the two outputs, divided by the largest absolute output; of onnxruntime
                in a second session, which gives out what the layers take and give
top-1           images with the class that the network of training gives, end to end
flipped codes   codes of activations that differ from its, end to end, because sums are in another order

It fails unless weights are the same, logits with mbq_store's weights too, errors at most 1e-5, top-1 at least 99.9 %.
"""

import argparse
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parents[1] / "python")]

import numpy as np  # noqa: E402
import torch  # noqa: E402
from deployed_networks import TorchNetwork, deployments  # noqa: E402
from rich.console import Console  # noqa: E402
from rich.table import Table  # noqa: E402

from mbq_kernels import quantize_codes  # noqa: E402
from mbq_lab.runs.networks import load_data_and_network  # noqa: E402
from mbq_train import QuantConv1d, QuantConv2d, QuantLinear  # noqa: E402
from mbq_train.quantize.bits import bit_states  # noqa: E402

LAYER_ERROR, AGREEMENT = 1e-5, 0.999  # what must hold
WIDTH = 120  # of the table


@dataclass
class Row:
    """One deployment at one bit-width; counts grow batch by batch. compared: layers whose outputs of the last batch
    were compared."""
    bits: int
    path: str
    layers: int
    same_weights: int
    compared: int = 0
    same_logits: bool = True
    layer_error: float = 0.0
    images: int = 0
    agreeing: int = 0
    right: int = 0
    codes: int = 0
    flipped: int = 0

    @property
    def holds(self) -> bool:
        return (self.same_weights == self.layers and self.layer_error <= LAYER_ERROR
                and self.agreeing >= AGREEMENT * self.images and (self.same_logits or self.path != "mbq_store"))


@torch.no_grad()
def compare(model: torch.nn.Module, batches, *, bits=None) -> list[Row]:
    """The rows of every deployment at `bits` [all that were trained] over `batches`, a list of (images, labels)."""
    layers = {name: module for name, module in model.named_modules()
              if isinstance(module, (QuantLinear, QuantConv1d, QuantConv2d))}
    rows = []
    for b in bits or bit_states(model)[0].trained:
        with tempfile.TemporaryDirectory() as folder:
            others = deployments(model, layers, b, batches[0][0], Path(folder))
        trained = TorchNetwork(model, layers, b, lambda layer: layer.weight_quantizer(layer.weight))
        found = {path: Row(b, path, len(layers), sum(np.array_equal(other.weights[name], trained.weights[name])
                                                     for name in layers)) for path, other in others.items()}
        for images, labels in batches:
            want = trained(images)
            for path, other in others.items():
                _add(found[path], layers, want, other(images), labels)
        rows += found.values()
    return rows


def _add(row: Row, layers, want, got, labels) -> None:
    classes = got.logits.argmax(1)
    row.images += len(labels)
    row.agreeing += int((classes == want.logits.argmax(1)).sum())
    row.right += int((classes == labels).sum())
    row.same_logits &= torch.equal(got.logits, want.logits)
    row.compared = 0
    for name, layer in layers.items():
        x, y = got.layers[name]
        same = layer(x)
        row.compared += y.numel() > 0 and y.shape == same.shape
        row.layer_error = max(row.layer_error, float((y - same).abs().max() / same.abs().max()))
        codes, wanted = (_codes(layer.input_quantizer, row.bits, given) for given in (x, want.layers[name][0]))
        row.codes += codes.numel()
        row.flipped += int((codes != wanted).sum())


def _codes(quantizer, bits: int, x):
    return quantize_codes(x, quantizer.scale(bits), quantizer.current()[1], bits=bits, signed=quantizer.signed)


def table(rows: list[Row]) -> Table:
    made = Table("bits", "deployment", "weights", "logits", "layer error", "top-1 as trained", "flipped codes",
                 "accuracy (%)", "")
    for row in rows:
        made.add_row(str(row.bits), row.path, f"{row.same_weights} of {row.layers}",
                     "the same" if row.same_logits else "differ", f"{row.layer_error:.1e}",
                     f"{row.agreeing} of {row.images}", f"{row.flipped} of {row.codes:.2e}",
                     f"{100 * row.right / row.images:.2f}", "" if row.holds else "FAILED")
    return made


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("run", type=Path, help="folder of a run with double rounding")
    parser.add_argument("--bits", type=int, nargs="+", help="default: all that were trained")
    parser.add_argument("--images", type=int, help="of the test set; default: all")
    parser.add_argument("--batch-size", type=int, default=50)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    _, data, model = load_data_and_network(arguments.run)
    batches = [(batch.images, batch.labels) for batch in data.test_batches(arguments.batch_size)]
    rows = compare(model, batches[:-(-(arguments.images or data.test_size) // arguments.batch_size)],
                   bits=arguments.bits)
    Console(width=WIDTH).print(table(rows))
    return 0 if all(row.holds for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
