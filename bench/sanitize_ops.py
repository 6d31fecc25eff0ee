"""Every op on every CUDA backend at odd sizes, tails and layouts: what gpu_check.sh runs under compute-sanitizer."""

import sys

import torch

import mbq_kernels as mbq
from mbq_kernels import (backends, double_round, extract_lsb, fake_quantize, fake_quantize_affine,
                         fake_quantize_foreach, fake_quantize_multi, lsb_penalty, round_clamp, round_clamp_lsb_foreach,
                         use_backend)

SHAPES = ((1,), (7,), (257,), (4099,), (3, 5, 7), (2, 33, 9, 9), (5, 0), (64, 1031))
MATRICES = ((1, 8), (3, 40), (65, 200), (7, 1000), (33, 4104))


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
    unit, floor = torch.full_like(scale, 2.0), torch.full_like(scale, 0.5)
    outputs = [fake_quantize(x, scale, offset, bits=4, axis=axis), fake_quantize(x, scale, bits=1, axis=axis),
               fake_quantize(x, scale, offset, bits=4, axis=axis, scale_unit=unit, scale_floor=floor),
               *fake_quantize_multi(x, [scale] * 3, bits=(8, 4, 2), axis=axis),
               *double_round(x, scale, bits=(8, 4, 2), axis=axis),
               *double_round(x, scale, bits=(8, 4, 2), axis=axis, scale_unit=unit, scale_floor=floor),
               *fake_quantize_foreach([x] * 100, [[scale]] * 100, [[offset]] * 100, bits=[4], axis=axis)[99],
               *fake_quantize_foreach([x] * 100, [[scale]] * 100, bits=[4], axis=axis, scale_units=[[unit]] * 100,
                                      scale_floors=[[floor]] * 100)[99],
               fake_quantize_affine(x, scale, offset, quant_min=-8, quant_max=7, axis=axis)]
    torch.autograd.grad(outputs, (x, scale, offset), [torch.ones_like(y) for y in outputs])
    run_lsb(x, axis)
    assert x.numel() == 0 or all(y.isfinite().all() for y in outputs)


def run_lsb(x, axis):
    other = [d for d in range(x.dim()) if axis is None or d != axis % x.dim()]
    limit = x.detach().abs().float()
    count = 1 if axis is None else x.shape[axis]
    limit = torch.full((count,), 9.0, device="cuda") if 0 in x.shape else limit.amax(other)
    options = {"limit": limit, "axis": axis, "form": "sign-magnitude"}
    values, penalties, _ = round_clamp_lsb_foreach([x] * 300, bits=8, k=2, limits=[limit] * 300, axis=axis)
    outputs = [round_clamp(x, bits=4, **options), lsb_penalty(x, bits=4, **options)[0], values[299], penalties]
    torch.autograd.grad(outputs, x, [torch.ones_like(y) for y in outputs])
    residual = extract_lsb(x, bits=8, k=3, **options)
    assert x.numel() == 0 or residual.abs().amax() <= 7


def run_codes(rows, columns):
    """The integer ops on int8 codes of (rows, columns), and a linear layer straight from them."""
    codes = torch.randint(-128, 128, (rows, columns), device="cuda", dtype=torch.int8)
    scale = torch.full((rows,), 0.1, device="cuda")
    packed = mbq.pack_codes(mbq.switch_bits(codes, to_bits=4), bits=4)
    assert torch.equal(mbq.unpack_codes(packed, bits=4, shape=codes.shape), mbq.switch_bits(codes, to_bits=4))
    planes = mbq.to_planes(codes)
    assert torch.equal(mbq.from_planes(planes, bits=8, shape=codes.shape), codes)
    assert torch.equal(mbq.from_planes(planes, bits=3, shape=codes.shape),
                       mbq.switch_bits(codes, to_bits=3, rounding="half_up"))
    weight = mbq.dequantize_codes(codes, scale, to_bits=5, axis=0, rounding="half_up")
    assert torch.equal(mbq.quantize_codes(weight, scale * 8, bits=5, axis=0),
                       mbq.switch_bits(codes, to_bits=5, rounding="half_up"))
    for count in (1, 3, 17):
        x = torch.randn(count, columns, device="cuda", requires_grad=True)
        for store in (codes, planes):
            y = mbq.switched_linear(x, store, scale, bits=5)
            torch.autograd.grad(y.sum(), x)
            torch.testing.assert_close(y, x @ weight.T, rtol=1e-2, atol=1e-1 * columns**0.5)


def run_scores(rows, columns):
    """Logits of (rows, columns)."""
    logits = torch.randn(rows, columns, device="cuda", requires_grad=True)
    targets = torch.randint(columns, (rows,), device="cuda")
    loss, norms = mbq.cross_entropy_el2n(logits, targets, label_smoothing=0.1)
    torch.autograd.grad(loss.sum(), logits)
    assert norms.isfinite().all() and mbq.el2n(logits, targets).isfinite().all()


def run_corrected(rows, columns):
    """Weights of (rows, columns)."""
    x = torch.randn(rows, columns, device="cuda", requires_grad=True)
    scale = torch.full((rows,), 0.3, device="cuda", requires_grad=True)
    y = mbq.fake_quantize_corrected(x, scale, bits=4, axis=0)
    y = y + mbq.fake_quantize_corrected(x, scale, bits=4, axis=0, scale_unit=scale.detach() * 2,
                                        scale_floor=torch.full((rows,), 0.5, device="cuda"))
    assert torch.autograd.grad(y.sum(), (x, scale))[0].isfinite().all()


def run_norms(samples, size):
    a, g = (torch.randn(samples, 5, size, device="cuda") for _ in range(2))
    image = torch.randn(samples, 3, 9, 9, device="cuda")
    grads = torch.randn(samples, size % 64 + 1, 9, 9, device="cuda")
    found = [mbq.sample_grad_norm_linear(a, g), mbq.sample_grad_norm_layer_norm(a, g, normalized_shape=size),
             mbq.sample_grad_norm_conv2d(image, grads, kernel_size=3, padding=1),
             mbq.sample_grad_norm_batch_norm(grads, grads),
             mbq.sample_grad_norm_embedding(torch.randint(9, (samples, 5), device="cuda"), g)]
    assert all(norms.isfinite().all() for norms in found)


def run_by_op(name):
    """What this backend has, at awkward sizes."""
    for op, check in (("switch_bits", run_codes), ("el2n", run_scores),
                      ("fake_quantize_corrected", run_corrected), ("sample_grad_norm_linear", run_norms)):
        if name in backends(op, "cuda"):
            for rows, columns in MATRICES:
                check(rows, columns)


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
            run_by_op(name)
        torch.cuda.synchronize()
        print(f"{name}: {calls} calls so far")


if __name__ == "__main__":
    main(sys.argv[1:])
