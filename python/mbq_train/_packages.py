"""Packages that files need and nothing else, so that the training layer installs and imports without them."""

import importlib
import importlib.util
from types import ModuleType

INSTALL = {
    **dict.fromkeys(("PIL", "matplotlib", "pyarrow", "scipy", "sklearn"), "pip install 'mbq-kernels[lab]'"),
    "mbq_store": "pip install ./python/mbq_store in a clone of mbq-kernels",
    "onnx": "pip install 'mbq-kernels[onnx]'",
    "onnxscript": "pip install 'mbq-kernels[onnx]'",
    "safetensors": "pip install safetensors",
}


def required(function: str, package: str) -> ModuleType:
    """Return the package. Raises ImportError that says how to install it where it is missing."""
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:  # a folder of that name on the path is no package
        raise ImportError(f"{function}: the package {package} must be installed, got none: {INSTALL[package]}")
    return importlib.import_module(package)
