"""convert: turn a float network into one that computes at several bit-widths."""

from torch import nn

from .._names import look_up
from ..quantize.batch_norm import BATCH_NORMS
from ..quantize.bits import check_bit_widths
from ..quantize.learned import Learned
from ..quantize.scales import initialise
from ..quantize.specs import ActivationSpec, WeightSpec, check_spec
from .call_order import ExampleCalls, arguments, calls_of, registered
from .plan import Conversion, Entry, check_unconverted
from .rules import Decision, apply_rules, keep_in_float
from .supported import (
    base_type,
    check_model,
    copied_by_conversion,
    has_running_statistics,
    obstacle,
    overrides_computation,
    own_parameters,
    parts,
    quant_types,
    why_unsupported,
)
from .transitions import transition_of

BATCH_NORM_MODES = ("per_bit", "transitional", "shared")


def convert(model: nn.Module, bits=(8, 4, 2), *, weights: WeightSpec = Learned(),
            activations: ActivationSpec | None = None, example=None, rules=(), batch_norm: str = "per_bit",
            keep_float=("first", "last")) -> nn.Module:
    """Replace, in place, the layers inside `model` that can be quantized by quantized ones, and return it.

    plan_conversion(...).apply(), with the arguments and errors of plan_conversion. Afterwards the model computes at
    bits[0] until `set_bits`. One RuntimeWarning names what stays in float though neither keep_float nor a rule says so.
    Scales get their first values from `example`, a training batch, as `initialise` takes them; without one, from the
    first training batch at each bit-width. Evaluation and averages of the model (EMA) need these values. Parameters
    stay the same objects, except those that QuantMultiheadAttention splits: make the optimizer afterwards.
    """
    plan = plan_conversion(model, bits, weights=weights, activations=activations, example=example, rules=rules,
                           batch_norm=batch_norm, keep_float=keep_float)
    model = plan.apply()
    if example is not None:
        args, kwargs = arguments("convert", example)
        initialise(model, *args, **kwargs)
    return model


def plan_conversion(model: nn.Module, bits=(8, 4, 2), *, weights: WeightSpec = Learned(),
                    activations: ActivationSpec | None = None, example=None, rules=(), batch_norm: str = "per_bit",
                    keep_float=("first", "last")) -> Conversion:
    """Decide what becomes of every module of `model`; nothing is changed before `apply` of the result.

    Args:
        model: layers of type nn.Linear, nn.Conv1d, nn.Conv2d, nn.MultiheadAttention or transformers' Conv1D, below the
            model itself, are quantized. A layer used at several places stays one, Parameters shared by layers stay
            shared.
        bits: different integers in 1..8 from high to low - the bit-widths to train.
        weights: how weights are quantized, with its options: Learned(), a scale for every bit-width, per channel or
            group; DoubleRounding(), one scale, and codes of the highest bit-width that are rounded again;
            AnyPrecision(), no learned scale; RoundClamp(), no scale, and a bit-width for each layer where
            `set_layer_bits` gives one.
        activations: how the inputs of layers are quantized: Learned(), AnyPrecision(), Dynamic(), the range of each
            token, or Float() [as `weights` says: AnyPrecision() for itself, Learned() for all others].
        example: a tensor, tuple of arguments or dict of keyword arguments to call the model with, once, in eval mode:
            finds the order in which layers are called, those that are not [None: order of registration], and the
            subclasses that compute what their supported base does there: they are quantized like it.
        rules: (match, action) pairs for these layers; later ones win, over keep_float too. match: a layer's name, a
            pattern for names as of fnmatch ('blocks.*'), or an nn.Module type. action: 'float', 'quantize', or a dict
            that leaves that choice as it is and gives these layers specs of their own: {'activations':
            Learned(signed=True)}, {'weights': RoundClamp(), 'activations': Float()}. Without an example a subclass that
            inherits its forward is quantized where a rule gives its very name or type; one that computes something
            else is never. (match, 'float') keeps one BatchNorm for all bit-widths where match fits no layer.
        batch_norm: 'per_bit' gives each bit-width its own BatchNorm, of any subclass; 'transitional' each pair of
            bit-widths, of the layer it normalises and of the layer before that [see TransitionalBatchNorm]; 'shared'
            leaves BatchNorm alone.
        keep_float: names of layers to leave unquantized; 'last' stands for the last layer, 'first' for every layer
            that reads the network's input and no other layer's output, as query, key and value after an embedding do
            (without an example the first that is registered), also where a layer has such a name. Huang et al., 2025,
            arXiv 2502.01199, leaves these in float.

    Raises:
        TypeError: an argument of the wrong type. ValueError: bits unsorted, repeated or out of range; an unknown name,
        action or option; 1 bit with double rounding; a rule that matches no layer to quantize, or names one that
        computes something else than the supported type (the message says by how much it differs); the example does not
        run; a model that is a bare layer, converted already, wrapped (torch.compile, torch.jit, data parallel) or lazy.
    """
    bits = check_bit_widths("convert", bits)
    look_up("convert", dict.fromkeys(BATCH_NORM_MODES), batch_norm, argument="batch_norm")
    check_spec("weights", weights, WeightSpec)
    weights.check(bits)
    if activations is not None:
        check_spec("activations", activations, ActivationSpec)
    check_model(model)
    check_unconverted(model)
    modules = _modules(model)
    owners = _owners(modules)
    obstacles = {name: why for name, module in modules.items() if (why := obstacle(module) or _tie(module, owners))}
    layers = {name: module for name, module in modules.items() if name and base_type(module)}
    norms = {name: module for name, module in modules.items() if name not in layers and name
             and (isinstance(module, BATCH_NORMS) or has_running_statistics(module))}
    specs = {"weights": weights, "activations": weights.activations() if activations is None else activations}
    decisions, calls, order = _first_decisions(model, layers, norms, obstacles, example, specs, keep_float)
    decisions |= {name: _of_norm(norm, obstacles.get(name), batch_norm != "shared") for name, norm in norms.items()}
    others = {name: (module, why_unsupported(module)) for name, module in modules.items()
              if name and name not in layers and own_parameters(module)}
    apply_rules(decisions, layers, norms, rules, others)
    for name in layers:
        decisions[name].specs["weights"].check(bits)
    _find_transitions(decisions, norms, calls, batch_norm == "transitional")
    decisions |= {name: Decision("float", why_unsupported(module)) for name, module in modules.items()
                  if name not in decisions and own_parameters(module)}
    return Conversion(model, bits, tuple(_entry(name, modules[name], decisions[name], owners) for name in modules
                                         if name in decisions), order)


