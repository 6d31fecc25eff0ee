"""Sweep an op over awkward sizes, tails and layouts: what bench/sanitize_ops.py runs under compute-sanitizer."""

import torch

SHAPES = ((64, 1031), (1,), (7,), (257,), (4099,), (3, 5, 7), (2, 33, 9, 9), (5, 0))
MATRICES = ((3, 40), (1, 8), (65, 200), (7, 1000), (33, 4104))


def _layouts(shape, dtype, device):
    """Give x as it is, x whose storage starts off 16-byte alignment, and x with its axes reversed."""
    x = torch.randn(shape, device=device).to(dtype)
    yield x
    yield torch.randn(x.numel() + 1, device=device).to(dtype)[1:].view(shape)
    yield x.permute(*reversed(range(x.dim())))


def _tensors(device, some):
    shape_and_dtype = [(shape, dtype) for shape in SHAPES
                       for dtype in (torch.float32, torch.bfloat16, torch.float16)][:1 if some else None]
    for shape, dtype in shape_and_dtype:
        for x in _layouts(shape, dtype, device):
            for axis in (None, 0, -1):
                yield x, axis


def over_tensors(call):
    """Sweep call(x, axis, *parameters) -> outputs and their gradients in x and the parameters: scale, offset, unit and
    floor of x along axis."""
    def sweep(device, some=False):
        for x, axis in _tensors(device, some):
            x = x.detach().requires_grad_()
            scale = torch.full((1 if axis is None else x.shape[axis],), 0.3, device=device).requires_grad_()
            offset = torch.zeros_like(scale).requires_grad_()
            unit, floor = torch.full_like(scale, 2.0), torch.full_like(scale, 0.5)
            outputs = call(x, axis, scale, offset, unit, floor)
            torch.autograd.grad(outputs, (x, scale, offset), [torch.ones_like(y) for y in outputs], allow_unused=True)
            assert x.numel() == 0 or all(y.isfinite().all() for y in outputs)
    return sweep


def over_weights(call):
    """Sweep call(x, axis, limit) -> outputs, with a limit for each channel of x along axis; gradients in x where there
    are any."""
    def sweep(device, some=False):
        for x, axis in _tensors(device, some):
            other = [d for d in range(x.dim()) if axis is None or d != axis % x.dim()]
            count = 1 if axis is None else x.shape[axis]
            limit = (torch.full((count,), 9.0, device=device) if 0 in x.shape
                     else x.detach().abs().float().amax(other) if other else x.detach().abs().float())
            x = x.detach().requires_grad_()
            outputs = call(x, axis, limit)
            if graded := [y for y in outputs if y.requires_grad]:
                torch.autograd.grad(graded, x, [torch.ones_like(y) for y in graded])
    return sweep


def over_matrices(call):
    """Sweep call(rows, columns, device) -> what must be finite."""
    def sweep(device, some=False):
        for rows, columns in MATRICES[:1 if some else None]:
            assert call(rows, columns, device).isfinite().all()
    return sweep
