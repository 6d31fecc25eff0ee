"""extract_lsb: what the codes of round_clamp lose with their last bits."""

import torch

from .. import _checks as check
from .._library import define

NAME = "extract_lsb"


def _shape(x, limit, bits, k, axis, sign_magnitude):
    return torch.empty_like(x, dtype=torch.int8)


_forward = define(NAME, "extract_lsb_forward",
                  "(Tensor x, Tensor? limit, SymInt bits, SymInt k, int? axis, bool sign_magnitude) -> Tensor", _shape)


def extract_lsb(x, *, bits, k=1, limit=None, axis=None, form="offset"):
    """Return the signed residual between the codes of round_clamp at `bits` and at `bits` - k bits.

    B = c_bits(u) - 2^k c_(bits-k)(u), u and c as in round_clamp: in [-2^(k-1), 2^(k-1)], up to 2^k - 1 in the top bin,
    where the coarser code is clamped. Where B = 0 all over a layer, it needs k bits less. In the sign-magnitude form
    B is that of the magnitude's codes: x and -x have the same.

    Args:
        x, limit, axis, form: as in round_clamp. An all-zero layer, which has limit 0, has residual 0.
        bits: 2..8, k: 1..3, less than bits - may change from call to call without a recompile.

    Returns:
        B: int8, x's shape, the strides of torch.empty_like(x).

    Gradient: none, the result is an integer tensor; lsb_penalty is the differentiable form of its sum.

    Raises:
        As round_clamp, and ValueError for k < 1, k > 3 and k >= bits.

    Equivalent to, with u and c as in round_clamp:
        (c(u, bits) - 2**k * c(u, bits - k)).to(torch.int8)

    Reference: Han et al., 2025, arXiv 2507.22349.
    """
    check.check_x(NAME, x)
    check.check_lsbs(NAME, bits, k)
    sign_magnitude = check.check_form(NAME, form)
    limit, axis = check.check_limit(NAME, limit, x, axis)
    return _forward(x.detach(), limit, bits, k, axis, sign_magnitude)
