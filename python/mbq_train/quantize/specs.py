"""Specs: which quantizer weights or activations get, with its options, as data that a checkpoint keeps.

A kind of quantizer is one file: the quantizer, and a frozen dataclass that derives from WeightSpec, ActivationSpec or
both, holds the options with their checks, and makes the quantizer.
"""

import dataclasses
import json
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar

import torch
from torch import nn

from .._names import look_up
from .bits import BitState

_SPECS: dict[str, type["Spec"]] = {}  # every kind by its name, in the order of definition


def option(default, help: str, *, of: str, choices: tuple[str, ...] = (), flag: str | None = None) -> Any:
    """Return a field of a spec.

    Args:
        default: its value; bool, str, or None for an integer that may be left out.
        help: what it means, for the command line.
        of: 'weights' or 'activations' - what it is an option of.
        choices: the values it can have.
        flag: its name on the command line [the field's]; '': none.
    """
    return field(default=default, metadata={"help": help, "of": of, "choices": choices, "flag": flag})


def correction_option() -> Any:
    """Return the field `correction` of weights, which several kinds have."""
    return option(False, "give channels of quantized weights their mean and deviation in float", of="weights",
                  flag="weight_correction")


def flag_of(option: dataclasses.Field) -> str:
    """Return the name of an option of a spec on the command line; '' where it has none."""
    flag = option.metadata.get("flag", "")  # a plain field has none
    return option.name if flag is None else flag


@dataclass(frozen=True)
class Spec:
    """A kind of quantizer and its options. Raises TypeError, ValueError for an option of another type or value."""

    name: ClassVar[str]

    def __init_subclass__(cls):
        if "name" in vars(cls):
            other = _SPECS.setdefault(cls.name, cls)
            if (other.__module__, other.__qualname__) != (cls.__module__, cls.__qualname__):
                raise ValueError(f"{cls.__qualname__}: name must be its own, got {cls.name!r}, that of "
                                 f"{other.__qualname__}")
            _SPECS[cls.name] = cls  # a cell of a notebook that runs again defines it anew

    def __post_init__(self):
        for each in fields(self):
            value, choices = getattr(self, each.name), each.metadata.get("choices")
            if choices:
                look_up(type(self).__name__, dict.fromkeys(choices), value, argument=each.name)
            elif isinstance(each.default, bool) and not isinstance(value, bool):
                raise TypeError(f"{type(self).__name__}: {each.name} must be True or False, got {value!r}")

    def check_use(self, of: str) -> None:
        """Raise ValueError where an option that is not one of `of`, 'weights' or 'activations', is given."""
        for each in fields(self):
            if each.metadata.get("of", of) != of and getattr(self, each.name) != each.default:
                raise ValueError(f"convert: {of} must leave {each.name} of {type(self).__name__} alone, which is an "
                                 f"option of {each.metadata['of']}, got {getattr(self, each.name)!r}")

    def to_json(self) -> dict:
        """Return a JSON object from which `spec_from_json` makes the same spec."""
        return {"name": self.name, **dataclasses.asdict(self)}


class WeightSpec(Spec):
    """What quantizes the weights of a layer."""

    def check(self, bits: tuple[int, ...]) -> None:
        """Raise ValueError for bit-widths, from high to low, that weights cannot have."""

    def activations(self) -> "ActivationSpec":
        """Return what quantizes the inputs where nothing is said of them."""
        return _SPECS["learned"]()

    def weight_quantizer(self, bit_state: BitState, weight: torch.Tensor, *, layer_name: str) -> nn.Module:
        """Return a BaseWeightQuantizer for `weight`, (C, ...)."""
        raise NotImplementedError(f"{layer_name}: {type(self).__name__} must define weight_quantizer, got none")


class ActivationSpec(Spec):
    """What quantizes the inputs of a layer."""

    def input_quantizer(self, bit_state: BitState, *, like: torch.Tensor, layer_name: str) -> nn.Module:
        """Return a module that quantizes inputs; like: the layer's weight, which gives device, dtype and dimensions."""
        raise NotImplementedError(f"{layer_name}: {type(self).__name__} must define input_quantizer, got none")


@dataclass(frozen=True)
class Float(ActivationSpec):
    """Leave the inputs of a layer in float."""

    name: ClassVar[str] = "float"

    def input_quantizer(self, bit_state: BitState, *, like: torch.Tensor, layer_name: str) -> nn.Module:
        return nn.Identity()


def spec_types(base: type[Spec]) -> dict[str, type[Spec]]:
    """Return every kind that derives from `base`, WeightSpec or ActivationSpec, by name."""
    return {name: kind for name, kind in _SPECS.items() if issubclass(kind, base)}


def spec_from_json(values: dict, base: type[Spec]) -> Any:
    """Return the spec that `to_json` described. Raises ValueError for an unknown kind, TypeError for unknown options.

    Options that were added after the object was written have their defaults.
    """
    values = dict(values)
    return look_up("spec_from_json", spec_types(base), values.pop("name", None))(**values)


def check_spec(argument: str, spec, base: type[Spec]) -> None:
    """Raise TypeError unless `spec` is one for `argument`, 'weights' or 'activations', that a checkpoint can keep."""
    if not isinstance(spec, base):
        names = ", ".join(f"{kind.__name__}()" for kind in spec_types(base).values())
        raise TypeError(f"convert: {argument} must be a spec such as {names}, got {spec!r}")
    try:
        kept = spec_from_json(json.loads(json.dumps(spec.to_json())), base) == spec
    except (AttributeError, TypeError, ValueError):
        kept = False
    if not kept:
        raise TypeError(f"convert: {argument} must be a spec with a name of its own and options that JSON keeps as "
                        f"they are, because checkpoints hold it so, got {spec!r}")
    spec.check_use(argument)
