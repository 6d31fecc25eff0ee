"""What tables and pictures call bit-widths."""

from mbq_train.quantize.bits import FLOAT


def bits_name(bits: int) -> str:
    """Return a bit-width in words."""
    return f"{bits} bit" if bits == 1 else f"{bits} bits"


def network_name(bits: int) -> str:
    """Return what a network at a bit-width is called."""
    return "float path" if bits == FLOAT else bits_name(bits)


def range_name(layer_bits: dict[str, int]) -> str:
    """Return what a network is called whose layers have bit-widths of their own."""
    low, high = min(layer_bits.values()), max(layer_bits.values())
    return f"{low} to {high} bits, by layer" if low < high else f"{bits_name(low)} in every layer"
