"""A trained network in the forms that others read."""

from .onnx import export_onnx
from .int8_store import export_store

__all__ = ["export_onnx", "export_store"]
