"""The command `mbq`: train, resume, eval, sensitivity, score, transfer, ablate, export, switch, inspect, info."""

import contextlib
import os
import sys
from pathlib import Path
from typing import Annotated

import torch
import typer
from mbq_train import distributed
from mbq_train._packages import required
from mbq_train.checkpoint import atomic_path, load_metadata
from mbq_train.export import export_onnx, export_store
from rich.console import Console
from rich.table import Table

from ..options import Options
from ..runs.ablate import ablate
from ..runs.dry_run import DryRun, dry_run
from ..runs.evaluation import Evaluation, evaluate_run
from ..runs.folder import CHECKPOINT, CONFIG, load_options
from ..runs.networks import load_quantized
from ..runs.plots import plot_store
from ..runs.run import Result, resume_run, train_run
from ..runs.score import score_run, transfer_run
from ..runs.sensitivity import sensitivity_of_run
from .arguments import bits_of, clean_errors, with_options
from .progress import layer_table, progress_of
from .tables import (
    ablation_table,
    accuracy_table,
    conversion_table,
    score_table,
    sensitivity_table,
    store_table,
    transfer_tables,
)

app = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False,
                  help="Train one network that computes at several bit-widths.")

_Threads = Annotated[int, typer.Option(min=1, help="CPU threads; small networks gain nothing from more")]
_Device = Annotated[str, typer.Option(help="cpu, cuda or cuda:N")]
_SaveEvery = Annotated[float, typer.Option(min=0, help="seconds between two checkpoints within an epoch")]
_Overwrite = Annotated[bool, typer.Option("--overwrite", help="replace a run that is there")]
_Folder = Annotated[Path, typer.Argument(metavar="RUN", help="folder of a run")]
_Trained = Annotated[str, typer.Option(help="trained bit-widths, from high to low; empty: all")]


@app.command()
@with_options
def train(
    options: Options, *,
    threads: _Threads = 1,
    device: _Device = "cpu",
    save_every: _SaveEvery = 300.0,
    out: Annotated[Path, typer.Option(help="folder of the run")] = Path("runs/digits"),
    overwrite: _Overwrite = False,
    dry: Annotated[bool, typer.Option("--dry-run", help="print what would be converted and held in memory")] = False,
) -> None:
    """Train a float network, then one network at every bit-width, and compare their accuracies.

    Ctrl-C leaves a checkpoint that `mbq resume` goes on from. Under torchrun each process takes a part of every batch.
    """
    torch.set_num_threads(threads)
    if dry:
        _print_dry_run(dry_run(options, device=device, folder=out, overwrite=overwrite), options)
        return
    with progress_of(options) as observer:
        result = train_run(options, out, device=device, overwrite=overwrite, save_every=save_every, observer=observer)
    _print_result(result, out)


@app.command()
def resume(
    run: _Folder,
    threads: Annotated[int, typer.Option(min=0, help="CPU threads; 0: as many as before")] = 0,
    device: _Device = "cpu",
    save_every: _SaveEvery = 300.0,
) -> None:
    """Go on with a run that was stopped or killed; its options are in its folder."""
    with clean_errors():
        before = load_metadata(run / CHECKPOINT)["parallel"][0] if (run / CHECKPOINT).exists() else 1
        torch.set_num_threads(threads or before)
        with progress_of(load_options(run / CONFIG)) as observer:
            result = resume_run(run, device=device, save_every=save_every, observer=observer)
        _print_result(result, run)


@app.command("eval")
def evaluate(
    run: _Folder,
    bits: Annotated[str, typer.Option(help="bit-widths, trained or not, from high to low; empty: the trained")] = "",
    adapt_bn: Annotated[bool, typer.Option("--adapt-bn", help="estimate BatchNorm's statistics anew for each")] = False,
    threads: _Threads = 1,
    device: _Device = "cpu",
) -> None:
    """Measure the accuracy of a run at every bit-width."""
    with clean_errors():
        torch.set_num_threads(threads)
        result = evaluate_run(run, bits=bits_of(bits), device=device, adapt=adapt_bn)
        Console().print(accuracy_table(result))
        if not result.finished:
            typer.echo("this run is not finished: these are its numbers at the last checkpoint")


@app.command()
def sensitivity(
    run: _Folder,
    bits: Annotated[str, typer.Option(help="bit-widths, from high to low; empty: the run's")] = "",
    threads: _Threads = 1,
    device: _Device = "cpu",
) -> None:
    """Measure how much the loss of a run's float network grows when a layer is quantized: HAWQ-V2's sensitivity."""
    with clean_errors():
        torch.set_num_threads(threads)
        with progress_of(load_options(run / CONFIG)) as observer:
            found = sensitivity_of_run(run, bits=bits_of(bits), device=device,
                                       observer=observer)
        Console().print(sensitivity_table(found))
        typer.echo(f"written: {run / 'sensitivity.json'}, {run / 'sensitivity.png'}")


@app.command()
def score(
    run: _Folder,
    by: Annotated[str, typer.Option("--score", help="grand, last_layer or el2n")] = "grand",
    bits: _Trained = "",
    out: Annotated[Path | None, typer.Option(help="folder to write to; the run's without")] = None,
    images: Annotated[int, typer.Option(min=1, max=512, help="hardest and easiest images to show")] = 16,
    threads: _Threads = 1,
    device: _Device = "cpu",
) -> None:
    """Score every training image: scores.parquet, scores.png, and the hardest and easiest images in images.png."""
    with clean_errors():
        torch.set_num_threads(threads)
        result = score_run(run, score=by, bits=bits_of(bits), out=out, images=images, device=device)
        Console().print(score_table(result, by))
        typer.echo(f"written: {run if out is None else out}")


