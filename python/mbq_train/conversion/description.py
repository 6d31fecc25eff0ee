"""What convert made of a network, as data: from it the same conversion is made again, without an example."""

from torch import nn

from ..quantize.attention import QuantMultiheadAttention
from ..quantize.batch_norm import BATCH_NORMS, BitBatchNorm
from ..quantize.bits import bit_states, check_bit_widths
from ..quantize.layers import Specs, weight_layers
from ..quantize.specs import ActivationSpec, WeightSpec, spec_from_json
from .plan import Conversion, Entry, check_unconverted
from .supported import base_type


def describe(model: nn.Module) -> dict | None:
    """Return what `convert` made of `model`, as a JSON object.

    {"bits": [bit-widths from high to low], "layers": {name: {"weights": spec, "activations": spec}}, "batch_norms":
    [names of those that every bit-width has its own of]}. None for a float network, for one whose parts were converted
    by several calls, and for one that was deployed.
    """
    states = list(bit_states(model))
    layers = {name: layer.specs for name, layer in weight_layers(model).items()}
    for name, module in model.named_modules():
        if isinstance(module, QuantMultiheadAttention):
            layers[name] = module.q_proj.specs
            layers = {other: specs for other, specs in layers.items() if not other.startswith(f"{name}.")}
    norms = [name for name, module in model.named_modules() if isinstance(module, BitBatchNorm)]
    if len(states) != 1 or not layers:
        return None
    return {"bits": list(states[0].trained), "batch_norms": norms, "layers": {
        name: {"weights": specs.weights.to_json(), "activations": specs.activations.to_json()}
        for name, specs in layers.items()}}


def described_conversion(model: nn.Module, description: dict) -> Conversion:
    """Return the plan to convert the float network `model` as `describe` said.

    Raises ValueError for a model that is converted already, where the description is none, and where it names a layer
    that `model` does not have, or of another type.
    """
    check_unconverted(model)
    modules, why = dict(model.named_modules()), "as described"
    try:
        specs = {name: Specs(spec_from_json(layer["weights"], WeightSpec),
                             spec_from_json(layer["activations"], ActivationSpec))
                 for name, layer in description["layers"].items()}
        bits = check_bit_widths("described_conversion", description["bits"])
        norms = list(description["batch_norms"])
    except (TypeError, KeyError, AttributeError) as error:
        raise ValueError(f"described_conversion: description must be what describe returns, got an error from it "
                         f"({type(error).__name__}: {error})") from error
    entries = []
    for name in (*specs, *norms):
        fits = base_type(modules.get(name)) if name in specs else isinstance(modules.get(name), BATCH_NORMS)
        if not fits:
            kind = type(modules[name]).__name__ if name in modules else "none"
            raise ValueError(f"described_conversion: model must have a layer to convert at {name!r}, got {kind}")
        action, quantized = ("quantize", specs[name]._asdict()) if name in specs else ("per_bit", {})
        entries.append(Entry(name, type(modules[name]).__name__, 0, action, why, module=modules[name], **quantized))
    return Conversion(model, bits, tuple(entries), "as described")
