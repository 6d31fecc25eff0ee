"""A small network for coresets, and the bit-widths it is scored at."""

from networks import tiny_model

from mbq_train import AnyPrecision, convert, initialise

BITS = (32, 4, 2)


def any_precision_model(data):
    """Return a network whose activations have seen images of `data`."""
    model = convert(tiny_model(), BITS[1:], batch_norm="shared", weights=AnyPrecision(correction=True))
    initialise(model, next(data.test_batches(20)).images)
    return model
