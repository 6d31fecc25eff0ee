"""sample_grad_norm_conv2d in plain PyTorch: one sample's windows and gradient after the other are written out."""

import torch
import torch.nn.functional as F

from ._samples import check_gram, squared_norms


def _padded(x, outputs, kernel_size, stride, padding, dilation):
    """x (C, H, W) with zeros before and after, or cut off, so that its windows are `outputs`."""
    amounts = []
    for axis in (1, 0):
        covered = (outputs[axis] - 1) * stride[axis] + dilation[axis] * (kernel_size[axis] - 1) + 1
        amounts += [padding[axis], covered - x.shape[axis + 1] - padding[axis]]
    return F.pad(x, amounts)


@torch.no_grad()
def sample_grad_norm_conv2d_forward(activations, grad_outputs, weight_factor, kernel_size, stride, padding, dilation,
                                    groups, bias, gram):
    check_gram("sample_grad_norm_conv2d", gram, weight_factor)
    shape = (groups, grad_outputs.shape[1] // groups, activations.shape[1] // groups * kernel_size[0] * kernel_size[1])
    factor = None if weight_factor is None else weight_factor.reshape(shape)

    def weight_gradient(a, g):
        """(groups, outputs of a group, what each is multiplied with)"""
        if a.numel() == 0 or g.numel() == 0:
            return a.new_zeros(shape)
        padded = _padded(a, g.shape[1:], kernel_size, stride, padding, dilation)
        windows = F.unfold(padded.unsqueeze(0), kernel_size, dilation, 0, stride)
        return g.reshape(*shape[:2], -1) @ windows.view(groups, shape[2], -1).mT

    return squared_norms(activations, grad_outputs, factor, bias, weight_gradient)
