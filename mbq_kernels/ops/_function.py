"""What the autograd Functions of every op share."""

import torch


def apply(function: type[torch.autograd.Function], *args):
    """function.apply(*args), in a third of the time where nothing traces or transforms.

    Function.apply binds its arguments to the signature of forward by inspection at every call: 20 us, next to 3 us for
    a small raw operator. Only defaults and torch.func need that, so eager calls go to the base class.
    """
    if torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active():
        return function.apply(*args)
    return super(torch.autograd.Function, function).apply(*args)


class BackwardFunction(torch.autograd.Function):
    """Base of `<Op>Backward`: differentiating it again is an error, not silent zeros."""

    generate_vmap_rule = True

    @staticmethod
    def setup_context(ctx, inputs, output):
        pass

    @staticmethod
    def backward(ctx, *grads):
        raise RuntimeError("mbq_kernels: a fused gradient has no gradient of its own; double backward is not supported")
