"""The arithmetic of rows of logits in Triton, float32. Its twins: math/softmax_math.h and reference/softmax_math.py.

The target is kept apart from the other classes, so that nothing cancels where the softmax is sure of it.
"""

import triton
import triton.language as tl


@triton.jit
def exponential(x):
    """e^x for x <= 88, within 2 ulp; 0 below -87.3, where float32 has no normal number; NaN stays"""
    shifted = tl.fma(x, 1.44269504088896341, 12582912.0)  # n, x / log 2 rounded, is in the low bits
    n = shifted - 12582912.0
    r = tl.fma(n, 2.12194440e-4, tl.fma(n, -0.693359375, x))
    p = tl.fma(r, 1.38145775794e-3, 8.36872705088e-3)
    p = tl.fma(p, r, 4.16683890317e-2)
    p = tl.fma(p, r, 1.66665205479e-1)
    p = tl.fma(p, r, 4.99999934422e-1)
    p = tl.fma(tl.fma(p, r, 1.0), r, 1.0)
    bits = p.to(tl.uint32, bitcast=True) + (shifted.to(tl.uint32, bitcast=True) << 23)
    return tl.where(x < -87.3, 0.0, bits.to(tl.float32, bitcast=True))


@triton.jit
def log1p(x):
    """log(1 + x) for x >= 0: 2 atanh(x / (2 + x)) where 1 + x would lose x"""
    s = x / (2.0 + x)
    q = s * s
    series = 2.0 * s * (1.0 + q * (1 / 3 + q * (1 / 5 + q * (1 / 7 + q * (1 / 9 + q / 11)))))
    return tl.where(x < 0.5, series, tl.log(1.0 + x))


@triton.jit
def expm1(x):
    """e^x - 1 for x <= 0"""
    series = x * (1 + x / 2 * (1 + x / 3 * (1 + x / 4 * (1 + x / 5 * (1 + x / 6 * (1 + x / 7 * (1 + x / 8)))))))
    return tl.where(x > -0.5, series, exponential(x) - 1.0)


@triton.jit
def row_result(others, total, squares, logit):
    """(loss, el2n, top, log_sum) of rows, from the target's logit and the classes but the target

    Of those: others = their maximum, total = sum e^(x - others), squares = sum e^(2 (x - others)). A logit of +inf, the
    target's too, gives NaN.
    """
    distance = logit - others
    ahead = distance > 0.0  # the target has the highest logit
    small = tl.where(logit == float("inf"), float("nan"), exponential(tl.where(ahead, -distance, distance)))
    rest = tl.where(ahead, total * small, total)
    log_sum = tl.where(ahead, log1p(rest), tl.log(total + small))
    norm = tl.sqrt(squares + total * total)
    el2n = tl.where(ahead, norm * small / (1.0 + rest), norm / (total + small))
    return tl.where(ahead, log_sum, log_sum - distance), el2n, tl.where(ahead, logit, others), log_sum


@triton.jit
def class_gap(x, top, log_sum, uniform):
    """d loss / d x of a class that is not the target, p - uniform; uniform = smoothing / classes"""
    return exponential((x - top) - log_sum) - uniform


@triton.jit
def target_gap(x, top, log_sum, smoothing, uniform):
    """d loss / d x of the target: (p - 1) + (smoothing - uniform)"""
    return expm1((x - top) - log_sum) + (smoothing - uniform)


@triton.jit
def smoothed_loss(loss, top, log_sum, mean, smoothing):
    """The loss of the smoothed target, from that of the plain one and the mean of all logits"""
    return (1.0 - smoothing) * loss + smoothing * (log_sum + (top - mean))
