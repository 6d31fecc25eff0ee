"""What the autograd Functions of every op share.

A Function takes tensors, each or None an argument, and its options in one tuple: autograd takes time for every one.
"""

from collections.abc import Callable

import torch
from torch.autograd import forward_ad


def apply(function: type[torch.autograd.Function], *args):
    """Return function.apply(*args), by the shortest way there is to it.

    - Traced (torch.compile) or transformed (torch.func): Function.apply. It binds its arguments to the signature of
      forward by inspection at every call, which takes longer than a small kernel and which these two alone need.
    - No argument needs a gradient: forward, and so the raw operators. In a backward that is every call that was not
      asked for create_graph.
    - Otherwise the base class's apply, which is Function.apply without the inspection.
    """
    if torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active():
        return function.apply(*args)
    if not needs_gradient(args):
        return function.forward(*args)
    return super(torch.autograd.Function, function).apply(*args)


def needs_gradient(args) -> bool:
    """Return whether autograd has to see a call with these arguments; under forward-mode it does, to refuse it."""
    if forward_ad._current_level >= 0:
        return True
    if torch.is_grad_enabled():
        for arg in args:  # a loop, because any() of a generator takes four times as long
            if isinstance(arg, torch.Tensor) and arg.requires_grad:
                return True
    return False


def recomputation(x_hat: torch.Tensor) -> Callable[[], torch.Tensor] | None:
    """Return a function that makes `x_hat` again, bit for bit, from what the backward of its op has saved.

    Until it is called nothing but the saved tensors is held. It can be called until that backward has run; where a
    saved tensor was modified in place it raises RuntimeError, as the backward itself does.

    Args:
        x_hat: what fake_quantize, fake_quantize_corrected or double_round returned, as it came.

    Returns None for any other tensor, and where no gradient is recorded.
    """
    node, output = x_hat.grad_fn, x_hat.output_nr
    outputs = getattr(getattr(node, "_forward_cls", None), "outputs_again", None)
    if outputs is None or x_hat._version:
        return None
    return lambda: outputs(node)[output]


class BackwardFunction(torch.autograd.Function):
    """Base of `<Op>Backward`: differentiating it again is an error, not silent zeros."""

    generate_vmap_rule = True

    @staticmethod
    def setup_context(ctx, inputs, output):
        pass

    @staticmethod
    def backward(ctx, *grads):
        raise RuntimeError("mbq_kernels: a fused gradient has no gradient of its own; double backward is not supported")
