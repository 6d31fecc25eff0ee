"""The command `mbq`: train, resume, eval, score, transfer, ablate, export, switch, inspect, info."""

import contextlib
import inspect as signatures
import os
import sys
from dataclasses import fields
from pathlib import Path
from typing import Annotated

import mbq_store
import torch
import typer
from rich.console import Console
from rich.table import Table

from mbq_kernels import BackendError

from . import distributed
from .export import export_onnx, export_store
from .options import Options
from .runs.ablate import ablate
from .runs.checkpoint import load_metadata
from .runs.evaluate import DryRun, Evaluation, dry_run, evaluate_run, load_quantized
from .runs.folder import CHECKPOINT, CONFIG, load_options
from .runs.plots import plot_store
from .runs.progress import progress_of
from .runs.run import Result, resume_run, train_run
from .runs.score import score_run, transfer_run
from .runs.tables import ablation_table, network_name, score_table, transfer_tables
from .training.divergence import TrainingError
from .training.interrupt import Interrupted

app = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False,
                  help="Train one network that computes at several bit-widths.")

_Threads = Annotated[int, typer.Option(min=1, help="CPU threads; small networks gain nothing from more")]
_Device = Annotated[str, typer.Option(help="cpu, cuda or cuda:N")]
_SaveEvery = Annotated[float, typer.Option(min=0, help="seconds between two checkpoints within an epoch")]
_Overwrite = Annotated[bool, typer.Option("--overwrite", help="replace a run that is there")]
_Folder = Annotated[Path, typer.Argument(metavar="RUN", help="folder of a run")]
_Trained = Annotated[str, typer.Option(help="trained bit-widths, from high to low; empty: all")]


def _with_options(command):
    """`command` with one command line option for each of Options, which it gets as one Options object."""
    def run(context: typer.Context, **arguments):
        with _clean_errors():
            values = {option.name: _parsed(option, arguments.pop(option.name)) for option in fields(Options)}
            given = {name: value for name, value in values.items() if name != "recipe"
                     and context.get_parameter_source(name).name != "DEFAULT"}
            command(Options.for_recipe(values["recipe"], **given), **arguments)

    own = [parameter for name, parameter in signatures.signature(command).parameters.items() if name != "options"]
    context = signatures.Parameter("context", signatures.Parameter.POSITIONAL_OR_KEYWORD, annotation=typer.Context)
    parameters = [context, *(_parameter(option) for option in fields(Options)), *own]
    run.__signature__ = signatures.Signature(parameters)
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    run.__doc__, run.__name__ = command.__doc__, command.__name__
    return run


def _parameter(option) -> signatures.Parameter:
    default, words = option.default, [option.metadata["help"], ", ".join(option.metadata.get("choices", ()))]
    help_ = ": ".join(word for word in words if word)
    kind = str if isinstance(default, tuple) else type(default)
    shown = ",".join(map(str, default)) if isinstance(default, tuple) else default
    return signatures.Parameter(option.name, signatures.Parameter.KEYWORD_ONLY, default=shown,
                             annotation=Annotated[kind, typer.Option(help=help_)])


def _parsed(option, value):
    """A tuple from its text; anything else is what typer made of it."""
    if not isinstance(option.default, tuple):
        return value
    parts = tuple(part for part in value.split(",") if part)
    return parts if option.name == "keep_float" else _integers(option.name, parts)


def _integers(name: str, parts) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in parts)
    except ValueError:
        raise ValueError(f"mbq: {name} must be integers separated by commas, got {','.join(parts)!r}") from None


def _bits(text: str) -> tuple[int, ...] | None:
    """Bit-widths from their text, from high to low; None for none."""
    parts = [part for part in text.split(",") if part]
    return _integers("bits", parts) if parts else None


@app.command()
@_with_options
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
        _print_dry_run(dry_run(options, device=device), options)
        return
    with progress_of(options) as callbacks:
        result = train_run(options, out, device=device, overwrite=overwrite, save_every=save_every, **callbacks)
    _print_result(result, out)


