"""What is quantized and how: keep_float and rules, decided per layer."""

import fnmatch
from dataclasses import dataclass, field

from torch import nn

from .._names import look_up
from .convertible import QUANT_TYPES

_ACTIONS = ("float", "quantize")
_OPTIONS = ("signed", "learn_offset", "activations")
_ENDS = {"first": 0, "last": -1}


@dataclass
class Decision:
    """Whether one layer is quantized, why, and with which options of `from_float`."""

    action: str
    why: str
    options: dict = field(default_factory=dict)

    def decide(self, action: str, why: str) -> None:
        """Another decision in its place; the options stay for a later one."""
        self.action, self.why = action, why


def keep_in_float(decisions: dict[str, Decision], names, order: list[str], kind_of_order: str) -> None:
    """Decide 'float' for the layers in `names`; 'first' and 'last' are the ends of `order`,
    also where a layer has such a name.

    Raises TypeError when names is one string, ValueError for an unknown name.
    """
    if isinstance(names, str):
        raise TypeError(f"convert: keep_float must be a sequence of layer names, got {names!r}")
    for name in names:
        if name in _ENDS:
            for end in order[_ENDS[name]:][:1]:
                decisions[end].decide("float", f"keep_float: {name} {kind_of_order}")
        else:
            look_up("convert", decisions, name, argument="keep_float")
            decisions[name].decide("float", "keep_float")


def apply_rules(decisions: dict[str, Decision], layers: dict[str, nn.Module], rules, reasons: dict[str, str]) -> None:
    """Change `decisions` by every rule in turn.

    Args:
        decisions: by name, of `layers`.
        layers: what can be quantized, by name.
        rules: (match, action) pairs, as convert takes them.
        reasons: of the other modules, why they cannot be quantized, by name; for the error.

    Raises:
        TypeError, ValueError: a rule is not such a pair, or matches no layer that can be quantized.
    """
    for match, action in _checked(rules):
        hits = [name for name, layer in layers.items() if _matches(match, name, layer, action)]
        if not hits:
            _refuse(match, layers, reasons)
        shown = f"rule ({match.__name__ if isinstance(match, type) else repr(match)}, {action!r})"
        for name in hits:
            if isinstance(action, dict):
                decisions[name].options.update(action)
                decisions[name].why += f"; {shown}"
            else:
                decisions[name].decide(action, shown)


def _matches(match, name: str, layer: nn.Module, action) -> bool:
    """A subclass may compute something else, so only a rule that means exactly it has it quantized."""
    exact = type(layer) is match if isinstance(match, type) else name == match
    if action != "float" and type(layer) not in QUANT_TYPES:
        return exact
    return exact or (isinstance(layer, match) if isinstance(match, type) else fnmatch.fnmatchcase(name, match))


def _checked(rules):
    """`rules`, each of them once it has the right form."""
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
        for name, value in action.items():
            look_up("convert", dict.fromkeys(_OPTIONS), name, argument="option of a rule")
            if not isinstance(value, bool):
                raise TypeError(f"convert: option {name} of a rule must be True or False, got {value!r}")


def _refuse(match, layers, reasons) -> None:
    """Raise ValueError for a rule that matches nothing, saying what it does match, or nearly."""
    if isinstance(match, type):
        match = match.__name__
        layers = {type(layer).__name__: layer for layer in layers.values()}
        reasons = {}
    for name, why in reasons.items():
        if fnmatch.fnmatchcase(name, match):
            raise ValueError(f"convert: match of a rule must name a layer that can be quantized, got {match!r}; "
                             f"{name}: {why}")
    look_up("convert", layers, match, argument="match of a rule")
