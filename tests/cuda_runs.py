"""One x with K quantizers through the CUDA loops on the host, for test_cuda_on_host.py."""

import ctypes

import torch

I64, PTR, INT, BOOL = ctypes.c_int64, ctypes.c_void_p, ctypes.c_int, ctypes.c_bool
TENSORS = ["scale", "shift", "unit", "floor", "lo", "hi", "scale_grad", "shift_grad", "order"]


class Arguments(ctypes.Structure):
    _fields_ = [("x", PTR), ("others", PTR), ("grad_x", PTR), *((name, PTR) for name in TENSORS),
                ("outer", I64), ("channels", I64), ("inner", I64), ("levels", INT), ("slots", INT),
                ("enough_blocks", INT), ("aligned", BOOL), ("plain", BOOL), ("together", BOOL)]


class Run:
    """One x of (outer, channels, inner) in memory with K quantizers, as the kernels get it."""

    def __init__(self, host, shape, dtype, ranges, aligned=True, slots=None):
        self.host, self.shape, self.dtype, self.aligned = host, shape, dtype, aligned
        count, channels = len(ranges), shape[1]
        self.slots = slots or (1 if count == 1 else 4)
        self.x = (torch.randn(shape) * 4).to(dtype)
        self.grads = [torch.randn(shape).to(dtype) for _ in ranges]
        self.scale = torch.rand(count, channels) * 0.5 + 0.3
        self.shift = torch.randint(-3, 3, (count, channels)).float()
        self.lo, self.hi = (torch.tensor(column, dtype=torch.float32) for column in zip(*ranges, strict=True))
        self.scale_grad, self.shift_grad = (torch.full((count, channels), torch.nan) for _ in range(2))
        self.unit = self.floor = self.order = None
        self.together, self.enough_blocks = False, 8192

    def call(self, kind, others, grad_x):
        pointers = (PTR * len(others))(*(t.data_ptr() for t in others))
        tensors = (getattr(self, name) for name in TENSORS)
        plain = self.shift is None and bool((self.lo != -self.hi).all())
        arguments = Arguments(self.x.data_ptr(), ctypes.cast(pointers, PTR), grad_x.data_ptr(),
                              *(None if t is None else t.data_ptr() for t in tensors), *self.shape, len(others),
                              self.slots, self.enough_blocks, self.aligned, plain, self.together)
        getattr(self.host, f"{kind}_{str(self.dtype).removeprefix('torch.')}")(ctypes.byref(arguments))

    def forward(self, kind="forward"):
        outs = [torch.full_like(self.x, torch.nan) for _ in self.grads]
        self.call(kind, outs, self.x)
        return outs

    def backward(self, kind="backward"):
        """Return the gradients of x, of the scales and of the shifts."""
        grad_x = torch.full_like(self.x, torch.nan)
        self.call(kind, self.grads, grad_x)
        return grad_x, self.scale_grad.clone(), self.shift_grad.clone()
