"""A short training of a small network."""

from dataclasses import replace

from mbq_lab import Options
from mbq_lab.training.loop import Training

BITS = (8, 4, 2)
OPTIONS = Options(epochs=1, batch_size=16)


def train(model, data, bits=BITS, *, on_epoch=None, **options):
    training = Training(model, data, bits, replace(OPTIONS, **options))
    training.run(on_epoch=on_epoch)
    return training


def batch_of(data, images=16):
    return next(data.train_batches(images, seed=0, epoch=0))
