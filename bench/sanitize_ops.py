"""Every op on every CUDA backend at odd sizes, tails and layouts: what gpu_check.sh runs under compute-sanitizer."""

import sys

import torch

from mbq_kernels import (backends, double_round, extract_lsb, fake_quantize, fake_quantize_affine, fake_quantize_foreach,
                         fake_quantize_multi, lsb_penalty, round_clamp, round_clamp_lsb_foreach, use_backend)

SHAPES = ((1,), (7,), (257,), (4099,), (3, 5, 7), (2, 33, 9, 9), (5, 0), (64, 1031))


def inputs(shape, dtype):
    """x as it is, x whose storage starts off 16-byte alignment, and x with its axes reversed."""
    x = torch.randn(shape, device="cuda").to(dtype)
    yield x
    yield torch.randn(x.numel() + 1, device="cuda").to(dtype)[1:].view(shape)
    yield x.permute(*reversed(range(x.dim())))


def run(x, axis):
    x = x.detach().requires_grad_()
    scale = torch.full((1 if axis is None else x.shape[axis],), 0.3, device="cuda").requires_grad_()
    offset = torch.zeros_like(scale).requires_grad_()
    outputs = [fake_quantize(x, scale, offset, bits=4, axis=axis), fake_quantize(x, scale, bits=1, axis=axis),
               *fake_quantize_multi(x, [scale] * 3, bits=(8, 4, 2), axis=axis),
               *double_round(x, scale, bits=(8, 4, 2), axis=axis),
               *fake_quantize_foreach([x] * 100, [[scale]] * 100, [[offset]] * 100, bits=[4], axis=axis)[99],
               fake_quantize_affine(x, scale, offset, quant_min=-8, quant_max=7, axis=axis)]
    torch.autograd.grad(outputs, (x, scale, offset), [torch.ones_like(y) for y in outputs])
    run_lsb(x, axis)
    assert x.numel() == 0 or all(y.isfinite().all() for y in outputs)


def run_lsb(x, axis):
    other = [d for d in range(x.dim()) if axis is None or d != axis % x.dim()]
    limit = x.detach().abs().float()
    limit = torch.full((1 if axis is None else x.shape[axis],), 9.0, device="cuda") if 0 in x.shape else limit.amax(other)
    options = {"limit": limit, "axis": axis}
    values, penalties, _ = round_clamp_lsb_foreach([x] * 300, bits=8, k=2, limits=[limit] * 300, axis=axis)
    outputs = [round_clamp(x, bits=4, **options), lsb_penalty(x, bits=4, **options)[0], values[299], penalties]
    torch.autograd.grad(outputs, x, [torch.ones_like(y) for y in outputs])
    residual = extract_lsb(x, bits=8, k=3, **options)
    assert x.numel() == 0 or residual.abs().amax() <= 7


def main(names: list[str]) -> None:
    calls = 0
    for name in names or [name for name in backends("fake_quantize", "cuda") if name != "reference"]:
        with use_backend(name):
            for dtype in (torch.float32, torch.bfloat16, torch.float16):
                for shape in SHAPES:
                    for x in inputs(shape, dtype):
                        for axis in (None, 0, -1):
                            run(x, axis)
                            calls += 1
        torch.cuda.synchronize()
        print(f"{name}: {calls} calls so far")


if __name__ == "__main__":
    main(sys.argv[1:])