@app.command()
def transfer(run: _Folder, bits: _Trained = "", threads: _Threads = 1, device: _Device = "cpu") -> None:
    """Measure what bit-widths share, angles of gradients and linear probes: transfer.json and transfer.png."""
    with clean_errors():
        torch.set_num_threads(threads)
        Console().print(*transfer_tables(transfer_run(run, bits=bits_of(bits), device=device)))
        typer.echo(f"written: {run}")


@app.command("ablate")
@with_options
def ablate_command(
    options: Options, *,
    measure: Annotated[str, typer.Option(help="bit-widths to measure, trained or not; empty: the trained")] = "",
    threads: _Threads = 1,
    device: _Device = "cpu",
    out: Annotated[Path, typer.Option(help="folder of both runs")] = Path("runs/ablation"),
    overwrite: _Overwrite = False,
) -> None:
    """Train with and without weight correction, and measure both with and without adapted BatchNorm."""
    torch.set_num_threads(threads)
    with progress_of(options) as observer:
        result = ablate(options, out, bits=bits_of(measure), device=device, overwrite=overwrite, observer=observer)
    Console().print(ablation_table(result))
    typer.echo(f"written: {out}")


@app.command()
def export(
    run: _Folder,
    store: Annotated[Path | None, typer.Option(help="file to write: an int8 store, as mbq_store reads it")] = None,
    onnx: Annotated[Path | None, typer.Option(help="file to write: ONNX, at the one bit-width --bits")] = None,
    bits: Annotated[int, typer.Option(help="the bit-width, but for the store of codes that are rounded "
                                           "twice, and for layers that have their own")] = 0,
    layout: Annotated[str, typer.Option(help="of the store: codes, planes, or packed, the fewest bytes")] = "codes",
    rest: Annotated[str, typer.Option(help="of the store: float32 or bfloat16, what is not quantized")] = "float32",
    batch: Annotated[int, typer.Option(min=0, help="of ONNX: images in a batch; 0: any number")] = 0,
) -> None:
    """Write a run's network as a store, from which every bit-width is read after double rounding, or as ONNX."""
    with clean_errors():
        if store is None and onnx is None:
            raise ValueError("export: --store or --onnx must name a file to write, got neither")
        if store == onnx:
            raise ValueError(f"export: --store and --onnx must name two files, got {store} for both")
        model, data = load_quantized(run)
        with contextlib.ExitStack() as files:  # both are written or none
            if store is not None:
                export_store(model, files.enter_context(atomic_path(store)), bits=bits or None, layout=layout,
                             rest=rest)
            if onnx is not None:
                images = torch.zeros(batch or 1, data.in_channels, *data.image_size)
                export_onnx(model, files.enter_context(atomic_path(onnx)), bits=bits, example=images,
                            dynamic_batch=not batch)
        for path in filter(None, (store, onnx)):
            typer.echo(f"written: {path} ({path.stat().st_size / 2**20:.2f} MiB)")


@app.command()
def switch(
    store: Annotated[Path, typer.Argument(help="an int8 store")],
    bits: Annotated[int, typer.Option(help="the bit-width of the new store")],
    out: Annotated[Path, typer.Option("--out", "-o", help="file to write")],
) -> None:
    """Write a store of one lower bit-width, packed."""
    with clean_errors():
        required("switch", "mbq_store").switch(store, bits, out)
        typer.echo(f"written: {out} ({out.stat().st_size / 2**20:.2f} MiB)")


@app.command()
def inspect(
    store: Annotated[Path, typer.Argument(help="an int8 store")],
    plot: Annotated[Path | None, typer.Option(help="PNG of the error of every layer at every bit-width")] = None,
) -> None:
    """Print the sizes of a store and the error of every layer at every bit-width."""
    with clean_errors():
        facts = required("inspect", "mbq_store").inspect(store)
        if plot is not None:
            plot_store(plot, facts)
        Console().print(store_table(facts))
        sizes = {"": facts["file_bytes"], "as float32: ": facts["float32_bytes"]}
        sizes |= {f"{b} bits: ": size for b, size in facts["bytes_at"].items()}
        typer.echo("  ".join(f"{name}{size / 2**20:.2f} MiB" for name, size in sizes.items()))


@app.command()
def info() -> None:
    """Print versions, the build, and which backend every op uses here."""
    from mbq_kernels import info as kernels_info

    kernels_info.main()


def _print_result(result: Result, out: Path) -> None:
    if not distributed.is_first():
        return
    trained = Evaluation(result.accuracy, (), result.float_accuracy, True, result.recipe.get("layer_bits", {}))
    Console().print(accuracy_table(trained))
    if trained.layer_bits:
        Console().print(layer_table(result.recipe))
        typer.echo(f"{result.recipe['mean_bits']:.2f} bits a quantized weight; with what is float, all parameters are "
                   f"{result.recipe['compression_of_all_parameters']:.2f} x smaller")
    typer.echo(f"{result.step_ms:.2f} ms a step; written: {out}")


def _print_dry_run(plan: DryRun, options: Options) -> None:
    table = Table("held at once, in each process", "MiB", title="Memory")
    for name, size in vars(plan.memory).items():
        table.add_row(name.replace("_", " "), f"{size / 2**20:.1f}")
    table.add_row("total", f"{plan.memory.total / 2**20:.1f}")
    Console().print(conversion_table(plan.conversion), table)
    typer.echo(f"{plan.steps} batches an epoch, {options.float_epochs} + {options.epochs} epochs")


def main() -> None:
    """Run the command, which finds modules beside it: `--model my_networks:factory`."""
    sys.path.insert(0, os.getcwd())
    app()


if __name__ == "__main__":
    main()
