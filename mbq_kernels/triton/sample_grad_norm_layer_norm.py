"""sample_grad_norm_layer_norm in Triton."""

from ._affine_norms import squared_norms


def sample_grad_norm_layer_norm_forward(normalized, grad_outputs, weight, bias):
    return squared_norms("sample_grad_norm_layer_norm", normalized, grad_outputs, weight, bias, positions_last=False)
