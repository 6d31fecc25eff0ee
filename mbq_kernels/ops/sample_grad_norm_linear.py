"""sample_grad_norm_linear: the gradient norm of every sample of a batch, without the samples' gradients."""

import math

from .. import _checks as check
from .._library import define
from .._sample_checks import check_samples, check_weight_factor

NAME = "sample_grad_norm_linear"


def _shape(activations, grad_outputs, weight_factor, bias, gram):
    return activations.new_empty(activations.shape[0], dtype=check.arithmetic_dtype(activations))


_forward = define(NAME, "sample_grad_norm_linear_forward",
                  "(Tensor activations, Tensor grad_outputs, Tensor? weight_factor, bool bias, bool? gram) -> Tensor",
                  _shape)


def sample_grad_norm_linear(activations, grad_outputs, *, bias=True, weight_factor=None):
    """Squared norm of every sample's gradient of a linear layer's parameters, which are not formed.

    norm[n] = sum_ij (factor_ij * (G_n^T A_n)_ij)^2 + bias * |sum_t G_nt|^2
    A_n (T, d_in), G_n (T, d_out): the sample's rows of activations and of grad_outputs, T the product of the middle
    dimensions. Formed in tiles that are squared and summed at once, or for small T as sum_st (A A^T)_st (G G^T)_st,
    half of it, whichever costs less; memory beside the result is tiles and 8 bytes for each of them and each sample.
    Products and sums within a tile are float32, and the sum of tiles is float64, in a fixed order: results repeat (on
    CPU with the same number of threads; with another the last bit may differ). The relative error is some 1e-6 of the
    norm with tiles, and of sum_t |a_t|^2 |g_t|^2 with Gram products; the norm is never negative.

    Args:
        activations: (N, ..., d_in), float32, bfloat16, float16 (float64 on CPU) - what the layer was given.
        grad_outputs: (N, ..., d_out), floating point, float64 if activations are - gradient of the samples' losses,
            summed and not averaged, by what the layer returned.
        bias: whether the layer has one.
        weight_factor: (d_out, d_in), floating point - derivative of the weight that was multiplied by the one whose
            gradient is meant, element by element: the clip mask of a quantizer for its float weight. None is 1.

    Returns:
        norms: (N,), float32 (float64 for float64 activations), squared. A sample with NaN or infinities gets NaN or
        infinity, and the others what they would have alone.

    Gradient: none, the result does not require it.

    On CUDA, float32 products have float32's accuracy from three TensorFloat-32 products each, and are single ones
    where torch.backends.cuda.matmul.fp32_precision is "tf32".

    Raises:
        TypeError: a dtype or type is wrong. ValueError: shape or device.

    Equivalent to:
        grad = torch.einsum("n...i,n...o->noi", activations, grad_outputs) * weight_factor
        grad.square().sum((1, 2)) + grad_outputs.flatten(1, -2).sum(1).square().sum(1)

    Reference: Goodfellow, 2015, arXiv 1510.01799; Li et al., 2022, arXiv 2110.05679, section 4 (Gram products).
    """
    check_samples(NAME, activations, grad_outputs, bias)
    if activations.dim() < 2 or activations.shape[:-1] != grad_outputs.shape[:-1]:
        raise ValueError(f"{NAME}: activations and grad_outputs must be (N, ..., d_in) and (N, ..., d_out), got shapes "
                         f"{tuple(activations.shape)} and {tuple(grad_outputs.shape)}")
    samples, inputs, outputs = activations.shape[0], activations.shape[-1], grad_outputs.shape[-1]
    weight_factor = check_weight_factor(NAME, weight_factor, activations, (outputs, inputs))
    rows = math.prod(activations.shape[1:-1])
    return _forward(activations.detach().reshape(samples, rows, inputs),
                    grad_outputs.detach().reshape(samples, rows, outputs), weight_factor, bias, None)
