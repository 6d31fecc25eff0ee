"""Is a candidate's result the reference's? No number is printed for one that is not."""

import torch

from mbq_train.quantize.bits import code_range


class Wrong(Exception):
    """A candidate's result is not the reference's: its time would mean nothing."""


EPS = {torch.float32: 1e-5, torch.bfloat16: 2**-7, torch.float16: 2**-10, torch.float64: 1e-12}
CODES_OFF = {torch.float32: 1e-3, torch.bfloat16: 0.1, torch.float16: 0.02, torch.float64: 1e-6}


def compare(case, inputs, candidate, got, want) -> str:
    """One line on how `got` = (x_hats, gradients) agrees with the reference's; raises Wrong when it does not.

    Ours must have the same bits. A rival may put a share of values (CODES_OFF) on the next code: it may multiply
    by 1 / scale or compute in bfloat16; nothing may be further away than one step.
    """
    (outputs, gradients), (want_outputs, want_gradients) = got, want
    shares = [_codes_off(case, inputs, i, out, ref, candidate) for i, (out, ref) in
              enumerate(zip(outputs, want_outputs, strict=True))]
    line = "same bits" if candidate.exact else f"{100 * max(shares):.3g} % of codes differ"
    if case.what == "forward":
        return line
    if candidate.differs:
        return f"{line}, gradients not compared"
    for i, (grad, ref) in enumerate(zip(gradients, want_gradients, strict=True)):
        if i < len(inputs.xs):
            _check_grad_x(case, candidate, i, grad, ref)
        else:
            _check_sum(case, inputs, candidate, i - len(inputs.xs), grad, ref)
    return f"{line}, gradients agree"


def _codes_off(case, inputs, i, out, ref, candidate) -> float:
    """Share of values that are not on the reference's code."""
    if out.shape != ref.shape or out.dtype != ref.dtype:
        raise Wrong(f"x_hat[{i}] has {tuple(out.shape)} {out.dtype}, the reference {tuple(ref.shape)} {ref.dtype}")
    if candidate.exact and torch.equal(out, ref):
        return 0.0
    scale = case.step(inputs, i)
    if case.axis is not None:
        scale = scale.view([-1 if d == case.axis else 1 for d in range(ref.dim())])
    error = (out.detach().float() - ref.float()).abs_()
    slack = EPS[case.dtype] * torch.maximum(out.detach().abs(), ref.abs()).float() + 1e-3 * scale
    off = (error > slack).float().mean().item()
    far = error > slack + scale
    if far.any() or not error.isfinite().all() or candidate.exact or (
            off > CODES_OFF[case.dtype] and not candidate.differs):
        at = error.nan_to_num(torch.inf).argmax().item()
        raise Wrong(f"x_hat[{i}] differs from the reference in {off:.2%} of values, most at flat index {at}: "
                    f"{out.flatten()[at].item()} for {ref.flatten()[at].item()}")
    return off


def _check_grad_x(case, candidate, i, grad, ref):
    if candidate.exact and len(case.bits) == 1 and torch.equal(grad, ref):
        return
    error = (grad.float() - ref.float()).abs_()
    off = (error > EPS[case.dtype] * (ref.float().abs() + len(case.bits))).float().mean().item()
    if off > (0 if candidate.exact else CODES_OFF[case.dtype]) or not error.isfinite().all():
        raise Wrong(f"grad x[{i}] differs from the reference in {off:.2%} of values")


def _check_sum(case, inputs, candidate, i, grad, ref):
    """A scale or zero-point gradient: a sum of n terms of random sign, so its size is about factor |grad|_2.

    One per cent of that finds a lost block or a wrong factor and forgives the order of a float32 sum.
    """
    k = len(case.bits)
    together = k if case.one_scale else 1  # bit-widths that share the parameter
    first = i * together % (k * len(inputs.xs))
    size = sum(_sum_size(case, inputs.upstream[j].float(), case.bits[j % k]) for j in range(first, first + together))
    share = 1e-4 if candidate.exact else 1e-2 if case.dtype == torch.float32 else 0.1
    error = (grad.float().reshape(-1) - ref.float().reshape(-1)).abs()
    bound = share * (0.3 * size + ref.float().reshape(-1).abs())
    if not bool((error <= bound).all()):
        at = (error - bound).argmax().item()
        raise Wrong(f"gradient sum {i} is {grad.reshape(-1)[at].item()} at {at}, the reference "
                    f"{ref.reshape(-1)[at].item()}")


def _sum_size(case, upstream, bits):
    """factor |grad|_2 of every channel."""
    norm = upstream.square().sum(dim=[d for d in range(upstream.dim()) if d != case.axis]).sqrt()
    hi = code_range(bits, signed=True)[1]
    return case.grad_factor(upstream.numel() / norm.numel(), hi) * norm.reshape(-1)
