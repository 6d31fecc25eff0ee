"""Networks to train: those of the papers by name, those of other packages by address."""

from .build import build_model
from .decoder import Decoder

__all__ = ["Decoder", "build_model"]
