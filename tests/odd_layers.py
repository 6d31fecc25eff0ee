"""Layers as people change them: subclasses, hooks, parametrizations, state that is no tensor; all can be pickled."""

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrizations, parametrize

FORMS = ("plain", "inherits", "same", "standardised", "adapter", "hook", "pre-hook", "parametrized", "weight norm",
         "spectral norm", "frozen", "zeros", "a channel of zeros")


class Note(nn.Module):
    def get_extra_state(self):
        return torch.ones(2)

    def set_extra_state(self, state):
        assert torch.equal(state, torch.ones(2))


class Notes(nn.Module):
    def get_extra_state(self):
        return {"ones": torch.ones(2)}

    def set_extra_state(self, state):
        assert torch.equal(state["ones"], torch.ones(2))


def halve(module, args, out):
    return out / 2


def look(module, args, out=None):
    return None


class Half(nn.Module):
    def forward(self, weight):
        return weight / 2


class _Same:
    def forward(self, x):
        return super().forward(x)


class _Standardised:
    def forward(self, x):
        rows = self.weight.flatten(1)
        weight = ((rows - rows.mean(1, keepdim=True)) / (rows.std(1, correction=0, keepdim=True) + 0.1)).view_as(
            self.weight)
        return F.linear(x, weight, self.bias) if weight.dim() == 2 else self._conv_forward(x, weight, self.bias)


class _Adapter:
    """Computes what its base does as long as `gain` is 0."""

    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        self.gain = nn.Parameter(torch.zeros(()))

    def forward(self, x):
        y = super().forward(x)
        return y + self.gain * y


class InheritingLinear(nn.Linear):
    pass


class InheritingConv1d(nn.Conv1d):
    pass


class InheritingConv2d(nn.Conv2d):
    pass


class SameLinear(_Same, nn.Linear):
    pass


class SameConv1d(_Same, nn.Conv1d):
    pass


class SameConv2d(_Same, nn.Conv2d):
    pass


class StandardisedLinear(_Standardised, nn.Linear):
    pass


class StandardisedConv1d(_Standardised, nn.Conv1d):
    pass


class StandardisedConv2d(_Standardised, nn.Conv2d):
    pass


class AdapterLinear(_Adapter, nn.Linear):
    pass


class AdapterConv1d(_Adapter, nn.Conv1d):
    pass


class AdapterConv2d(_Adapter, nn.Conv2d):
    pass


_SUBCLASSES = {
    (form, base): globals()[prefix + base.__name__]
    for form, prefix in (("inherits", "Inheriting"), ("same", "Same"), ("standardised", "Standardised"),
                         ("adapter", "Adapter")) for base in (nn.Linear, nn.Conv1d, nn.Conv2d)}


class ActivatedBatchNorm1d(nn.BatchNorm1d):
    def forward(self, x):
        return F.leaky_relu(super().forward(x), 0.1)


class ActivatedBatchNorm2d(nn.BatchNorm2d):
    def forward(self, x):
        return F.leaky_relu(super().forward(x), 0.1)


class Mlp(nn.Sequential):
    pass


def formed(form: str, base: type, *args, **options) -> nn.Module:
    """A layer of type `base` in one of FORMS."""
    layer = _SUBCLASSES.get((form, base), base)(*args, **options)
    if form == "hook":
        layer.register_forward_hook(halve)
    elif form == "pre-hook":
        layer.register_forward_pre_hook(look)
    elif form == "parametrized":
        parametrize.register_parametrization(layer, "weight", Half())
    elif form == "weight norm":
        parametrizations.weight_norm(layer)
    elif form == "spectral norm":
        parametrizations.spectral_norm(layer)
    elif form == "frozen":
        layer.requires_grad_(False)
    elif "zeros" in form:
        nn.init.zeros_(layer.weight if form == "zeros" else layer.weight[0])
    return layer
