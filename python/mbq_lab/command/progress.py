"""What a run shows on stderr while it goes: a bar in a terminal, a line for every epoch elsewhere."""

import contextlib
import math
import sys
import time

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.text import Text

from mbq_train import distributed

from ..options import Options
from ..runs.names import network_name, range_name
from ..runs.observer import Observer, Observers
from .tables import layer_table

_NUMBERS = 64  # columns of a terminal that a bar's line takes without the bar
_BETWEEN_PROBES = 5  # seconds between two lines of the same count


@contextlib.contextmanager
def observing(options: Options, trackers: str = "none", folder=None, *, quiet: bool = False):
    """Yield an observer that shows both phases on stderr unless `quiet`, and tells `trackers`, whose files go to
    `folder`; in processes that are not the first it does nothing."""
    from .trackers import trackers_of

    if not distributed.is_first():
        yield Observer()
        return
    epochs = {"float": options.float_epochs, "quantized": options.epochs}
    bar_or_lines = ProgressBar if sys.stderr.isatty() else ProgressLines
    shown = () if quiet else (bar_or_lines(epochs),)
    observers = Observers(*shown, *trackers_of(trackers, folder, options))
    try:
        yield observers
    finally:
        observers.close()


class ProgressLines(Observer):
    """A line for every epoch, and now and then for the probes of the Hessian."""

    def __init__(self, epochs: dict[str, int]):
        self.epochs, self.probed = epochs, -math.inf

    def plan(self, conversion, bank_bytes):
        """Print one line on what is quantized and what stays in float; conversion.txt holds the whole plan."""
        layers = [entry for entry in conversion.entries if entry.action == "quantize"]
        kept = [f"{entry.name} ({entry.why.partition(' ')[2] or entry.why})" for entry in conversion.entries
                if entry.action == "float" and entry.why.startswith("keep_float")]
        share = conversion.quantized_parameters / max(conversion.parameters, 1)
        self.say(f"{len(layers)} layers quantized, {share:.1%} of the parameters; float: {', '.join(kept) or 'none'}")
        if bank_bytes:
            self.say(f"weight bank: {bank_bytes / 2**20:.1f} MiB of quantized weights and their gradients")

    def say(self, line: str) -> None:
        print(line, file=sys.stderr, flush=True)

    def probe(self, done: int, most: int) -> None:
        now = time.monotonic()
        if now - self.probed > _BETWEEN_PROBES or done == most:
            self.probed = now
            self.say(f"Hessian {done}/{most} probes")

    def record(self, record: dict) -> None:
        if record["phase"] not in self.epochs:
            return
        epochs = self.epochs[record["phase"]]
        left = (epochs - record["epoch"]) * record["seconds"]
        widths = range_name(record["layer_bits"]) if "layer_bits" in record else ""
        drawn = f"mean of {record['mean_bits']:.2f} bits" if "mean_bits" in record else ""
        parts = [f"{record['phase']} {record['epoch']}/{epochs}", widths, drawn,
                 f"loss {_by_bits(record['loss'], '.4g')}", accuracies(record),
                 f"{record['images_per_second']:.0f} images/s", f"{clock(left)} left"]
        self.say("  ".join(part for part in parts if part))


class _Progress(Progress):
    """Bars, and below them the latest accuracies, and what the layers' bit-widths are, where they have their own."""

    below = ()

    def get_renderables(self):
        yield from super().get_renderables()
        yield from self.below


class ProgressBar(ProgressLines):
    """Bars over the images of both phases, with throughput and time left."""

    def __init__(self, epochs: dict[str, int]):
        super().__init__(epochs)
        self.tasks, self.accuracy, console = {}, "", Console(stderr=True)
        bar = console.width - _NUMBERS - 1  # a line as wide as the terminal moves on when ^C is echoed at its end
        columns = (TextColumn("{task.description}"), *((BarColumn(min(bar, 40)),) if bar >= 5 else ()),
                   TextColumn("{task.fields[epochs]}"), TextColumn("{task.fields[speed]}"), TimeElapsedColumn(),
                   TimeRemainingColumn())
        self.progress = _Progress(*columns, console=console, refresh_per_second=4)
        self.last = None  # (phase, time, images) at the last look at the clock

    def close(self):
        if self.tasks:
            self.progress.stop()

    def probe(self, done: int, most: int) -> None:
        if "Hessian" not in self.tasks:
            self._add_task("Hessian", most)
        self.progress.update(self.tasks["Hessian"], completed=done, epochs=f"{done}/{most} probes")

    def batch(self, phase: str, epoch: int, images: int, total: int) -> None:
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
        self.tasks[name] = self.progress.add_task(name, total=total, epochs="", speed="")

    def record(self, record: dict) -> None:
        self.accuracy = accuracies(record) or self.accuracy
        layers = (layer_table(record),) if "layer_bits" in record else ()
        self.progress.below = ((Text(self.accuracy),) if self.accuracy else ()) + layers


def accuracies(record: dict) -> str:
    """Return the test accuracies of a line of metrics in words; nothing where it has none."""
    values = {bits: 100 * value for bits, value in record.get("accuracy", {}).items()}
    return f"accuracy {_by_bits(values, '.1f', ' %')}" if values else ""


def clock(seconds: float) -> str:
    """Return a time as hours, minutes and seconds."""
    minutes, seconds = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{seconds:02}"


def _by_bits(values: dict[int, float], form: str, unit: str = "") -> str:
    """Return numbers with their bit-widths, which one alone does not need."""
    names = {bits: "" if len(values) == 1 else f"{network_name(bits)} " for bits in values}
    return ", ".join(f"{names[bits]}{value:{form}}{unit}" for bits, value in values.items())