@app.command()
def resume(
    run: _Folder,
    threads: Annotated[int, typer.Option(min=0, help="CPU threads; 0: as many as before")] = 0,
    device: _Device = "cpu",
    save_every: _SaveEvery = 300.0,
) -> None:
    """Go on with a run that was stopped or killed; its options are in its folder."""
    with _clean_errors():
        before = load_metadata(run / CHECKPOINT)["parallel"][0] if (run / CHECKPOINT).exists() else 1
        torch.set_num_threads(threads or before)
        with progress_of(load_options(run / CONFIG)) as callbacks:
            callbacks.pop("on_plan")
            result = resume_run(run, device=device, save_every=save_every, **callbacks)
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
    with _clean_errors():
        torch.set_num_threads(threads)
        result = evaluate_run(run, bits=_bits(bits), device=device, adapt=adapt_bn)
        Console().print(_accuracy_table(result))
        if not result.finished:
            typer.echo("this run is not finished: these are its numbers at the last checkpoint")


@app.command()
def score(
    run: _Folder,
    by: Annotated[str, typer.Option("--score", help="grand, last_layer or el2n")] = "grand",
    bits: _Trained = "",
    out: Annotated[Path | None, typer.Option(help="folder to write to; the run's without")] = None,
    images: Annotated[int, typer.Option(min=1, help="hardest and easiest images to show")] = 16,
    threads: _Threads = 1,
    device: _Device = "cpu",
) -> None:
    """Score every training image: scores.parquet, scores.png, and the hardest and easiest images in images.png."""
    with _clean_errors():
        torch.set_num_threads(threads)
        result = score_run(run, score=by, bits=_bits(bits), out=out, images=images, device=device)
        Console().print(score_table(result, by))
        typer.echo(f"written: {run if out is None else out}")


@app.command()
def transfer(run: _Folder, bits: _Trained = "", threads: _Threads = 1, device: _Device = "cpu") -> None:
    """Measure what bit-widths share, angles of gradients and linear probes: transfer.json and transfer.png."""
    with _clean_errors():
        torch.set_num_threads(threads)
        Console().print(*transfer_tables(transfer_run(run, bits=_bits(bits), device=device)))
        typer.echo(f"written: {run}")


@app.command("ablate")
@_with_options
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
    with progress_of(options) as callbacks:
        result = ablate(options, out, bits=_bits(measure), device=device, overwrite=overwrite, **callbacks)
    Console().print(ablation_table(result))
    typer.echo(f"written: {out}")


@app.command()
def export(
    run: _Folder,
    store: Annotated[Path | None, typer.Option(help="file to write: an int8 store, as mbq_store reads it")] = None,
    onnx: Annotated[Path | None, typer.Option(help="file to write: ONNX, at the one bit-width --bits")] = None,
    bits: Annotated[int, typer.Option(help="with --onnx, or without double rounding: the bit-width")] = 0,
    layout: Annotated[str, typer.Option(help="of the store: codes or planes")] = "codes",
    rest: Annotated[str, typer.Option(help="of the store: float32 or bfloat16, what is not quantized")] = "float32",
    batch: Annotated[int, typer.Option(min=0, help="of ONNX: images in a batch; 0: any number")] = 0,
) -> None:
    """Write a run's network as a store, from which every bit-width is read after double rounding, or as ONNX."""
    with _clean_errors():
        if store is None and onnx is None:
            raise ValueError("export: --store or --onnx must name a file to write, got neither")
        model, data = load_quantized(run)
        if store is not None:
            export_store(model, store, bits=bits or None, layout=layout, rest=rest)
        if onnx is not None:
            images = torch.zeros(batch or 1, data.in_channels, *data.image_size)
            export_onnx(model, onnx, bits=bits, example=images, dynamic_batch=not batch)
        for path in filter(None, (store, onnx)):
            typer.echo(f"written: {path} ({path.stat().st_size / 2**20:.2f} MiB)")


@app.command()
def switch(
    store: Annotated[Path, typer.Argument(help="an int8 store")],
    bits: Annotated[int, typer.Option(help="the bit-width of the new store")],
    out: Annotated[Path, typer.Option("--out", "-o", help="file to write")],
) -> None:
    """Write a store of one lower bit-width, packed."""
    with _clean_errors():
        mbq_store.switch(store, bits, out)
        typer.echo(f"written: {out} ({out.stat().st_size / 2**20:.2f} MiB)")


