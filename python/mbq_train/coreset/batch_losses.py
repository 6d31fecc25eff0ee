"""One loss for every sample of a batch, from layers that do not mix the samples."""

import mbq_kernels

from ..quantize.batch_norm import BATCH_NORMS


def check_batch_norms(model) -> None:
    """Raise ValueError where BatchNorm mixes the samples, in any layer: that spoils the gradients of the others."""
    for name, module in model.named_modules():
        if isinstance(module, BATCH_NORMS) and (module.training or module.running_mean is None):
            raise ValueError(f"GradNormScorer: BatchNorm must be in eval mode with running statistics, because in "
                             f"training mode it mixes the samples, got {name}")


def one_each(losses):
    """Return (N,) of (N, ...) losses."""
    if losses.dim() == 0:
        raise ValueError("GradNormScorer: loss must give one value a sample, got a single one; reduce nothing")
    return losses.unsqueeze(-1).flatten(1).sum(dim=1)


def call_model(model, inputs):
    """Return the outputs of `model` for a tensor, a tuple of arguments or a dict of keyword arguments."""
    if isinstance(inputs, dict):
        return model(**inputs)
    return model(*(inputs if isinstance(inputs, tuple) else (inputs,)))


def cross_entropy(outputs, targets):
    """Return the loss and the EL2N score of every sample."""
    losses, el2n = mbq_kernels.cross_entropy_el2n(outputs, targets)
    return losses, el2n.detach()


def plain(loss):
    """Return a function that gives the losses of `loss`, and None in place of EL2N scores."""
    return lambda outputs, targets: (loss(outputs, targets), None)
