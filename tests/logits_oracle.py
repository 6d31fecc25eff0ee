"""Rows of logits in 120 digits, by the formulas that lose all of float64's: for the tests of el2n."""

import mpmath
import torch


def row(logits, target, smoothing=0.0):
    """(loss, el2n, gradient of the loss in the logits) of one row"""
    with mpmath.workdps(120):
        x = [mpmath.mpf(value) for value in logits.double().tolist()]
        e = [mpmath.exp(value) for value in x]
        total, share = mpmath.fsum(e), mpmath.mpf(smoothing) / len(x)
        wanted = [share + (1 - mpmath.mpf(smoothing)) * (j == target) for j in range(len(x))]
        gap = [value / total - q for value, q in zip(e, wanted, strict=True)]
        loss = mpmath.fsum(q * (mpmath.log(total) - value) for q, value in zip(wanted, x, strict=True))
        return float(loss), float(mpmath.sqrt(mpmath.fsum(g * g for g in gap))), [float(g) for g in gap]


def rows(logits, targets, ignore_index=-100, smoothing=0.0):
    """The same of every row, as float64 tensors; ignored rows are 0."""
    results = [row(x, t, smoothing) if t != ignore_index else (0.0, 0.0, [0.0] * len(x))
               for x, t in zip(logits.detach().cpu(), targets.tolist(), strict=True)]
    return tuple(torch.tensor(column, dtype=torch.float64) for column in zip(*results, strict=True))


def close(actual, expected, relative=1e-5, absolute=1e-37):
    """Both to `relative`; `absolute` is where float32 runs out of exponents."""
    error = (actual.detach().cpu().double() - expected).abs()
    assert (error <= relative * expected.abs() + absolute).all(), f"worst {(error / expected.abs()).max()} relative"


def same_rows(actual, expected):
    """The same bits; on a GPU to rounding: which logits a thread adds depends on where in memory their row begins."""
    return torch.equal(actual, expected) if actual.is_cpu else torch.allclose(actual, expected, rtol=1e-6, atol=1e-7)
