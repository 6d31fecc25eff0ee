"""Probes between the features of bit-widths: what Kim et al. (2025, arXiv 2510.20673) call knowledge transfer."""

import torch
from torch import nn

from mbq_train.conversion.call_order import call_order
from mbq_train.coreset.gradient_forms import scored_layers
from mbq_train.quantize.bits import in_mode, switch_bits_of

from ..data import Data


def linear_probe(model: nn.Module, data: Data, bits, *, batch_size: int = 256) -> torch.Tensor:
    """Return how well features of one bit-width are read by a classifier fitted on those of another.

    Features are what the last layer sees; the classifier is scikit-learn's logistic regression on features brought to
    mean 0 and deviation 1 by those it is fitted on.

    Returns (K, K) float64: [i, j] is the accuracy on the test set, in [0, 1], of the features at bits[j] with the
    classifier of bits[i].
    """
    from sklearn.linear_model import LogisticRegression  # takes a second to import
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    layers = {name: layer for layer, name in scored_layers(model).items()}
    last = layers[call_order(model, layers, next(data.test_batches(1)).images)[-1]]
    accuracy = torch.zeros(len(bits), len(bits), dtype=torch.float64)
    test = [_features(model, last, data.test_batches(batch_size), b) for b in bits]
    for i, b in enumerate(bits):
        probe = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
        probe.fit(*_features(model, last, data.still_batches(batch_size), b))
        accuracy[i] = torch.tensor([probe.score(*features) for features in test])
    return accuracy


@torch.no_grad()
def _features(model, layer, batches, bits: int):
    """Return (inputs of `layer`, labels) as numpy arrays."""
    seen, labels = [], []
    hook = layer.register_forward_pre_hook(lambda module, args: seen.append(args[0].flatten(1).float().cpu()))
    try:
        with in_mode(model, training=False):
            switch_bits_of(model, bits)
            for batch in batches:
                model(batch.images)
                labels.append(batch.labels.cpu())
    finally:
        hook.remove()
    return torch.cat(seen).numpy(), torch.cat(labels).numpy()
