"""Converted networks whose layers get bit-widths of their own."""

from networks import small_network

from mbq_train import AnyPrecision, DoubleRounding, Learned, RoundClamp, convert, initialise

BITS = (8, 6, 4, 2)
KINDS = {"learned": Learned(), "corrected": Learned(correction=True), "double-rounding": DoubleRounding(),
         "any-precision": AnyPrecision()}
STORABLE = {"learned": KINDS["learned"], "double-rounding": KINDS["double-rounding"], "round-clamp": RoundClamp()}
MIXED = {"3": 4, "7": 2}


def network(images, weights=KINDS["learned"], bits=BITS, **options):
    model = convert(small_network(), bits, weights=weights, batch_norm="shared", **options)
    initialise(model, images)
    return model.eval()


def parts(model, name, x):
    """The quantized weight and the quantized input `x` of a layer."""
    layer = model.get_submodule(name)
    return layer.quantized_weight().detach(), layer.input_quantizer(x).detach()