@app.command()
def inspect(
    store: Annotated[Path, typer.Argument(help="an int8 store")],
    plot: Annotated[Path | None, typer.Option(help="PNG of the error of every layer at every bit-width")] = None,
) -> None:
    """Print the sizes of a store and the error of every layer at every bit-width."""
    with _clean_errors():
        facts = mbq_store.inspect(store)
        if plot is not None:
            plot_store(plot, facts)
        Console().print(_store_table(facts))
        sizes = "  ".join(f"{b} bits: {size / 2**20:.2f} MiB" for b, size in facts["bytes_at"].items())
        typer.echo(f"{facts['file_bytes'] / 2**20:.2f} MiB, as float32 {facts['float32_bytes'] / 2**20:.2f}; {sizes}")


@app.command()
def info() -> None:
    """Print versions, the build, and which backend every op uses here."""
    from mbq_kernels import info as kernels_info

    kernels_info.main()


@contextlib.contextmanager
def _clean_errors():
    """What a user can cause ends in one line on stderr: exit code 2, after Ctrl-C 130, after SIGTERM 143."""
    try:
        yield
    except (ValueError, TypeError, OSError, TrainingError, BackendError) as error:
        if distributed.is_first():
            typer.echo(f"error: {error}", err=True)
        raise typer.Exit(2) from None
    except Interrupted as error:
        typer.echo(f"stopped by {error}; mbq resume goes on from the checkpoint", err=True)
        raise typer.Exit(128 + error.signal) from None
    except KeyboardInterrupt:
        typer.echo("stopped by Ctrl-C", err=True)
        raise typer.Exit(130) from None


def _print_result(result: Result, out: Path) -> None:
    if not distributed.is_first():
        return
    trained = Evaluation(result.accuracy, (), result.float_accuracy, True)
    Console().print(_accuracy_table(trained), _time_table(result))
    typer.echo(f"written: {out}")


def _print_dry_run(plan: DryRun, options: Options) -> None:
    table = Table("held at once, in each process", "MiB", title="Memory")
    for name, size in vars(plan.memory).items():
        table.add_row(name.replace("_", " "), f"{size / 2**20:.1f}")
    table.add_row("total", f"{plan.memory.total / 2**20:.1f}")
    Console().print(plan.conversion.table(), table)
    typer.echo(f"{plan.steps} batches an epoch, {options.float_epochs} + {options.epochs} epochs")


def _accuracy_table(result: Evaluation) -> Table:
    table = Table("network", "test accuracy (%)", "against float (points)", title="Accuracy",
                  caption="float: after its own epochs alone; the quantized network starts from it")
    table.add_row("float", f"{100 * result.float_accuracy:.2f}", "")
    for bits, value in result.accuracy.items():
        name = network_name(bits) + (", not trained" if bits in result.untrained else "")
        table.add_row(name, f"{100 * value:.2f}", f"{100 * (value - result.float_accuracy):+.2f}")
    return table


def _store_table(facts: dict) -> Table:
    """Relative mean square error of every layer against its highest bit-width."""
    widths = sorted({b for layer in facts["layers"] for b in layer["error"]}, reverse=True)
    table = Table("layer", "shape", "layout", *(f"{b} bits" for b in widths), title=f"Error ({facts['rounding']})")
    for layer in facts["layers"]:
        errors = (f"{layer['error'][b]:.1e}" if b in layer["error"] else "-" for b in widths)
        table.add_row(layer["name"], "x".join(map(str, layer["shape"])), layer["layout"], *errors)
    return table


def _time_table(result: Result) -> Table:
    times = result.quantization
    table = Table("part of a training step", "ms", "eager / this", title="Time", caption="quantizers: in float32, "
                  f"forward and backward of {times.images} images at every bit-width")
    table.add_row(f"{times.calls} quantizers, eager PyTorch", f"{times.eager_ms:.2f}", "1.00")
    table.add_row(f"{times.calls} quantizers, mbq_kernels", f"{times.kernels_ms:.2f}",
                  f"{times.eager_ms / times.kernels_ms:.2f}")
    table.add_row("whole step of the run, with mbq_kernels", f"{result.step_ms:.2f}", "")
    return table


def main() -> None:
    """The command, which finds modules beside it: `--model my_networks:factory`."""
    sys.path.insert(0, os.getcwd())
    app()


if __name__ == "__main__":
    main()
