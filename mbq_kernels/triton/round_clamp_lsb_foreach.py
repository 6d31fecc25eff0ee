"""round_clamp_lsb_foreach in Triton: round_clamp_lsb tensor after tensor, a launch each."""

import torch

from ..reference.round_clamp_lsb_foreach import rows
from .round_clamp_lsb import round_clamp_lsb_backward, round_clamp_lsb_forward


def round_clamp_lsb_foreach_forward(xs, limits, bits, k, axes, sign_magnitude):
    each = [round_clamp_lsb_forward(*row) for row in rows(xs, limits, bits, k, axes, sign_magnitude)]
    values, penalties, rates = zip(*each, strict=True)
    return list(values), torch.stack(penalties), torch.stack(rates)


def round_clamp_lsb_foreach_backward(grads, grad_penalties, xs, limits, bits, k, axes, sign_magnitude, unit_gradient):
    each = rows(xs, limits, bits, k, axes, sign_magnitude)
    return [round_clamp_lsb_backward(grad, grad_penalty, *row, unit_gradient)
            for grad, grad_penalty, row in zip(grads, grad_penalties.unbind(), each, strict=True)]
