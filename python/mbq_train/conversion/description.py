"""What convert made of a network, as data: from it the same conversion is made again, without an example."""

from torch import nn

from ..quantize.attention import QuantMultiheadAttention
from ..quantize.batch_norm import BATCH_NORMS, BitBatchNorm
from ..quantize.bits import bit_states, check_bit_widths
from ..quantize.layers import Specs
from ..quantize.specs import ActivationSpec, WeightSpec, spec_from_json
from ..quantize.transitional_batch_norm import TransitionalBatchNorm
from .plan import Conversion, Entry, check_unconverted
from .supported import base_type, check_model, obstacle
from .transitions import Transition, converted_layers, names_of


def describe(model: nn.Module) -> dict | None:
    """Return what `convert` made of `model`, as a JSON object.

    {"bits": [bit-widths from high to low], "layers": {name: {"weights": spec, "activations": spec}}, "batch_norms":
    [names of those of which every bit-width has its own], "transitions": {name of one for pairs of bit-widths: [name of
    the layer before or None, name of the layer], of one for every bit-width: [name of the layer]}}. None for a float
    network, for one whose parts were converted by several calls, for one that was deployed, and where a layer is gone
    that a BatchNorm goes by.
    """
    states, layers = list(bit_states(model)), converted_layers(model)
    if len(states) != 1 or not layers:
        return None
    norms = {name: module for name, module in model.named_modules() if isinstance(module, BitBatchNorm)}
    try:
        transitions = {name: names_of(norm, layers) for name, norm in norms.items() if norm.quantizers}
    except KeyError:
        return None
    per_bit = [name for name, norm in norms.items() if not isinstance(norm, TransitionalBatchNorm)]
    return {"bits": list(states[0].trained), "batch_norms": per_bit,
            "transitions": transitions, "layers": {name: _specs(layer) for name, layer in layers.items()}}


def described_conversion(model: nn.Module, description: dict) -> Conversion:
    """Return the plan to convert the float network `model` as `describe` said.

    Raises ValueError for what is no description, and where it names a layer that `model` lacks, has of another type or
    cannot convert; and as `convert` for a model that it does not take.
    """
    check_model(model)
    check_unconverted(model)
    bits, specs, norms, transitions = _read(description)
    modules, entries = dict(model.named_modules()), []
    for name in dict.fromkeys((*specs, *norms, *transitions)):
        module = modules.get(name)
        fits = base_type(module) is not None if name in specs else isinstance(module, BATCH_NORMS)
        why = obstacle(module) if fits else None
        if not fits or why:
            what = "layer to convert" if name in specs else "BatchNorm"
            got = "none" if module is None else type(module).__name__ + (f": {why}" if why else "")
            raise ValueError(f"described_conversion: model must have a {what} at {name!r}, got {got}")
        action = "quantize" if name in specs else "per_bit" if name in norms else "transitional"
        quantized = specs[name]._asdict() if name in specs else {"transition": transitions.get(name)}
        entries.append(Entry(name, type(module).__name__, 0, action, "as described", module=module, **quantized))
    return Conversion(model, bits, tuple(entries), "as described")


def _specs(layer: nn.Module) -> dict:
    specs = (layer.q_proj if isinstance(layer, QuantMultiheadAttention) else layer).specs
    return {"weights": specs.weights.to_json(), "activations": specs.activations.to_json()}


def _read(description: dict) -> tuple[tuple[int, ...], dict[str, Specs], tuple[str, ...], dict[str, Transition]]:
    """Return bit-widths, specs by layer, names of norms and transitions by norm. Raises ValueError for what `describe`
    never returns."""
    try:
        bits = check_bit_widths("described_conversion", description["bits"])
        specs = {name: Specs(spec_from_json(layer["weights"], WeightSpec),
                             spec_from_json(layer["activations"], ActivationSpec))
                 for name, layer in description["layers"].items()}
        for weights, activations in specs.values():
            weights.check_use("weights")
            activations.check_use("activations")
            weights.check(bits)
        norms = tuple(dict.fromkeys(description["batch_norms"]))
        transitions = {name: ((None, *names) if name in norms else tuple(names)) for name, names in
                       description.get("transitions", {}).items()}  # versions before had none
        for previous, layer in transitions.values():
            if layer not in specs or previous not in (None, *specs):
                raise ValueError(f"transitions must name layers, got {previous!r} and {layer!r}")
        return bits, specs, norms, transitions
    except (TypeError, KeyError, AttributeError, ValueError) as error:
        raise ValueError(f"described_conversion: description must be what describe returns, got an error from it "
                         f"({type(error).__name__}: {error})") from error
