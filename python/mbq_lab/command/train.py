"""The commands that train: train, resume, ablate."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .arguments import RUN, AsJson, Device, Folder, Overwrite, Quiet, SaveEvery, Threads, bits_of, resumable

if TYPE_CHECKING:
    from ..options import Options

Trackers = Annotated[str, typer.Option(rich_help_panel=RUN,
                                       help="where metrics go too: none, or tensorboard,wandb")]


def train(
    options: "Options", *,
    threads: Threads = 1,
    device: Device = "cpu",
    save_every: SaveEvery = 300.0,
    out: Annotated[Path, typer.Option(rich_help_panel=RUN, help="folder of the run")] = Path("runs/digits"),
    overwrite: Overwrite = False,
    trackers: Trackers = "none",
    dry: Annotated[bool, typer.Option("--dry-run", rich_help_panel=RUN, help="print what would be converted and held "
                                      "in memory, and train nothing")] = False,
    print_config: Annotated[bool, typer.Option("--print-config", rich_help_panel=RUN, help="print the options as JSON, "
                                               "for --config, and train nothing")] = False,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Train a float network, then one network at every bit-width, and compare their accuracies.

    Ctrl-C leaves a checkpoint that `mbq resume` goes on from. Under torchrun each process takes a part of every batch.
    --no-compile and its like switch off what a file of --config switches on.
    """
    import torch

    from ..runs.dry_run import dry_run
    from ..runs.run import train_run
    from .output import show
    from .progress import observing

    if print_config:
        show(True, options.to_json())
        return
    torch.set_num_threads(threads)
    if dry:
        plan = dry_run(options, device=device, folder=out, overwrite=overwrite)
        show(as_json, *_plan(plan, options))
        return
    with resumable(out), observing(options, trackers, out, quiet=quiet) as observer:
        result = train_run(options, out, device=device, overwrite=overwrite, save_every=save_every, observer=observer)
    _show_result(as_json, result, out)


def resume(
    run: Folder,
    threads: Annotated[int, typer.Option(min=0, help="CPU threads; 0: as many as before")] = 0,
    device: Device = "cpu",
    save_every: SaveEvery = 300.0,
    trackers: Trackers = "none",
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Go on with a run that was stopped or killed; its options are in its folder."""
    import torch

    from mbq_train.checkpoint import load_metadata

    from ..runs.folder import CHECKPOINT, CONFIG, load_options
    from ..runs.run import resume_run
    from .progress import observing

    options = load_options(run / CONFIG)
    before = load_metadata(run / CHECKPOINT)["parallel"][0] if (run / CHECKPOINT).exists() else 1
    torch.set_num_threads(threads or before)
    with resumable(run), observing(options, trackers, run, quiet=quiet) as observer:
        result = resume_run(run, device=device, save_every=save_every, observer=observer)
    _show_result(as_json, result, run)


def ablate(
    options: "Options", *,
    measure: Annotated[str, typer.Option(rich_help_panel=RUN, help="bit-widths to measure, trained or not; "
                                         "empty: the trained")] = "",
    threads: Threads = 1,
    device: Device = "cpu",
    out: Annotated[Path, typer.Option(rich_help_panel=RUN,
                                      help="folder of both runs")] = Path("runs/ablation"),
    overwrite: Overwrite = False,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Train with and without weight correction, and measure both with and without adapted BatchNorm."""
    import torch

    from ..runs.ablate import ablate as ablate_run
    from .output import show
    from .progress import observing
    from .tables import ablation_table

    torch.set_num_threads(threads)
    with observing(options, quiet=quiet) as observer:
        result = ablate_run(options, out, bits=bits_of(measure, option="measure"), device=device, overwrite=overwrite,
                            observer=observer)
    cells = [{"correction": correction, "adaptation": adapt, **asdict(cell)}
             for (correction, adapt), cell in result.cells.items()]
    show(as_json, {"folder": out, "cells": cells}, ablation_table(result), f"written: {out}")


def _show_result(as_json: bool, result, out: Path) -> None:
    from mbq_train import distributed

    from ..runs.evaluation import Evaluation
    from .output import show
    from .tables import accuracy_table, layer_table, mixed_table

    if not distributed.is_first():
        return
    trained = Evaluation(result.accuracy, (), result.float_accuracy, True, result.recipe.get("layer_bits", {}))
    parts = [accuracy_table(trained)]
    if trained.layer_bits:
        sizes = (f"{result.recipe['mean_bits']:.2f} bits a quantized weight; with what is float, all parameters are "
                 f"{result.recipe['compression_of_all_parameters']:.2f} x smaller")
        parts += [layer_table(result.recipe), sizes]
    if "mixed" in result.recipe:
        parts.append(mixed_table(result.recipe["mixed"]))
    show(as_json, {"folder": out, **asdict(result)}, *parts, f"{result.step_ms:.2f} ms a step; written: {out}",
         f"next: mbq eval {out}, mbq export {out} --store FILE")


def _plan(plan, options: "Options") -> tuple:
    """Return a dry run as a JSON object and as what is printed."""
    from .tables import conversion_table, memory_table

    memory = {**vars(plan.memory), "total": plan.memory.total}
    layers = [{"name": entry.name, "type": entry.type, "parameters": entry.parameters, "action": entry.action,
               "why": entry.why} for entry in plan.conversion.entries]
    facts = {"options": options.to_json(), "modules": layers, "memory": memory, "steps": plan.steps}
    return (facts, conversion_table(plan.conversion), memory_table(memory),
            f"{plan.steps} batches an epoch, {options.float_epochs} + {options.epochs} epochs")
