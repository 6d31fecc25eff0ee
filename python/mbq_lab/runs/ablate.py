"""ablate: weight correction and BatchNorm adaptation, with and without each."""

from dataclasses import dataclass, replace
from pathlib import Path

from mbq_train.files import save_json
from mbq_train.quantize.bits import check_bit_widths

from ..options import Options
from .dry_run import dry_run
from .evaluation import Evaluation, evaluate_run
from .folder import check_free
from .observer import Observer
from .run import train_run

ABLATION = "ablation.json"


@dataclass(frozen=True)
class Ablation:
    """cells[correction, adaptation]: a network's accuracies, at bit-widths that were trained and that were not."""

    cells: dict[tuple[bool, bool], Evaluation]


def ablate(options: Options, folder, *, bits=None, device: str = "cpu", overwrite: bool = False,
           observer: Observer | None = None) -> Ablation:
    """Train with and without weight correction, and measure both with and without adapt_bn.

    Args:
        options: what to train; weight_correction is set here.
        folder: gets two runs, corrected and plain, and ablation.json.
        bits: bit-widths to measure, trained or not, from high to low [the trained].
        device, overwrite, observer: as for train_run.

    Raises as train_run and evaluate_run.
    """
    folder, cells, names = Path(folder), {}, ((False, "plain"), (True, "corrected"))
    if bits is not None:  # errors now, not after the first training
        bits = check_bit_widths("ablate", bits, float_path=True)
    for _, name in names:
        check_free(folder / name, overwrite)
    dry_run(replace(options, weight_correction=True), device=device)
    (folder / ABLATION).unlink(missing_ok=True)
    for correction, name in names:
        train_run(replace(options, weight_correction=correction), folder / name, device=device, overwrite=overwrite,
                  observer=observer)
        for adapt in (False, True):
            cells[correction, adapt] = evaluate_run(folder / name, bits=bits, device=device, adapt=adapt)
    save_json(folder / ABLATION, {"options": options.to_json(), "cells": [
        {"correction": correction, "adaptation": adapt, "accuracy": cell.accuracy, "untrained": list(cell.untrained)}
        for (correction, adapt), cell in cells.items()]})
    return Ablation(cells)
