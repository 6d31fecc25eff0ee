"""score_run and transfer_run: what the images of a run's training set still teach it, bit-width by bit-width."""

import json
from dataclasses import dataclass
from pathlib import Path

import torch

from mbq_train._packages import required
from mbq_train.coreset.scores import score_images
from mbq_train.coreset.transfer import gradient_angles
from mbq_train.files import atomic_path, save_json
from mbq_train.quantize.batch_norm import norm_of
from mbq_train.quantize.bits import FLOAT, check_bit_widths

from .folder import HISTOGRAM, SCORES, SHEET, TRANSFER, TRANSFER_PLOT, check_folder
from .linear_probe import linear_probe
from .networks import load_data_and_network
from .plots import plot_scores, plot_transfer
from .sheet import contact_sheet

_ANGLE_BATCHES = 8


@dataclass(frozen=True)
class ScoredRun:
    """{bits: (train_size,) scores}; labels; the rows of the hardest and the easiest images, by the mean over bits."""

    scores: dict[int, torch.Tensor]
    labels: torch.Tensor
    hardest: torch.Tensor
    easiest: torch.Tensor


def score_run(folder, *, score: str = "grand", bits=None, out=None, images: int = 16, device: str = "cpu") -> ScoredRun:
    """Score every training image of a run with its network as it stands, and write what was found.

    Args:
        folder: of the run.
        score: grand, last_layer or el2n, as of score_images.
        bits: trained bit-widths [all of the run's].
        out: folder for scores.parquet (row, label, a column for each bit-width), scores.png (histograms) and images.png
            (the hardest and the easiest images) [the run's].
        images: of each on the sheet.

    Raises ValueError as score_images and evaluate_run, and where a score is not finite. OSError: cannot be written.
    """
    for package in ("PIL", "matplotlib", "pyarrow"):  # before hours of scoring, not after
        required("score_run", package)
    folder = Path(folder)
    out = folder if out is None else Path(out)
    check_folder("score_run", out)
    options, data, model = load_data_and_network(folder, device)
    bits = options.bits if bits is None else check_bit_widths("score_run", bits, float_path=True)
    scores = score_images(model, data.still_batches(max(options.batch_size, 64)), bits, score=score)
    out.mkdir(parents=True, exist_ok=True)
    _write_parquet(out / SCORES, scores, data.train_labels, score)
    mean = torch.stack([value / value.mean().clamp_min(1e-30) for value in scores.values()]).mean(dim=0)
    order = mean.argsort(descending=True, stable=True)
    result = ScoredRun(scores, data.train_labels, order[:images], order.flip(0)[:images])
    plot_scores(out / HISTOGRAM, scores, score)
    contact_sheet(out / SHEET, data, {"hardest": result.hardest, "easiest": result.easiest}, mean,
                  f"Training images by their score ({score}) over the average, mean of all bit-widths")
    return result


def transfer_run(folder, *, bits=None, device: str = "cpu") -> dict:
    """Measure angles between the gradients of a run's bit-widths and accuracies of linear probes between their
    features.

    Writes transfer.json and transfer.png to the run's folder; returns what the first holds: {"bits", "angles": {layer:
    matrix}, "probe": matrix}. Raises as score_run, and ValueError for fewer than two bit-widths.
    """
    for package in ("matplotlib", "sklearn"):
        required("transfer_run", package)
    folder = Path(folder)
    options, data, model = load_data_and_network(folder, device)
    bits = options.bits if bits is None else check_bit_widths("transfer_run", bits, float_path=True)
    if len(bits) < 2:
        raise ValueError(f"transfer_run: bits must be at least two, to compare, got {bits}")
    batches = [batch for batch, _ in zip(data.still_batches(options.batch_size), range(_ANGLE_BATCHES), strict=False)]
    angles = gradient_angles(model, batches, bits)
    shared = {name: matrix.tolist() for name, matrix in angles.items() if norm_of(name) is None}  # others: 90 degrees
    facts = {"bits": list(bits), "angles": shared,
             "probe": linear_probe(model, data, bits).tolist()}
    save_json(folder / TRANSFER, facts)
    plot_transfer(folder / TRANSFER_PLOT, facts)
    return facts


def _write_parquet(path: Path, scores: dict[int, torch.Tensor], labels: torch.Tensor, name: str) -> None:
    import pyarrow
    import pyarrow.parquet

    columns = {"row": torch.arange(len(labels)).numpy(), "label": labels.numpy()}
    columns |= {"float" if b == FLOAT else f"bits_{b}": score.numpy() for b, score in scores.items()}
    table = pyarrow.table(columns).replace_schema_metadata({"mbq": json.dumps({"score": name, "bits": list(scores)})})
    with atomic_path(path) as temporary:
        pyarrow.parquet.write_table(table, temporary)
