"""The commands that measure a run: eval, sensitivity, score, transfer."""

from pathlib import Path
from typing import Annotated

import typer

from .arguments import AsJson, Device, Folder, Threads, Trained, bits_of


def evaluate(
    run: Folder,
    bits: Annotated[str, typer.Option(help="bit-widths, trained or not, from high to low; empty: the "
                                      "trained")] = "",
    adapt_bn: Annotated[bool, typer.Option("--adapt-bn", help="estimate BatchNorm's statistics anew for each")] = False,
    threads: Threads = 1,
    device: Device = "cpu",
    as_json: AsJson = False,
) -> None:
    """Measure the accuracy of a run at every bit-width."""
    import torch

    from ..runs.evaluation import evaluate_run
    from .output import show
    from .tables import accuracy_table

    torch.set_num_threads(threads)
    result = evaluate_run(run, bits=bits_of(bits), device=device, adapt=adapt_bn)
    unfinished = "this run is not finished: these are its numbers at the last checkpoint"
    show(as_json, vars(result), accuracy_table(result), "" if result.finished else unfinished)


def sensitivity(
    run: Folder,
    bits: Annotated[str, typer.Option(help="bit-widths, from high to low; empty: the run's")] = "",
    threads: Threads = 1,
    device: Device = "cpu",
    as_json: AsJson = False,
) -> None:
    """Measure how much the loss of a run's float network grows when a layer is quantized: HAWQ-V2's sensitivity."""
    import torch

    from ..runs.folder import CONFIG, SENSITIVITY, load_options
    from ..runs.sensitivity import sensitivity_of_run
    from ..training.traces import TRACES
    from .output import show
    from .progress import observing
    from .tables import sensitivity_table

    torch.set_num_threads(threads)
    with observing(load_options(run / CONFIG)) as observer:
        found = sensitivity_of_run(run, bits=bits_of(bits), device=device, observer=observer)
    written = [run / TRACES, run / SENSITIVITY]
    facts = {"traces": {name: vars(trace) for name, trace in found.traces.items()}, "at_bits": found.at_bits,
             "written": written}
    show(as_json, facts, sensitivity_table(found), f"written: {written[0]}, {written[1]}")


def score(
    run: Folder,
    by: Annotated[str, typer.Option("--score", help="grand, last_layer or el2n")] = "grand",
    bits: Trained = "",
    out: Annotated[Path | None, typer.Option(help="folder to write to, in place of the run's")] = None,
    images: Annotated[int, typer.Option(min=1, max=512, help="hardest and easiest images to show")] = 16,
    threads: Threads = 1,
    device: Device = "cpu",
    as_json: AsJson = False,
) -> None:
    """Score every training image: scores.parquet, scores.png, and the hardest and easiest images in images.png."""
    import torch

    from ..runs.folder import HISTOGRAM, SCORES, SHEET
    from ..runs.score import score_run
    from .output import show
    from .tables import score_statistics, score_table

    torch.set_num_threads(threads)
    result = score_run(run, score=by, bits=bits_of(bits), out=out, images=images, device=device)
    written = [(out or run) / name for name in (SCORES, HISTOGRAM, SHEET)]
    facts = {"score": by, "bits": score_statistics(result), "hardest": result.hardest.tolist(),
             "easiest": result.easiest.tolist(), "written": written}
    show(as_json, facts, score_table(result, by), f"written: {', '.join(map(str, written))}")


def transfer(run: Folder, bits: Trained = "", threads: Threads = 1, device: Device = "cpu",
             as_json: AsJson = False) -> None:
    """Measure what bit-widths share, angles of gradients and linear probes: transfer.json and transfer.png."""
    import torch

    from ..runs.folder import TRANSFER, TRANSFER_PLOT
    from ..runs.score import transfer_run
    from .output import show
    from .tables import transfer_tables

    torch.set_num_threads(threads)
    facts = transfer_run(run, bits=bits_of(bits), device=device)
    written = [run / TRANSFER, run / TRANSFER_PLOT]
    show(as_json, {**facts, "written": written}, *transfer_tables(facts), f"written: {written[0]}, {written[1]}")
