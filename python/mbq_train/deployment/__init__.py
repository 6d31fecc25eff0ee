"""Trained networks that keep nothing of their weights but integer codes, and compute at any bit-width from those."""

from .deploy import deploy
from .switched_layers import SwitchedConv1d, SwitchedConv2d, SwitchedLinear, Workspace

__all__ = ["SwitchedConv1d", "SwitchedConv2d", "SwitchedLinear", "Workspace", "deploy"]
