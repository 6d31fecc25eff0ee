"""The command `mbq`: train, eval, info."""

import contextlib
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from mbq_kernels import BackendError

from .run import Options, Result, evaluate_run, train_run
from .training import TrainingError

app = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False,
                  help="Train one network that computes at several bit-widths.")

_DEFAULT = Options()
_Threads = Annotated[int, typer.Option(min=1, help="CPU threads; a network this small gains nothing from more")]
_Device = Annotated[str, typer.Option(help="cpu, cuda or cuda:N")]


@app.command()
def train(
    data: Annotated[str, typer.Option(help="data set")] = _DEFAULT.data,
    model: Annotated[str, typer.Option(help="network")] = _DEFAULT.model,
    bits: Annotated[str, typer.Option(help="bit-widths, from high to low")] = ",".join(map(str, _DEFAULT.bits)),
    epochs: Annotated[int, typer.Option(help="epochs at all bit-widths together")] = _DEFAULT.epochs,
    float_epochs: Annotated[int, typer.Option(help="epochs of the float network before")] = _DEFAULT.float_epochs,
    batch_size: Annotated[int, typer.Option(help="images in a batch")] = _DEFAULT.batch_size,
    learning_rate: Annotated[float, typer.Option(help="of AdamW, cosine to 0")] = _DEFAULT.learning_rate,
    weight_decay: Annotated[float, typer.Option(help="not on scales")] = _DEFAULT.weight_decay,
    batch_norm: Annotated[str, typer.Option(help="per_bit or shared")] = _DEFAULT.batch_norm,
    seed: Annotated[int, typer.Option(min=0, max=2**32 - 1, help="of weights and batches")] = _DEFAULT.seed,
    threads: _Threads = 1,
    device: _Device = "cpu",
    out: Annotated[Path, typer.Option(help="folder of the run")] = Path("runs/digits"),
    overwrite: Annotated[bool, typer.Option("--overwrite", help="replace a finished run")] = False,
) -> None:
    """Train a float network, then one network at every bit-width, and compare their accuracies."""
    with _clean_errors():
        options = Options(data=data, model=model, bits=_parse_bits(bits), epochs=epochs, float_epochs=float_epochs,
                          batch_size=batch_size, learning_rate=learning_rate, weight_decay=weight_decay,
                          batch_norm=batch_norm, seed=seed)
        torch.set_num_threads(threads)
        with _progress(options) as on_epoch:
            result = train_run(options, out, device=device, overwrite=overwrite, on_epoch=on_epoch)
        Console().print(_accuracy_table(result.accuracy, result.float_accuracy), _time_table(result))
        typer.echo(f"written: {out}")


@app.command("eval")
def evaluate(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="folder of a finished run")],
    threads: _Threads = 1,
    device: _Device = "cpu",
) -> None:
    """Measure the accuracy of a finished run at every bit-width."""
    with _clean_errors():
        torch.set_num_threads(threads)
        Console().print(_accuracy_table(*evaluate_run(run, device=device)))


@app.command()
def info() -> None:
    """Print versions, the build, and which backend every op uses here."""
    from mbq_kernels import info as kernels_info

    kernels_info.main()


@contextlib.contextmanager
def _clean_errors():
    """What a user can cause ends in one line on stderr: exit code 2, after Ctrl-C 130."""
    try:
        yield
    except (ValueError, OSError, TrainingError, BackendError) as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(2) from None
    except KeyboardInterrupt:
        typer.echo("stopped by Ctrl-C", err=True)
        raise typer.Exit(130) from None


def _parse_bits(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise ValueError(f"mbq: bits must be integers separated by commas, got {text!r}") from None


@contextlib.contextmanager
def _progress(options: Options):
    """A bar over all epochs; yields the function to call after each."""
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.completed}/{task.total} epochs"),
               TimeElapsedColumn(), TimeRemainingColumn(), TextColumn("{task.fields[last]}"))
    progress = Progress(*columns, console=Console(stderr=True))
    totals, tasks = {"float": options.float_epochs, "quantized": options.epochs}, {}

    def on_epoch(record):
        phase = record["phase"]
        if phase not in totals:
            return
        if phase not in tasks:  # not before: an error in the options should stand alone on the screen
            progress.start()
            tasks[phase] = progress.add_task(phase, total=totals[phase], last="")
        last = "  ".join(f"{b}: {100 * a:.1f} %" for b, a in record["accuracy"].items())
        progress.update(tasks[phase], advance=1, last=last)

    try:
        yield on_epoch
    finally:
        if tasks:
            progress.stop()


def _accuracy_table(accuracy: dict[int, float], float_accuracy: float) -> Table:
    table = Table("network", "test accuracy (%)", "against float (points)", title="Accuracy",
                  caption="float: after its own epochs alone; the quantized network starts from it")
    table.add_row("float", f"{100 * float_accuracy:.2f}", "")
    for bits, value in accuracy.items():
        table.add_row(f"{bits} bits", f"{100 * value:.2f}", f"{100 * (value - float_accuracy):+.2f}")
    return table


def _time_table(result: Result) -> Table:
    times = result.quantization
    table = Table("part of a training step", "ms", "eager / this", title="Time")
    table.add_row(f"{times.calls} quantizers, eager PyTorch", f"{times.eager_ms:.2f}", "1.00")
    table.add_row(f"{times.calls} quantizers, mbq_kernels", f"{times.kernels_ms:.2f}",
                  f"{times.eager_ms / times.kernels_ms:.2f}")
    table.add_row("whole step, with mbq_kernels", f"{result.step_ms:.2f}", "")
    return table


if __name__ == "__main__":
    app()
