"""BatchNorm's running statistics, estimated anew for one bit-width."""

import torch
from torch import nn

from .batch_norm import norms_in_use
from .bits import in_mode, switch_bits_of


@torch.no_grad()
def adapt_bn(model: nn.Module, bits: int, batches) -> nn.Module:
    """Make the running statistics of every BatchNorm that `model` uses at `bits` the plain averages over `batches`.

    In place, by forwards alone; affine maps and all else stay, and so do mode and bit-width. Layers with a bit-width of
    their own keep it, and a TransitionalBatchNorm uses those of their pairs. A shared BatchNorm then fits `bits` better
    and the other bit-widths worse: adapt a copy for each (Kim et al., 2025, arXiv 2510.20673; affine maps frozen by our
    choice).

    Args:
        model: what `convert` returned, or a float network for 32.
        bits: a trained bit-width, or one that `add_bits` has made; 32 is the float path.
        batches: images, or tuples that begin with them - from the training set, as a DataLoader gives them.

    Returns model. Raises ValueError for no batches where there is a BatchNorm, and as set_bits; the statistics are as
    before then, and where a forward fails.
    """
    with in_mode(model, training=False):
        switch_bits_of(model, bits)
        norms = norms_in_use(model)
    estimate_statistics(model, bits, batches, norms)
    return model


def estimate_statistics(model: nn.Module, bits: int, batches, norms) -> None:
    """Do what adapt_bn does, for `norms` alone."""
    norms = [norm for norm in norms if norm.running_mean is not None]
    before = [(norm, norm.momentum, {name: value.clone() for name, value in norm.named_buffers()}) for norm in norms]
    seen = 0
    try:
        with in_mode(model, training=False), torch.no_grad():
            switch_bits_of(model, bits)
            for norm in norms:
                norm.reset_running_stats()
                norm.momentum = None  # the cumulative average
                norm.training = True  # and not what else a subclass holds, which may drop activations
            for batch in batches if norms else ():
                model(batch[0] if isinstance(batch, (tuple, list)) else batch)
                seen += 1
        if norms and not seen:
            raise ValueError("adapt_bn: batches must hold images for the statistics of BatchNorm, got none")
    except BaseException:
        for norm, _, statistics in before:
            norm.load_state_dict(statistics, strict=False)
        raise
    finally:
        for norm, momentum, _ in before:
            norm.momentum = momentum
