"""timm and transformers, where they are installed."""

import contextlib

import pytest
import torch


def package(name: str):
    """The package, or a skip. Wheels of torchvision for another torch lack the two operators that it names itself."""
    try:
        with contextlib.suppress(ImportError):
            import torchvision  # noqa: F401
    except RuntimeError:
        package.operators = torch.library.Library("torchvision", "DEF")  # they live as long as this
        for operator in ("nms", "qnms"):
            package.operators.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    return pytest.importorskip(name)
