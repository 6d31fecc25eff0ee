"""The plan of a conversion: what becomes of every module with parameters, and why."""

import warnings
from dataclasses import dataclass, field

from torch import nn

from .._tables import aligned
from ..quantize.attention import close_fast_paths
from ..quantize.batch_norm import BitBatchNorm
from ..quantize.bits import BitState, bit_states
from ..quantize.specs import ActivationSpec, WeightSpec
from .supported import SUPPORTED, base_type, own_parameters, quant_types, weights
from .transitions import Transition, follow_layer, transitional

_SHOWN = 3  # entries, in a message
COLUMNS = ("module", "type", "parameters", "action", "why")


@dataclass(frozen=True)
class Entry:
    """What becomes of one module.

    action: 'quantize', 'per_bit' (a BatchNorm for every bit-width), 'transitional' (for every pair of bit-widths) or
    'float'; parameters: how many elements its Parameters have; weights, activations: what quantizes it; transition: of
    a BatchNorm of either kind, see `transition_of`; left: it stays in float, or shared by all bit-widths, though its
    type is supported and neither keep_float nor a rule says so.
    """

    name: str
    type: str
    parameters: int
    action: str
    why: str
    weights: WeightSpec | None = None
    activations: ActivationSpec | None = None
    transition: Transition | None = None
    module: nn.Module = field(default=None, repr=False)
    left: bool = False


@dataclass(frozen=True)
class Conversion:
    """A plan made by plan_conversion.

    entries: one for every module that holds Parameters, in the order of registration; order: how the first and the
    last layer were found.
    """

    model: nn.Module = field(repr=False)
    bits: tuple[int, ...]
    entries: tuple[Entry, ...]
    order: str

    @property
    def parameters(self) -> int:
        """Return the number of elements of the float model's Parameters; shared ones count once."""
        return _count(parameter for entry in self.entries for parameter in own_parameters(entry.module))

    @property
    def quantized_parameters(self) -> int:
        """Return the number of elements of the weights to quantize; shared ones count once."""
        return _count(weight for entry in self.entries if entry.action == "quantize"
                      for weight in weights(entry.module))

    @property
    def title(self) -> str:
        """Return what is planned, in one line."""
        return f"Conversion to {', '.join(map(str, self.bits))} bits"

    @property
    def summary(self) -> str:
        """Return how much is quantized, and how the first and the last layer were found."""
        share = self.quantized_parameters / max(self.parameters, 1)
        return (f"{self.quantized_parameters:,} of {self.parameters:,} parameters quantized ({share:.1%}); "
                f"first and last layer {self.order}")

    def rows(self) -> list[tuple[str, ...]]:
        """Return a row of text for every entry, in the order of COLUMNS."""
        return [(entry.name or "(model)", entry.type, f"{entry.parameters:,}", entry.action, entry.why)
                for entry in self.entries]

    def __str__(self):
        lines = aligned([COLUMNS, *self.rows()], "<<><<")
        return "\n".join([self.title, *lines, self.summary, ""])

    def apply(self) -> nn.Module:
        """Convert the model in place, as planned, and return it; a RuntimeWarning names the layers that are left.

        Raises ValueError when nothing is to be quantized, or the model was converted or changed since.
        """
        check_unconverted(self.model)
        if not any(entry.action == "quantize" for entry in self.entries):
            raise ValueError(f"convert: model must hold a {SUPPORTED} layer to quantize, got "
                             f"{type(self.model).__name__} {_reasons(self.entries)}")
        modules = dict(self.model.named_modules())
        for entry in self.entries:
            if modules.get(entry.name) is not entry.module:
                raise ValueError("convert: model must be as it was when the conversion was planned, got another module "
                                 f"at {entry.name}")
        self._warn()
        state = BitState(self.bits)
        new = {entry.module: _converted(entry, state) for entry in self.entries if entry.action != "float"}
        layers = {entry.name: new[entry.module] for entry in self.entries if entry.action == "quantize"}
        for entry in self.entries:
            if entry.action == "per_bit":
                follow_layer(new[entry.module], entry.transition, layers)
        new |= {entry.module: transitional(new[entry.module], entry.transition, layers) for entry in self.entries
                if entry.action == "transitional"}
        replace_modules(self.model, new)
        close_fast_paths(self.model)
        return self.model

    def _warn(self) -> None:
        """Give one warning that counts and names what is left though nobody asked for it."""
        left = [entry for entry in self.entries if entry.left]
        layers = [entry for entry in left if base_type(entry.module)]
        norms = [entry for entry in left if entry not in layers]
        told = [f"{what}, {len(found)} in all: {_named(found)}" for found, what in (
            (layers, "layers of supported types stay in float"),
            (norms, "norms with running statistics are shared by all bit-widths")) if found]
        if told:
            warnings.warn(f"convert: {'; '.join(told)}. A rule (name, 'float') says that this is meant",
                          RuntimeWarning, stacklevel=3)


def check_unconverted(model: nn.Module) -> None:
    """Raise ValueError when `model` holds quantizers."""
    if bit_states(model):
        raise ValueError(f"convert: model must not be converted already, got {type(model).__name__} with quantizers")


def _count(parameters) -> int:
    return sum({id(parameter): parameter.numel() for parameter in parameters}.values())


def _converted(entry: Entry, state: BitState) -> nn.Module:
    if entry.action in ("per_bit", "transitional"):
        return BitBatchNorm(entry.module, state)
    quantized = quant_types()[base_type(entry.module)]
    return quantized.from_float(entry.module, state, layer_name=entry.name, weights=entry.weights,
                                activations=entry.activations)


def _named(entries) -> str:
    """Return the first entries and why they are left."""
    shown = ", ".join(f"{entry.name} ({entry.type}: {entry.why.removeprefix('not converted: ')})"
                      for entry in entries[:_SHOWN])
    return f"{shown} and {len(entries) - _SHOWN} more" if len(entries) > _SHOWN else shown


def _reasons(entries) -> str:
    """Return why the first entries are not quantized."""
    shown = "; ".join(f"{entry.name or 'model'} ({entry.type}): {entry.why}" for entry in entries[:_SHOWN])
    return f"with {shown}{'; ...' if len(entries) > _SHOWN else ''}" if entries else "without parameters"


def replace_modules(model: nn.Module, new: dict) -> None:
    """Put new[module] where `module` stands below `model`, in each place where it is used in several."""
    for path, module in list(model.named_modules(remove_duplicate=False)):
        if path and module in new:
            parent, _, name = path.rpartition(".")
            setattr(model.get_submodule(parent), name, new[module])
