"""sample_grad_norm_linear in Triton."""

from ._sample_grad_norm import Problem, squared_norms


def sample_grad_norm_linear_forward(activations, grad_outputs, weight_factor, bias, gram):
    _, positions, inputs = activations.shape
    a_sample, a_position, a_column = activations.stride()
    g_sample, g_position, g_output = grad_outputs.stride()
    return squared_norms("sample_grad_norm_linear", Problem(
        activations, grad_outputs, weight_factor, bias, groups=1, positions=positions, inputs=inputs,
        outputs=grad_outputs.shape[2], a_strides=(a_sample, 0, 0, a_position, a_column),
        g_strides=(g_sample, 0, g_position, g_output)), gram)
