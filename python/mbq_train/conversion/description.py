"""What convert made of a network, as data: from it the same conversion is made again, without an example."""

from torch import nn

from ..quantize.attention import QuantMultiheadAttention
from ..quantize.batch_norm import BATCH_NORMS, BitBatchNorm
from ..quantize.bits import bit_states, check_bit_widths
from ..quantize.layers import Specs, weight_layers
from ..quantize.specs import ActivationSpec, WeightSpec, spec_from_json
from .plan import Conversion, Entry, check_unconverted
from .supported import base_type, check_model, obstacle


def describe(model: nn.Module) -> dict | None:
    """Return what `convert` made of `model`, as a JSON object.

    {"bits": [bit-widths from high to low], "layers": {name: {"weights": spec, "activations": spec}}, "batch_norms":
    [names of those of which every bit-width has its own]}. None for a float network, for one whose parts were converted
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

    Raises ValueError for what is no description, and where it names a layer that `model` lacks, has of another type or
    cannot convert; and as `convert` for a model that it does not take.
    """
    check_model(model)
    check_unconverted(model)
    bits, specs, norms = _read(description)
    modules, entries = dict(model.named_modules()), []
    for name in (*specs, *norms):
        module = modules.get(name)
        fits = base_type(module) is not None if name in specs else isinstance(module, BATCH_NORMS)
        why = obstacle(module) if fits else None
        if not fits or why:
            what = "layer to convert" if name in specs else "BatchNorm"
            got = "none" if module is None else type(module).__name__ + (f": {why}" if why else "")
            raise ValueError(f"described_conversion: model must have a {what} at {name!r}, got {got}")
        action, quantized = ("quantize", specs[name]._asdict()) if name in specs else ("per_bit", {})
        entries.append(Entry(name, type(module).__name__, 0, action, "as described", module=module, **quantized))
    return Conversion(model, bits, tuple(entries), "as described")


def _read(description: dict) -> tuple[tuple[int, ...], dict[str, Specs], tuple[str, ...]]:
    """Return bit-widths, specs by layer and names of norms. Raises ValueError for what `describe` never returns."""
    try:
        bits = check_bit_widths("described_conversion", description["bits"])
        specs = {name: Specs(spec_from_json(layer["weights"], WeightSpec),
                             spec_from_json(layer["activations"], ActivationSpec))
                 for name, layer in description["layers"].items()}
        for weights, activations in specs.values():
            weights.check_use("weights")
            activations.check_use("activations")
            weights.check(bits)
        return bits, specs, tuple(dict.fromkeys(description["batch_norms"]))
    except (TypeError, KeyError, AttributeError, ValueError) as error:
        raise ValueError(f"described_conversion: description must be what describe returns, got an error from it "
                         f"({type(error).__name__}: {error})") from error
