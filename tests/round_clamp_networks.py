"""Small networks with the round-clamp quantizer."""

from networks import small_network, specs

from mbq_train import convert, initialise
from mbq_train.quantize.bits import BitState
from mbq_train.quantize.round_clamp import RoundClampQuantizer


def network(images, bits=(8,), **options):
    model = convert(small_network(), bits, keep_float=(), batch_norm="shared",
                    **specs(quantizer="round-clamp", **options))
    initialise(model, images)
    return model


def quantizer_at(bits, weight, **options):
    return RoundClampQuantizer(BitState((bits,)), weight, **options)


def widest(form):
    """The most bits whose codes int8 holds."""
    return 8 if form == "offset" else 7
