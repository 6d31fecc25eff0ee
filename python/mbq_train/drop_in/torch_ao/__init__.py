"""The fake-quantizers of torch.ao.quantization, and torchao's copies of them for pt2e."""

from .family import torch_ao

__all__ = ["torch_ao"]
