"""Small networks for MSQ, and the options they are trained with."""

from dataclasses import replace

from networks import small_network, specs

from mbq_lab import Options
from mbq_train import convert

OPTIONS = Options.for_recipe("msq", epochs=8, float_epochs=1, batch_size=12, learning_rate=0.01, prune_interval=1,
                             prune_threshold=1.0, hessian_images=32, hessian_probes=4)
SMALL = replace(OPTIONS, bits=(8,), target_compression=8.0)


def network(bits=8, **options):
    return convert(small_network(), (bits,), keep_float=(), **specs(quantizer="round-clamp", **options))
