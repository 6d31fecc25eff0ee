"""Replace the fake-quantization in models that other libraries, and their users, made."""

from .acceleration import accelerate, restore
from .report import Report

__all__ = ["Report", "accelerate", "restore"]
