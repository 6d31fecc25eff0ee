"""Data and networks that Python code gives to a run, in place of names in its options."""

from dataclasses import fields, replace

import torch
from torch import nn

from ..data import Data, data_of
from ..options import Options

_GIVEN = "given:"  # before the name of a class, in config.json


def data_given(data, device: torch.device) -> Data | None:
    """Return `data`, a Data or a pair for `data_of`, as a Data on `device`; None for None."""
    if data is None or isinstance(data, Data):
        if data is not None and data.device != device:
            raise ValueError(f"train: data must be on the device of the run, {device}, got {data.device}")
        return data
    if not isinstance(data, (tuple, list)) or len(data) != 2:
        raise TypeError(f"train: data must be a Data or a pair (train, test), got {type(data).__name__}")
    return data_of(*data, device=device)


def with_given(options: Options, data: Data | None, model: nn.Module | None) -> Options:
    """Return the options of a run whose data or model are given, which name what they are.

    Raises ValueError where data are given, for options that only data given by name have.
    """
    if data is not None:
        for option in fields(options):
            shapes_data = option.metadata["group"] == "data" and option.name != "data"
            if shapes_data and getattr(options, option.name) != option.default:
                raise ValueError(f"train: {option.name} must be left alone where data are given, got "
                                 f"{getattr(options, option.name)!r}")
        options = replace(options, data=_GIVEN + data.name)
    if model is not None:
        if not isinstance(model, nn.Module):
            raise TypeError(f"train: model must be an nn.Module, got {type(model).__name__}")
        options = replace(options, model=_GIVEN + type(model).__name__)
    return options


def check_given(options: Options, **given) -> None:
    """Raise ValueError unless `given`, data or model or both, is what the run of `options` began with; None: nothing.
    """
    for name, value in given.items():
        began = getattr(options, name)
        kind = None if value is None else value.name if name == "data" else type(value).__name__
        if began.startswith(_GIVEN) and kind is None:
            raise ValueError(f"run: {name} must be given again: this run began in Python with a "
                             f"{began.removeprefix(_GIVEN)}, which its folder does not hold")
        if kind is not None and _GIVEN + kind != began:
            raise ValueError(f"run: {name} must be what the run began with, {began.removeprefix(_GIVEN)}, got "
                             f"{kind}")
