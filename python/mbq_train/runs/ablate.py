"""ablate: weight correction and BatchNorm adaptation, with and without each."""

from dataclasses import dataclass, replace
from pathlib import Path

from ..options import Options
from .checkpoint import save_json
from .evaluate import Evaluation, evaluate_run
from .run import train_run

ABLATION = "ablation.json"


@dataclass(frozen=True)
class Ablation:
    """cells[correction, adaptation]: a network's accuracies, at bit-widths that were trained and that were not."""

    cells: dict[tuple[bool, bool], Evaluation]


def ablate(options: Options, folder, *, bits=None, device: str = "cpu", overwrite: bool = False,
           **callbacks) -> Ablation:
    """Train with and without weight correction, and measure both with and without adapt_bn.

    Args:
        options: what to train; weight_correction is set here.
        folder: gets two runs, corrected and plain, and ablation.json.
        bits: bit-widths to measure, trained or not, from high to low [the trained].
        device, overwrite, callbacks: as for train_run.

    Raises as train_run and evaluate_run.
    """
    folder = Path(folder)
    runs = {True: folder / "corrected", False: folder / "plain"}
    for correction, run in runs.items():  # the corrected one first: where there is no correction, nothing is trained
        train_run(replace(options, weight_correction=correction), run, device=device, overwrite=overwrite, **callbacks)
    cells = {(correction, adapt): evaluate_run(runs[correction], bits=bits, device=device, adapt=adapt)
             for correction in (False, True) for adapt in (False, True)}
    save_json(folder / ABLATION, {"options": options.to_json(), "cells": [
        {"correction": correction, "adaptation": adapt, "accuracy": cell.accuracy, "untrained": list(cell.untrained)}
        for (correction, adapt), cell in cells.items()]})
    return Ablation(cells)