def _modules(model) -> dict[str, nn.Module]:
    """Return every module of `model` by its first name, without the parts of layers."""
    hidden = {part for module in model.modules() for part in parts(module)}
    return {name: module for name, module in model.named_modules() if module not in hidden}


def _owners(modules) -> dict[int, list[str]]:
    """Return, by id of a Parameter, the names of the modules that hold it."""
    owners = {}
    for name, module in modules.items():
        for key in dict.fromkeys(map(id, own_parameters(module))):
            owners.setdefault(key, []).append(name)
    return owners


def _tie(module, owners) -> str | None:
    """Return why a module stays in float whose Parameters would be untied from another module's; None when it need not.
    """
    if any(len(owners[id(parameter)]) > 1 for parameter in copied_by_conversion(module)):
        return "it shares a Parameter that would have to be copied"
    return None


def _first_decisions(model, layers, norms, obstacles, example, specs: dict,
                     keep_float) -> tuple[dict[str, Decision], ExampleCalls, str]:
    """Return what is done with `layers` before the rules, their calls, and how the first and the last were found."""
    bases = {name: base_type(layer) for name, layer in layers.items()
             if type(layer) not in quant_types() and name not in obstacles}
    if example is None:
        calls, order = registered(model, layers, norms), "by order of registration (no example given)"
    else:
        calls, order = calls_of(model, layers, example, bases, norms), "as called with the example"
    decisions = {name: _of_layer(name, layer, obstacles.get(name), calls, dict(specs), example is None)
                 for name, layer in layers.items()}
    why_first = f"{order}: it reads the network's input" if calls.followed else order
    keep_in_float(decisions, keep_float, {"first": dict.fromkeys(calls.first, why_first),
                                          "last": dict.fromkeys(calls.order[-1:], order)})
    return decisions, calls, order


def _of_layer(name: str, layer, why: str | None, calls: ExampleCalls, specs: dict, untried: bool) -> Decision:
    """Return what is done with a layer of a supported type or a subclass; why: what hinders its conversion."""
    base = base_type(layer)
    if type(layer) is not base and why is None:
        what = f"subclass of {base.__name__}"
        if calls.differences.get(name):
            why = f"{what}, {calls.differences[name]}"
        elif name not in calls.differences and overrides_computation(layer, base):
            why = f"{what} with a forward of its own, " + (
                "give an example to compare them" if untried else "not called with the example")
        elif name not in calls.differences:
            return Decision("float", f"not converted: {what}, add a rule ({name!r}, 'quantize')", specs,
                            needs_rule=True, left=True)
    if why is not None:
        return Decision("float", f"not converted: {why}", specs, refusal=why, left=True)
    if name not in calls.order:
        return Decision("quantize", "supported, but not called with the example: is its weight used by hand?", specs)
    return Decision("quantize", "supported" if type(layer) is base else
                    f"supported: it computes what {base.__name__} does on the example", specs)


def _of_norm(norm, why: str | None, per_bit: bool) -> Decision:
    """Return what is done with a BatchNorm, or another norm with running statistics; why: what hinders its conversion.
    """
    if not isinstance(norm, BATCH_NORMS):
        return Decision("float", "normalisation with running statistics, but no BatchNorm", left=per_bit)
    if why is not None:
        return Decision("float", f"not converted: {why}", left=per_bit)
    return Decision("per_bit", "") if per_bit else Decision("float", "batch_norm='shared'")


def _find_transitions(decisions: dict[str, Decision], norms, calls: ExampleCalls, pairs: bool) -> None:
    """Note which layers the norms of their own for every bit-width go by, of those that a quantized layer reaches; with
    `pairs` decide 'transitional' for them."""
    layers = {name for name, decision in decisions.items() if name not in norms and decision.action == "quantize"}
    for name in norms:
        if decisions[name].action != "per_bit":
            continue
        if (transition := transition_of(name, calls, layers)) is None:
            decisions[name].why = "no quantized layer before it" if pairs else ""
            continue
        decisions[name].specs["transition"] = transition
        if pairs:
            previous, layer = transition
            decisions[name].decide("transitional", f"of {layer}, " + (f"after {previous}" if previous else
                                                                      "with no quantized layer before"))


def _entry(name: str, module, decision: Decision, owners) -> Entry:
    parameters = own_parameters(module)
    ties = {other for parameter in parameters for other in owners[id(parameter)]} - {name}
    why = f"{decision.why}; shares Parameters with {', '.join(sorted(ties))}" if ties else decision.why
    count = sum({id(parameter): parameter.numel() for parameter in parameters}.values())
    specs = decision.specs if decision.action in ("quantize", "per_bit", "transitional") else {}
    return Entry(name, type(module).__name__, count, decision.action, why, module=module, left=decision.left, **specs)
