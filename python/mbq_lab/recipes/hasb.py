"""HASB: a supernet whose layers draw bit-widths of their own while it trains."""

import contextlib

from mbq_train.quantize.bits import FLOAT, quantized
from mbq_train.quantize.layer_bits import set_layer_bits
from mbq_train.quantize.transitional_batch_norm import spread_batch_norms
from mbq_train.sensitivity import Trace
from mbq_train.training.hasb import BitRoulette

from ..training.accuracy import evaluate
from ..training.recipe import Recipe
from ..training.traces import check_traces, float_traces


class Hasb(Recipe):
    """Hessian-aware stochastic bit-switching: mixed precision from one training.

    The first `uniform_epochs` train at one bit-width for all layers. Then the BatchNorms of all pairs of bit-widths
    begin with what those epochs have taught, and in every step a share sigma of the layers, which grows to
    `switch_rate`, draws a bit-width (see BitRoulette) by Hessian traces that are measured before the first step.

    Options: uniform_epochs, switch_rate, start_from, and those of the traces, hessian_*. Its other parts are options of
    their own, with these defaults: double rounding as the recipe of that name trains it, and transitional BatchNorm.

    Reference: Huang et al., 2025, arXiv 2502.01199, alg. 1 and A.3.
    """

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.traces, self.roulette = None, None
        self.counts = dict.fromkeys(_COUNTS, 0)

    def check(self):
        """Measure traces of a few images."""
        check_traces(self.model, self.data, "recipe must be another than hasb")

    def bank(self):
        """Measure the traces, where that is not done, for the draws of all steps."""
        options = self.options
        if self.traces is None:
            self.traces = float_traces(self.model, self.data, options, folder=self.folder, on_probe=self.on_probe)
        self.roulette = BitRoulette(self.model, self.traces, epochs=self.epochs, largest=options.switch_rate,
                                    uniform_epochs=options.uniform_epochs, seed=options.seed)
        return super().bank()

    @contextlib.contextmanager
    def configuration(self, step, epoch, bits):
        drawn = self.roulette.draw(step, epoch, bits)
        if bits != FLOAT:
            used = _used(drawn, bits)
            for name, more in zip(_COUNTS, (len(used), len(used) - list(drawn.values()).count(None),
                                            sum(used.values())), strict=True):
                self.counts[name] += more
        with self._mixed(drawn):
            yield

    def end_epoch(self, epoch):
        """Return the share of layers that drew, and the mean bit-width of all: over layers and steps."""
        if epoch + 1 == self.options.uniform_epochs:
            spread_batch_norms(self.model)
        layers, drew, bits = self.counts.values()
        self.counts = dict.fromkeys(_COUNTS, 0)
        return {"layers_drawn": drew / layers, "mean_bits": bits / layers}

    def summary(self):
        """Return the test accuracy of a mixed configuration for every bit-width, drawn as in the last epoch."""
        mixed = []
        for bits in quantized(self.bits):
            drawn = self.roulette.draw(-1, self.epochs - 1, bits)
            used = _used(drawn, bits)
            with self._mixed(drawn):
                accuracy = evaluate(self.model, self.data, bits, batch_size=self.options.batch_size)
            mixed.append({"bits": bits, "mean_bits": sum(used.values()) / len(used), "accuracy": accuracy,
                          "layer_bits": used})
        return {"mixed": mixed}

    def state(self):
        return {}, {"traces": {name: vars(trace) for name, trace in self.traces.items()}, "counts": dict(self.counts)}

    def load_state(self, tensors, values):
        self.traces = {name: Trace(**trace) for name, trace in values["traces"].items()}
        self.counts = dict(values["counts"])

    @contextlib.contextmanager
    def _mixed(self, drawn: dict[str, int | None]):
        """Give layers the bit-widths that are drawn inside the block, and those of the model after it."""
        own = {name: bits for name, bits in drawn.items() if bits is not None}
        set_layer_bits(self.model, own)
        try:
            yield
        finally:
            set_layer_bits(self.model, dict.fromkeys(own))


_COUNTS = ("layers", "drew", "bits")  # of the epoch's forwards


def _used(drawn: dict[str, int | None], bits: int) -> dict[str, int]:
    """Return the bit-width of every layer in a step at `bits` bits."""
    return {name: own or bits for name, own in drawn.items()}
