"""convert: turn a float network into one that computes at several bit-widths."""

from torch import nn

from .._names import look_up
from ..quantize.batch_norm import BATCH_NORMS
from ..quantize.bits import FLOAT, check_bit_widths
from ..quantize.scales import initialise
from .call_order import ExampleCalls, arguments, calls_of
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
from .plan import Conversion, Entry, check_unconverted
from .rules import Decision, apply_rules, keep_in_float
from .weights import layer_quantizers

_BATCH_NORM = {"per_bit": True, "shared": False}


def convert(model: nn.Module, bits=(8, 4, 2), *, example=None, rules=(), batch_norm: str = "per_bit",
            keep_float=("first", "last"), learn_offset: bool = False, quantizer: str = "learned",
            weight_correction: bool = False, rounding: str = "half_even", scale_chain: bool = False,
            shared_sum: bool = False, normalise: str = "max", form: str = "offset",
            activation_bits: int | None = None) -> nn.Module:
    """Replace, in place, the layers inside `model` that can be quantized by quantized ones, and return it.

    plan_conversion(...).apply(), with the arguments and errors of plan_conversion. Afterwards the model computes at
    bits[0] until `set_bits`. One RuntimeWarning names what stays in float though neither keep_float nor a rule says so.
    Scales get their first values from `example`, a training batch, as `initialise` takes them; without one, from the
    first training batch at each bit-width. Evaluation and averages of the model (EMA) need these values. Parameters
    stay the same objects, except those that QuantMultiheadAttention splits: make the optimizer afterwards.
    """
    plan = plan_conversion(model, bits, example=example, rules=rules, batch_norm=batch_norm, keep_float=keep_float,
                           learn_offset=learn_offset, quantizer=quantizer, weight_correction=weight_correction,
                           rounding=rounding, scale_chain=scale_chain, shared_sum=shared_sum, normalise=normalise,
                           form=form, activation_bits=activation_bits)
    model = plan.apply()
    if example is not None:
        args, kwargs = arguments("convert", example)
        initialise(model, *args, **kwargs)
    return model


def plan_conversion(model: nn.Module, bits=(8, 4, 2), *, example=None, rules=(), batch_norm: str = "per_bit",
                    keep_float=("first", "last"), learn_offset: bool = False, quantizer: str = "learned",
                    weight_correction: bool = False, rounding: str = "half_even", scale_chain: bool = False,
                    shared_sum: bool = False, normalise: str = "max", form: str = "offset",
                    activation_bits: int | None = None) -> Conversion:
    """Decide what becomes of every module of `model`; nothing is changed before `apply` of the result.

    Args:
        model: layers of type nn.Linear, nn.Conv1d, nn.Conv2d, nn.MultiheadAttention or transformers' Conv1D, below the
            model itself, are quantized. A layer used at several places stays one, Parameters shared by layers stay
            shared.
        bits: different integers in 1..8 from high to low - the bit-widths to train.
        example: a tensor, tuple of arguments or dict of keyword arguments to call the model with, once, in eval mode:
            finds the order in which layers are called, those that are not [None: order of registration], and the
            subclasses that compute what their supported base does there: they are quantized like it.
        rules: (match, action) pairs for these layers; later ones win, over keep_float too. match: a layer's name, a
            pattern for names as of fnmatch ('blocks.*'), or an nn.Module type. action: 'float', 'quantize', or a dict
            of options that leaves that choice as it is: 'signed' (code range of the input; without it the first batch
            decides), 'learn_offset', 'activations' (False quantizes weights only). Without an example a subclass
            that inherits its forward is quantized where a rule gives its very name or type; one that computes something
            else is never. (match, 'float') keeps one BatchNorm for all bit-widths where match fits no layer.
        batch_norm: 'per_bit' gives each bit-width its own BatchNorm, of any subclass; 'shared' leaves BatchNorm alone.
        keep_float: names of layers to leave unquantized; 'last' stands for the last layer, 'first' for every layer
            that reads the network's input and no other layer's output, as query, key and value after an embedding do
            (without an example the first that is registered), also where a layer has such a name. Huang et al., 2025,
            arXiv 2502.01199, leaves these in float.
        learn_offset: learn a real offset of the activations per bit-width [off: 0 fits what a ReLU gives].
        quantizer: of weights. 'learned': a scale for every bit-width (Esser et al., 2020); 'double-rounding': one
            scale, and codes of the highest bit-width that are rounded again (Huang et al., 2025); not for 1 bit;
            'any-precision': no learned scale, inputs clamped to 0..1 (Yu et al., 2021), for inputs after a ReLU;
            'round-clamp': no scale, and a bit-width for each layer where `set_layer_bits` gives one (Han et al., 2025).
        weight_correction: give every channel of a quantized weight its mean and deviation in float, so that one
            BatchNorm serves all bit-widths (Kim et al., 2025); not for 'round-clamp'.
        rounding, scale_chain, shared_sum: of 'double-rounding', as for DoubleRoundingQuantizer.
        normalise, form: of 'round-clamp', as for RoundClampQuantizer.
        activation_bits: the bit-width of all activations, 1 to 8, whatever that of the weights; 32 leaves them in
            float [the one in use].

    Raises:
        TypeError: an argument of the wrong type. ValueError: bits unsorted, repeated or out of range; an unknown name,
        action or option; 1 bit with double rounding, or its options without; a rule that matches no layer to quantize,
        or names one that computes something else than the supported type, with by how much;
        the example does not run; a model that is a bare layer, converted already, wrapped (torch.compile, torch.jit,
        data parallel) or lazy.
    """
    bits = check_bit_widths("convert", bits)
    per_bit = look_up("convert", _BATCH_NORM, batch_norm, argument="batch_norm")
    makers = layer_quantizers(quantizer, bits, correction=weight_correction, rounding=rounding,
                              scale_chain=scale_chain, shared_sum=shared_sum, normalise=normalise, form=form)
    if quantizer == "any-precision" and (learn_offset or activation_bits):
        raise ValueError("convert: learn_offset and activation_bits must be off with quantizer 'any-precision', which "
                         "clamps to 0..1, got one of them")
    check_model(model)
    check_unconverted(model)
    modules = _modules(model)
    owners = _owners(modules)
    obstacles = {name: why for name, module in modules.items() if (why := obstacle(module) or _tie(module, owners))}
    layers = {name: module for name, module in modules.items() if name and base_type(module)}
    norms = {name: module for name, module in modules.items() if name not in layers and name
             and (isinstance(module, BATCH_NORMS) or has_running_statistics(module))}
    options = {"learn_offset": learn_offset, **makers, **_activations(activation_bits)}
    decisions, order = _first_decisions(model, layers, obstacles, example, options, keep_float)
    decisions |= {name: _of_norm(norm, obstacles.get(name), per_bit) for name, norm in norms.items()}
    others = {name: (module, why_unsupported(module)) for name, module in modules.items()
              if name and name not in layers and own_parameters(module)}
    apply_rules(decisions, layers, norms, rules, others)
    decisions |= {name: Decision("float", why_unsupported(module)) for name, module in modules.items()
                  if name not in decisions and own_parameters(module)}
    return Conversion(model, bits, tuple(_entry(name, modules[name], decisions[name], owners) for name in modules
                                         if name in decisions), order)


