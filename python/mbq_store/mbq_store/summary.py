"""What a store holds, for people."""


def table(store) -> str:
    """Return sizes of the file, then its layers, one a line."""
    layers = [store.layer(name) for name in store.layers]
    rows = [("layer", "shape", "bits", "layout", "bytes")]
    for layer in layers:
        bits = f"{layer.bits}..2" if len(layer.bit_widths) > 1 else str(layer.bits)
        size = sum(store.entry(name).bytes for name in layer.tensors())
        rows.append((layer.name, "x".join(map(str, layer.shape)), bits, layer.layout, f"{size:,}"))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    rest = sum(store.entry(name).bytes for name in store.rest)
    trained = ", ".join(map(str, store.trained_bits)) or "unknown"
    return "\n".join([
        f"{store.path}: {store.path.stat().st_size:,} bytes, rounding {store.rounding}, trained at {trained} bits",
        f"{len(layers)} quantized layers; {len(store.rest)} other tensors of {rest:,} bytes",
        *("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
          for row in rows)])
