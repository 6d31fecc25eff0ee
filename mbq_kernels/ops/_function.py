"""What the two autograd Functions of every op share."""

import torch


class BackwardFunction(torch.autograd.Function):
    """Base of `<Op>Backward`: differentiating it again is an error, not silent zeros."""

    generate_vmap_rule = True

    @staticmethod
    def setup_context(ctx, inputs, output):
        pass

    @staticmethod
    def backward(ctx, *grads):
        raise RuntimeError("mbq_kernels: the gradient of a quantizer has no gradient of its own (rounding is "
                           "straight-through once); double backward is not supported")
