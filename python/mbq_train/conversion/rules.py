"""What is quantized and how: keep_float and rules, decided per layer."""

import fnmatch
from dataclasses import dataclass, field

from torch import nn

from .._names import look_up
from ..quantize.specs import ActivationSpec, WeightSpec, check_spec
from .supported import quant_types

_ACTIONS = ("float", "quantize")
_SPECS = {"weights": WeightSpec, "activations": ActivationSpec}


@dataclass
class Decision:
    """Whether one layer is quantized, why, and by which specs.

    refusal: why it cannot be quantized, whatever a rule says; needs_rule: only a rule that gives its very name or type
    can quantize it; left: it stays in float, or shared by all bit-widths, though nobody said so.
    """

    action: str
    why: str
    specs: dict = field(default_factory=dict)
    refusal: str | None = None
    needs_rule: bool = False
    left: bool = False

    def decide(self, action: str, why: str) -> None:
        """Replace the action and the reason; the specs stay for a later rule."""
        self.action, self.left = action, False
        self.why = f"{why}; not converted: {self.refusal}" if self.refusal else why


def keep_in_float(decisions: dict[str, Decision], names, ends: dict[str, dict[str, str]]) -> None:
    """Decide 'float' for the layers in `names`; 'first' and 'last' are keys of `ends`, which give the layers that each
    stands for and why, also where a layer has such a name.

    Raises TypeError when names is one string or no sequence, ValueError for an unknown name.
    """
    if isinstance(names, str) or not hasattr(names, "__iter__"):
        raise TypeError(f"convert: keep_float must be a sequence of layer names, got {names!r}")
    for name in names:
        look_up("convert", decisions | ends, name, argument="keep_float")
        if name in ends:
            for end, why in ends[name].items():
                decisions[end].decide("float", f"keep_float: {name} {why}")
        else:
            decisions[name].decide("float", "keep_float")


def apply_rules(decisions: dict[str, Decision], layers: dict[str, nn.Module], norms: dict[str, nn.Module], rules,
                others: dict[str, tuple[nn.Module, str]]) -> None:
    """Change `decisions` by every rule in turn.

    Args:
        decisions: by name, of `layers` and `norms`.
        layers: those of supported types and their subclasses, by name.
        norms: every BatchNorm, by name; rules that match no layer can keep them 'float'.
        rules: (match, action) pairs, as convert takes them.
        others: the other modules and why they cannot be quantized, by name; for the error.

    Raises:
        TypeError, ValueError: a rule is not such a pair, matches no layer that can be quantized, or names one that
        cannot.
    """
    for match, action in _checked(rules):
        hits = [name for name, layer in layers.items() if _matches(match, name, layer, action, decisions[name])]
        if not hits and action == "float":
            hits = [name for name, norm in norms.items() if _fits(match, name, norm)]
        if not hits:
            refused = {name: (layer, decisions[name].refusal) for name, layer in layers.items()
                       if decisions[name].refusal}
            _refuse(match, {name: layer for name, layer in layers.items() if name not in refused}, refused | others)
        shown = f"rule ({match.__name__ if isinstance(match, type) else repr(match)}, {action!r})"
        for name in hits:
            if isinstance(action, dict):
                decisions[name].specs.update(action)
                decisions[name].why += f"; {shown}"
            else:
                decisions[name].decide(action, shown)


def _matches(match, name: str, layer: nn.Module, action, decision: Decision) -> bool:
    """Return whether the rule is for this layer. A subclass of which nothing is known needs a rule that
    gives its very name or type.

    Raises ValueError where a rule gives the very name or type of a layer that cannot be quantized.
    """
    exact = type(layer) is match if isinstance(match, type) else name == match
    if action == "float" or not (decision.refusal or decision.needs_rule):
        return exact or _fits(match, name, layer)
    if decision.refusal and exact and type(layer) not in quant_types():
        _refuse(match, {}, {name: (layer, decision.refusal)})
    return exact and not decision.refusal


def _fits(match, name: str, layer: nn.Module) -> bool:
    return isinstance(layer, match) if isinstance(match, type) else fnmatch.fnmatchcase(name, match)


def _checked(rules):
    """Yield `rules`, each of them once it has the right form."""
    if isinstance(rules, (str, dict)) or not hasattr(rules, "__iter__"):
        raise TypeError(f"convert: rules must be a sequence of (match, action) pairs, got {rules!r}")
    for rule in rules:
        if not isinstance(rule, (tuple, list)) or len(rule) != 2:
            raise TypeError(f"convert: rules must hold (match, action) pairs, got {rule!r}")
        match, action = rule
        if not isinstance(match, str) and not (isinstance(match, type) and issubclass(match, nn.Module)):
            raise TypeError(f"convert: match of a rule must be a name, a pattern or an nn.Module type, got {match!r}")
        _check_action(action)
        yield match, action


def _check_action(action) -> None:
    if isinstance(action, str):
        look_up("convert", dict.fromkeys(_ACTIONS), action, argument="action of a rule")
    elif not isinstance(action, dict):
        raise TypeError(f"convert: action of a rule must be 'float', 'quantize' or a dict, got {action!r}")
    else:
        for name, spec in action.items():
            check_spec(name, spec, look_up("convert", _SPECS, name, argument="action of a rule"))


def _refuse(match, layers: dict[str, nn.Module], others: dict[str, tuple[nn.Module, str]]) -> None:
    """Raise ValueError for a rule that matches nothing, saying what it does match, or nearly."""
    shown = match.__name__ if isinstance(match, type) else match
    for name, (module, why) in others.items():
        if name == match or _fits(match, name, module):
            raise ValueError(f"convert: match of a rule must name a layer that can be quantized, got {shown!r}; "
                             f"{name}: {why}")
    if isinstance(match, type):
        layers = {type(layer).__name__: layer for layer in layers.values()}
    look_up("convert", layers, shown, argument="match of a rule")
