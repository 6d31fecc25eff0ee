"""From a store of many bit-widths to a smaller file of one."""

from collections.abc import Mapping
from dataclasses import replace

from .checks import checked_bits, checked_integer
from .container import Tensor
from .format import Contents, Layer, compact_layout
from .store import Store, open
from .writing import write_store


def switch(path, bits: int | Mapping[str, int], out, *, threads: int | None = None) -> None:
    """Write a store whose layers have one bit-width, without unused bits, switched from the store at `path`.

    Its layers are no longer switchable, packed at 1, 2 and 4 bits, else bytes or planes, whichever are fewer; weights
    are bit-equal to the first store's. The rest is copied as it is. Memory in use: one layer's result.

    Args:
        path: the store; `out` may be the same file.
        bits: one bit-width for every switchable layer, or one for each by name; layers that are not switchable keep
            theirs.
        out: the file to write, whole or not at all.
        threads: as for `open`.

    Raises:
        ValueError: a layer cannot be had at its bit-width. StoreError: as for `open`. OSError: as for `write`.
    """
    with open(path, threads=threads) as store:
        layers = [store.layer(name) for name in store.layers]
        chosen = _chosen_bits(layers, bits)
        switched, tensors = [], []
        for layer in layers:
            bits = chosen[layer.name]
            to = replace(layer, bits=bits, switchable=False, layout=compact_layout(layer, bits))
            switched.append(to)
            tensors += _layer_tensors(store, to)
        tensors += [_copied(store, name) for name in store.rest]
        write_store(out, Contents(store.rounding, store.trained_bits, tuple(switched)), tensors, store.metadata)


def _chosen_bits(layers: list[Layer], bits) -> dict[str, int]:
    switchable = {layer.name for layer in layers if layer.switchable}
    if isinstance(bits, Mapping):
        given = dict(bits)
        if given.keys() != switchable:
            odd = sorted(map(repr, given.keys() ^ switchable))[:3]
            raise ValueError(f"switch: bits must name every switchable layer and no other, got a difference in "
                             f"{', '.join(odd)}")
    else:
        bits = checked_integer("switch", "bits", bits)
        if layers and not switchable and all(layer.bits != bits for layer in layers):
            raise ValueError(f"switch: bits must be {layers[0].bits} for a store without switchable layers, got {bits}")
        given = dict.fromkeys(switchable, bits)
    return {layer.name: checked_bits("switch", layer, given.get(layer.name)) for layer in layers}


def _layer_tensors(store: Store, to: Layer) -> list[Tensor]:
    data = {to.layout: lambda: store.recode(to.name, to.bits, to.layout),
            "scale": lambda: store.scale(to.name, to.bits), "offset": lambda: store.offset(to.name)}
    return [Tensor(name, dtype, shape, data[name.removeprefix(f"{to.name}.")])
            for name, (dtype, shape) in to.tensors().items()]


def _copied(store: Store, name: str) -> Tensor:
    entry = store.entry(name)
    return Tensor(name, entry.dtype, entry.shape, lambda: store.tensor(name, widen=False))
