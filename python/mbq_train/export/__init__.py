"""A trained network in the forms that others read."""

from .int8_store import export_store
from .onnx import export_onnx

__all__ = ["export_onnx", "export_store"]
