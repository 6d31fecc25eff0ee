"""Everybody else's way to per-sample gradient norms of one layer. One that fails becomes a row that says why."""

import torch
import torch.nn.functional as F

EAGER, COMPILED = "einsum (eager)", "torch.compile (einsum)"
OPACUS, BACKPACK, VMAP = "opacus", "backpack BatchL2Grad", "torch.func vmap(grad)"
RIVALS = (EAGER, COMPILED, OPACUS, BACKPACK, VMAP)
OWN_PASS = "runs forward and backward of the layer itself"


def einsum_of(layer):
    """norms(activations, grad_outputs) from every sample's gradient, in plain PyTorch."""
    if isinstance(layer, torch.nn.Linear):
        def norms(a, g):
            a, g = (x if x.dim() == 3 else x.unsqueeze(1) for x in (a, g))
            return torch.einsum("nti,nto->noi", a, g).square().sum((1, 2)) + g.sum(1).square().sum(1)
    else:
        def norms(a, g):
            windows = F.unfold(a, layer.kernel_size, layer.dilation, layer.padding, layer.stride)
            grad = torch.einsum("nkl,nol->nok", windows, g.flatten(2))
            return grad.square().sum((1, 2)) + g.sum((2, 3)).square().sum(1)
    return norms


def _opacus(layer, activations, grad_outputs):
    """Ghost norms of a linear layer; of a convolution there are only gradients."""
    if isinstance(layer, torch.nn.Linear):
        from opacus.grad_sample.linear import compute_linear_norm_sample

        return lambda: sum(norm.square() for norm in
                           compute_linear_norm_sample(layer, [activations], grad_outputs).values())
    from opacus.grad_sample.conv import compute_conv_grad_sample

    return lambda: sum(grad.flatten(1).square().sum(1) for grad in
                       compute_conv_grad_sample(layer, [activations], grad_outputs).values())


def _backpack(layer, activations, grad_outputs):
    from copy import deepcopy

    from backpack import backpack, extend
    from backpack.extensions import BatchL2Grad

    extended = extend(deepcopy(layer))

    def norms():
        with torch.enable_grad(), backpack(BatchL2Grad()):
            output = extended(activations)
            output.backward(grad_outputs)
        return sum(parameter.batch_l2 for parameter in extended.parameters())
    return norms


def _vmap(layer, activations, grad_outputs):
    parameters = {name: parameter.detach() for name, parameter in layer.named_parameters()}

    def inner(parameters, a, g):
        return (torch.func.functional_call(layer, parameters, (a.unsqueeze(0),)) * g).sum()

    grads = torch.func.vmap(torch.func.grad(inner), in_dims=(None, 0, 0))
    return lambda: sum(grad.flatten(1).square().sum(1)
                       for grad in grads(parameters, activations, grad_outputs).values())


def calls(layer, activations, grad_outputs) -> dict:
    """{name: call, or the exception that building it raised}"""
    einsum = einsum_of(layer)
    compiled = torch.compile(einsum)
    built = {EAGER: lambda: einsum(activations, grad_outputs), COMPILED: lambda: compiled(activations, grad_outputs)}
    for name, build in ((OPACUS, _opacus), (BACKPACK, _backpack), (VMAP, _vmap)):
        try:
            built[name] = build(layer, activations, grad_outputs)
        except Exception as error:
            built[name] = error
    return built