def _activations(bits: int | None) -> dict:
    """Return the options of `from_float` that give all activations one bit-width."""
    if bits is None:
        return {}
    check_bit_widths("convert", (bits,), float_path=True)
    return {"activations": False} if bits == FLOAT else {"own_bits": bits}


def _modules(model) -> dict[str, nn.Module]:
    """Return every module of `model` by its first name, without the parts of layers."""
    hidden = {part for module in model.modules() for part in parts(module)}
    return {name: module for name, module in model.named_modules() if module not in hidden}


def _owners(modules) -> dict[int, list[str]]:
    """By id of a Parameter, the names of the modules that hold it."""
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


def _first_decisions(model, layers, obstacles, example, options: dict, keep_float) -> tuple[dict[str, Decision], str]:
    """Return what is done with `layers` before the rules, and how the first and the last of them were found."""
    bases = {name: base_type(layer) for name, layer in layers.items()
             if type(layer) not in quant_types() and name not in obstacles}
    if example is None:
        names, order = list(layers), "by order of registration (no example given)"
        calls = ExampleCalls(names, names[:1])
    else:
        calls, order = calls_of(model, layers, example, bases), "as called with the example"
    decisions = {name: _of_layer(name, layer, obstacles.get(name), calls, dict(options), example is None)
                 for name, layer in layers.items()}
    why_first = f"{order}: it reads the network's input" if calls.followed else order
    keep_in_float(decisions, keep_float, {"first": dict.fromkeys(calls.first, why_first),
                                          "last": dict.fromkeys(calls.order[-1:], order)})
    return decisions, order


def _of_layer(name: str, layer, why: str | None, calls: ExampleCalls, options: dict, untried: bool) -> Decision:
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
            return Decision("float", f"not converted: {what}, add a rule ({name!r}, 'quantize')", options,
                            needs_rule=True, left=True)
    if why is not None:
        return Decision("float", f"not converted: {why}", options, refusal=why, left=True)
    if name not in calls.order:
        return Decision("quantize", "supported, but not called with the example: is its weight used by hand?", options)
    return Decision("quantize", "supported" if type(layer) is base else
                    f"supported: it computes what {base.__name__} does on the example", options)


def _of_norm(norm, why: str | None, per_bit: bool) -> Decision:
    """Return what is done with a BatchNorm, or another norm with running statistics; why: what hinders its conversion.
    """
    if not isinstance(norm, BATCH_NORMS):
        return Decision("float", "normalisation with running statistics, but no BatchNorm", left=per_bit)
    if why is not None:
        return Decision("float", f"not converted: {why}", left=per_bit)
    return Decision("per_bit", "") if per_bit else Decision("float", "batch_norm='shared'")


def _entry(name: str, module, decision: Decision, owners) -> Entry:
    parameters = own_parameters(module)
    ties = {other for parameter in parameters for other in owners[id(parameter)]} - {name}
    why = f"{decision.why}; shares Parameters with {', '.join(sorted(ties))}" if ties else decision.why
    count = sum({id(parameter): parameter.numel() for parameter in parameters}.values())
    return Entry(name, type(module).__name__, count, decision.action, why, decision.options, module, decision.left)
