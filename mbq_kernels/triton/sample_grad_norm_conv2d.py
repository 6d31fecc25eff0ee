"""sample_grad_norm_conv2d in Triton: windows are found by index arithmetic and are not written out."""

from ._sample_grad_norm import Problem, squared_norms


def sample_grad_norm_conv2d_forward(activations, grad_outputs, weight_factor, kernel_size, stride, padding, dilation,
                                    groups, bias, gram):
    _, channels, height, width = activations.shape
    rows = grad_outputs.flatten(2)  # a copy where rows of the image do not follow each other
    a_sample, a_channel, a_row, a_pixel = activations.stride()
    g_sample, g_output, g_position = rows.stride()
    channels, outputs = channels // groups, rows.shape[1] // groups
    return squared_norms("sample_grad_norm_conv2d", Problem(
        activations, rows, weight_factor, bias, groups=groups, positions=rows.shape[2],
        inputs=channels * kernel_size[0] * kernel_size[1], outputs=outputs,
        a_strides=(a_sample, channels * a_channel, a_row, a_pixel, a_channel),
        g_strides=(g_sample, outputs * g_output, g_position, g_output),
        image=(height, width, grad_outputs.shape[3]),
        windows=(*kernel_size, *stride, *padding, *dilation)), gram)
