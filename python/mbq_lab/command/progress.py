"""The progress bar of a run."""

import contextlib
import sys
import time

from mbq_train import distributed
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from ..options import Options
from ..runs.observer import Observer


@contextlib.contextmanager
def progress_of(options: Options):
    """Yield an observer that shows a bar over the images of both phases, with throughput and time left."""
    bar = ProgressBar({"float": options.float_epochs, "quantized": options.epochs})
    try:
        yield bar
    finally:
        if bar.tasks:
            bar.progress.stop()


class _Progress(Progress):
    """Bars, and below them what the layers' bit-widths are, where they have their own."""

    layers = None

    def get_renderables(self):
        yield from super().get_renderables()
        if self.layers is not None:
            yield self.layers


class ProgressBar(Observer):
    """The progress of a run on stderr."""

    def __init__(self, epochs: dict[str, int]):
        self.epochs, self.tasks = epochs, {}
        columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[epochs]}"),
                   TextColumn("{task.fields[speed]}"), TimeElapsedColumn(), TimeRemainingColumn(),
                   TextColumn("{task.fields[accuracy]}"))
        self.progress = _Progress(*columns, console=Console(stderr=True), refresh_per_second=4)
        self.last = None  # (phase, time, images) at the last look at the clock

    def plan(self, conversion, bank_bytes):
        """Print one line on what is quantized and what stays in float; conversion.txt holds the whole plan."""
        if not distributed.is_first():
            return
        layers = [entry for entry in conversion.entries if entry.action == "quantize"]
        kept = [f"{entry.name} ({entry.why.partition(' ')[2] or entry.why})" for entry in conversion.entries
                if entry.action == "float" and entry.why.startswith("keep_float")]
        share = conversion.quantized_parameters / max(conversion.parameters, 1)
        print(f"{len(layers)} layers quantized, {share:.1%} of the parameters; float: {', '.join(kept) or 'none'}",
              file=sys.stderr)
        if bank_bytes:
            print(f"weight bank: {bank_bytes / 2**20:.1f} MiB of quantized weights and their gradients", file=sys.stderr)

    def probe(self, done: int, most: int) -> None:
        if distributed.rank():
            return
        if "Hessian" not in self.tasks:
            self._add_task("Hessian", most)
        self.progress.update(self.tasks["Hessian"], completed=done, epochs=f"{done}/{most} probes")

    def batch(self, phase: str, epoch: int, images: int, total: int) -> None:
        if distributed.rank():
            return
        if phase not in self.tasks:  # not before: an error in the options should stand alone on the screen
            self._add_task(phase, self.epochs[phase] * total)
        now, done = time.monotonic(), epoch * total + images
        speed = {}
        if self.last and self.last[0] == phase and now > self.last[1]:
            speed = {"speed": f"{(done - self.last[2]) / (now - self.last[1]):.0f} images/s"}
        if self.last is None or self.last[0] != phase or now - self.last[1] > 1:
            self.last = (phase, now, done)
        self.progress.update(self.tasks[phase], completed=done, epochs=f"{epoch + images / total:.1f}/"
                             f"{self.epochs[phase]} epochs", **speed)

    def _add_task(self, name: str, total: int) -> None:
        self.progress.start()
        self.tasks[name] = self.progress.add_task(name, total=total, epochs="", speed="", accuracy="")

    def record(self, record: dict) -> None:
        if "layer_bits" in record:
            self.progress.layers = layer_table(record)
        if record["phase"] in self.tasks and "accuracy" in record:
            shown = "  ".join(f"{b}: {100 * value:.1f} %" for b, value in record["accuracy"].items())
            self.progress.update(self.tasks[record["phase"]], accuracy=shown)


def layer_table(record: dict) -> Table:
    """The bit-width of every layer's weights, and the share of them that used their last bits in the latest epoch."""
    rates = record.get("lsb_rates", {})
    table = Table("layer", "bits", "last bits in use (%)", title=f"{record['compression']:.2f} x smaller than float32")
    for name, bits in record["layer_bits"].items():
        table.add_row(escape(name), str(bits), f"{100 * rates[name]:.1f}" if name in rates else "")
    return table
