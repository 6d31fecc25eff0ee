"""The recipe `msq`: train with a penalty on the last bits, and take bits away until the target compression."""

import warnings

import torch

from mbq_train._errors import first_line
from mbq_train.quantize.bits import FLOAT
from mbq_train.quantize.layer_bits import own_layer_bits, set_layer_bits
from mbq_train.sensitivity import Trace, hessian_traces, perturbations, sensitivities

from ...training.recipe import Recipe
from ...training.traces import float_traces
from .bank import LsbBank
from .pruner import Pruner


class Msq(Recipe):
    """MSQ, from the float network to per-layer bit-widths (Han et al., 2025, arXiv 2507.22349).

    Every step adds lambda times the sum of |B| over the layers' last bits B to the loss. After every `prune_interval`
    epochs the layers that use theirs in less than a share `prune_threshold` of the weights lose them: 2 bits where the
    Hessian says that the layer is less sensitive than the average, else 1. Once the compression is reached, bit-widths
    stay and the penalty is off.

    Raises ValueError for a model without round-clamp quantizers.
    """

    def __init__(self, *arguments, **options):
        super().__init__(*arguments, **options)
        self.traces = None
        self.lsb_bank = LsbBank(self.model, unit_gradient=self.options.unit_penalty)
        if not self.lsb_bank.layers:
            raise ValueError("msq: model must hold layers that convert made with quantizer 'round-clamp', got "
                             f"{type(self.model).__name__} without any")
        bits = dict.fromkeys(self.lsb_bank.layers, self.bits[0]) | own_layer_bits(self.model)
        set_layer_bits(self.model, bits)
        parameters = {name: layer.weight.numel() for name, layer in self.lsb_bank.layers.items()}
        self.pruner = Pruner(parameters, bits, target=self.options.target_compression,
                             threshold=self.options.prune_threshold, floor=self.options.lowest_bits)

    def check(self):
        """Measure traces of a few images."""
        if self.options.hessian:
            batch = next(self.data.test_batches(min(4, self.data.test_size)))
            try:
                hessian_traces(self.model, [(batch.images, batch.labels)], probes=2)
            except Exception as error:  # whatever a network raises that cannot be differentiated twice
                raise ValueError("train: hessian must be off for a network whose traces cannot be measured, got it on "
                                 f"({first_line(error)})") from error

    def bank(self) -> LsbBank:
        """Return the bank, once the layers' sensitivities are known."""
        if self.traces is None:
            self._measure()
        self._set_penalty()
        return self.lsb_bank

    def penalty(self, bits: int) -> torch.Tensor | None:
        if bits == FLOAT or self.lsb_bank.penalty is None:
            return None
        return self.options.lsb_penalty * self.lsb_bank.penalty

    def end_epoch(self, epoch: int) -> dict:
        """Prune where the epoch says so; bit-widths, rates before the pruning and compression for the metrics."""
        pruner, rates = self.pruner, self.lsb_bank.rates()
        if (epoch + 1) % self.options.prune_interval == 0 and epoch + 1 < self.epochs and not pruner.done:
            set_layer_bits(self.model, pruner.prune(rates))
            pruner.set_sensitivities(self._sensitivities())
            self._set_penalty()
        if epoch + 1 == self.epochs and pruner.compression < pruner.target:
            warnings.warn(f"msq: the target compression, {pruner.target:g}, was not reached: {pruner.compression:.2f} "
                          "after the last epoch; more epochs, a larger lsb_penalty or prune_threshold, or a lower "
                          "lowest_bits would go further", RuntimeWarning, stacklevel=2)
        return {"layer_bits": dict(pruner.bits), "lsb_rates": rates, "compression": pruner.compression}

    def summary(self) -> dict:
        """Return bit-widths and compression at the end."""
        weights = {layer.weight for layer in self.lsb_bank.layers.values()}
        others = sum(parameter.numel() for name, parameter in self.model.named_parameters() if parameter not in weights
                     and "_quantizer." not in name and f".by_bits.{FLOAT}." not in name)
        quantized = sum(self.pruner.parameters.values())
        stored = 32 * quantized / self.pruner.compression
        return {"compression": self.pruner.compression, "target_compression": self.pruner.target,
                "compression_of_all_parameters": 32 * (quantized + others) / (stored + 32 * others),
                "mean_bits": stored / quantized, "layer_bits": dict(self.pruner.bits)}

    def state(self) -> tuple[dict[str, torch.Tensor], dict]:
        """Return the traces and sensitivities; the bit-widths are in the model."""
        traces = {name: vars(trace) for name, trace in self.traces.items()}
        return {}, {"traces": traces, "sensitivities": self.pruner.sensitivities}

    def load_state(self, tensors: dict[str, torch.Tensor], values: dict) -> None:
        self.traces = {name: Trace(**trace) for name, trace in values["traces"].items()}
        self.pruner.bits = own_layer_bits(self.model)
        self.pruner.set_sensitivities(values["sensitivities"])

    def _measure(self) -> None:
        """Measure the traces of the network as it is, and from them the layers' sensitivities."""
        self.traces = {}
        if self.options.hessian:
            self.traces = float_traces(self.model, self.data, self.options, folder=self.folder, on_probe=self.on_probe)
        self.pruner.set_sensitivities(self._sensitivities())

    def _sensitivities(self) -> dict[str, float]:
        return sensitivities(self.traces, perturbations(self.model)) if self.traces else {}

    def _set_penalty(self) -> None:
        self.lsb_bank.low_bits = {} if self.pruner.done else self.pruner.low_bits
