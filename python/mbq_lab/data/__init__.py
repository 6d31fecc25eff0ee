"""Data sets of images: where they lie, how they are read, and the batches they give."""

from .batches import Data
from .errors import DataError
from .load import load_data

__all__ = ["Data", "DataError", "load_data"]
