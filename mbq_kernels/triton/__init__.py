"""Triton kernels: for CUDA tensors without a compiled library, and on CPU tensors under TRITON_INTERPRET=1."""
