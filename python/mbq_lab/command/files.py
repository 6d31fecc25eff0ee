"""The commands that write and read files for deployment, and info: export, switch, inspect, info."""

from pathlib import Path
from typing import Annotated

import typer

from .arguments import AsJson, Folder


def export(
    run: Folder,
    store: Annotated[Path | None, typer.Option(metavar="FILE", help="an int8 store to write, as mbq_store reads it")]
    = None,
    onnx: Annotated[Path | None, typer.Option(metavar="FILE", help="ONNX to write, at the one bit-width --bits")]
    = None,
    bits: Annotated[int, typer.Option(help="the bit-width. 0, for a store: all of them after double rounding, "
                                      "the layers' own where they have some, else the highest")] = 0,
    layout: Annotated[str, typer.Option(help="of the store: codes, planes, or packed, the fewest "
                                        "bytes")] = "codes",
    rest: Annotated[str, typer.Option(help="of the store: float32 or bfloat16, what is not "
                                      "quantized")] = "float32",
    batch: Annotated[int, typer.Option(min=0, help="of ONNX: images in a batch; 0: any number")] = 0,
    as_json: AsJson = False,
) -> None:
    """Write a run's network as a store, from which every bit-width is read after double rounding, or as ONNX."""
    import contextlib

    import torch

    from mbq_train.export import export_onnx, export_store
    from mbq_train.files import atomic_path

    from ..runs.networks import input_shape, load_quantized
    from .output import show

    if store is None and onnx is None:
        raise ValueError("--store or --onnx must name a file to write, got neither")
    if store == onnx:
        raise ValueError(f"--store and --onnx must name two files, got {store} for both")
    for path in filter(None, (store, onnx)):
        if not path.parent.is_dir():
            raise ValueError(f"no folder {path.parent} to write {path.name} to")
    model = load_quantized(run)
    trained = _trained(model)
    if onnx is not None and not bits:
        raise ValueError(f"--onnx needs --bits, one of {', '.join(map(str, trained))}")
    chosen = bits or (None if _has_own_bits(model) else trained[0])
    with contextlib.ExitStack() as files:  # both are written or none
        if store is not None:
            export_store(model, files.enter_context(atomic_path(store)), bits=chosen, layout=layout, rest=rest)
        if onnx is not None:
            images = torch.zeros(batch or 1, *input_shape(run))
            export_onnx(model, files.enter_context(atomic_path(onnx)), bits=bits, example=images,
                        dynamic_batch=not batch)
    written = [{"path": path, "bytes": path.stat().st_size} for path in (store, onnx) if path is not None]
    show(as_json, {"written": written}, *(_written(**file) for file in written),
         *(_about(store, run, chosen, trained) if store is not None else ()))


def switch(
    store: Annotated[Path, typer.Argument(exists=True, dir_okay=False, help="an int8 store")],
    bits: Annotated[int, typer.Option(help="the bit-width of the new store")],
    out: Annotated[Path, typer.Option("--out", "-o", metavar="FILE", help="file to write")],
    as_json: AsJson = False,
) -> None:
    """Write a store of one lower bit-width, packed."""
    from mbq_train._packages import required

    from .output import show

    required("switch", "mbq_store").switch(store, bits, out)
    file = {"path": out, "bytes": out.stat().st_size}
    show(as_json, {"written": [file]}, _written(**file))


def inspect(
    store: Annotated[Path, typer.Argument(exists=True, dir_okay=False, help="an int8 store")],
    plot: Annotated[Path | None, typer.Option(metavar="FILE", help="PNG of the error of every layer at every "
                                              "bit-width")] = None,
    as_json: AsJson = False,
) -> None:
    """Print the sizes of a store and the error of every layer at every bit-width."""
    from mbq_train._packages import required

    from ..runs.names import bits_name
    from .output import show
    from .tables import store_table

    facts = required("inspect", "mbq_store").inspect(store)
    if plot is not None:
        from ..runs.plots import plot_store

        plot_store(plot, facts)
    sizes = {"": facts["file_bytes"], "as float32: ": facts["float32_bytes"]}
    sizes |= {f"{bits_name(b)}: ": size for b, size in facts["bytes_at"].items()}
    show(as_json, facts, store_table(facts), "  ".join(f"{name}{size / 2**20:.2f} MiB" for name, size in sizes.items()))


def info(as_json: AsJson = False) -> None:
    """Print versions, the build, and which backend every op uses here."""
    from mbq_kernels import info as kernels

    from .output import show

    show(as_json, kernels.facts(), *kernels.lines())


def _trained(model) -> tuple[int, ...]:
    """Return the bit-widths that the layers of a converted network have in common."""
    from mbq_train.quantize.bits import converted_states

    shared = set.intersection(*(set(state.trained) for state in converted_states("export", model)))
    return tuple(sorted(shared, reverse=True))


def _has_own_bits(model) -> bool:
    """Return whether every layer says itself at which bit-width it is stored."""
    from mbq_train.quantize.layers import weight_layers

    return all(layer.weight_quantizer.stored_bits(None) for layer in weight_layers(model).values())


def _about(store: Path, run: Path, bits: int | None, trained: tuple[int, ...]) -> list[str]:
    """Return what to know of a store, and the next command."""
    others = ", ".join(map(str, sorted(set(trained) - {bits}, reverse=True)))
    if bits is None or not others:
        return [f"next: mbq inspect {store}"]
    return [f"It holds {bits} bits alone, because every bit-width has scales of its own; for {others}: mbq export "
            f"{run} --store FILE --bits N. Weights rounded twice (--quantizer double-rounding) share one store for "
            "all.", f"next: mbq inspect {store}"]


def _written(path: Path, bytes: int) -> str:
    return f"written: {path} ({bytes / 2**20:.2f} MiB)"
