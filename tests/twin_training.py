"""Train an original and an accelerated twin alike."""

import torch
from torch import nn

from mbq_train import restore


def gradients(module, x, grad):
    """Return the output, and the gradients of x and of all Parameters."""
    module.zero_grad()
    x = x.clone().requires_grad_()
    out = module(x)
    out.backward(grad)
    return [out.detach(), x.grad, *(value.grad for value in module.parameters())]


def twenty_losses(model, shape, rate=0.01, restored_at=None):
    """Return the losses of 20 steps of SGD on batches of that shape, the same for every model."""
    torch.manual_seed(1)
    optimizer, losses = torch.optim.SGD(model.parameters(), rate, momentum=0.9), []
    for step in range(20):
        if step == restored_at:
            restore(model)
        x, labels = torch.randn(shape), torch.randint(0, 10, shape[:1])
        out = model(x)
        loss = nn.functional.cross_entropy(getattr(out, "value", out), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses
