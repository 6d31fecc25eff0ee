"""The command that searches: bit-widths of layers within limits."""

import contextlib
from pathlib import Path
from typing import Annotated

import typer

from .arguments import AsJson, Device, Folder, Threads, bits_of

_LIMITS, _MORE = "limits", "what to do"


def search(
    run: Folder,
    mean_bits: Annotated[float, typer.Option(min=0, rich_help_panel=_LIMITS, help="most bits a weight; 0: any")] = 0,
    max_bytes: Annotated[float, typer.Option(min=0, rich_help_panel=_LIMITS, help="most bytes of all codes; 0: "
                                             "any")] = 0,
    max_bit_operations: Annotated[float, typer.Option(min=0, rich_help_panel=_LIMITS, help="most products of an image "
                                                      "x bits of weight x bits of input; 0: any")] = 0,
    max_latency: Annotated[float, typer.Option(min=0, rich_help_panel=_LIMITS, help="most seconds, by --latency; "
                                               "0: any")] = 0,
    latency: Annotated[Path | None, typer.Option(rich_help_panel=_LIMITS, help="JSON file, {layer: {bits: "
                                                 "seconds}}")] = None,
    bits: Annotated[str, typer.Option(help="to choose from, from high to low; empty: the run's")] = "",
    objective: Annotated[str, typer.Option(help="hessian: trace x error of the weights; trace: trace x bits; loss: "
                                           "measured")] = "hessian",
    solutions: Annotated[int, typer.Option(min=1, rich_help_panel=_MORE, help="different allocations to test")] = 1,
    sweep: Annotated[int, typer.Option(min=0, rich_help_panel=_MORE, help="mean bit-widths to test for "
                                       "search.png")] = 0,
    fine_tune: Annotated[int, typer.Option(min=0, rich_help_panel=_MORE, help="epochs at the best")] = 0,
    adapt_bn: Annotated[bool, typer.Option("--adapt-bn", rich_help_panel=_MORE, help="estimate BatchNorm's statistics "
                                           "anew for each")] = False,
    store: Annotated[Path | None, typer.Option(rich_help_panel=_MORE, help="write the best as an int8 store")] = None,
    onnx: Annotated[Path | None, typer.Option(rich_help_panel=_MORE, help="write the best as an ONNX file")] = None,
    threads: Threads = 1,
    device: Device = "cpu",
    as_json: AsJson = False,
) -> None:
    """Find the bit-widths of a run's layers that cost the least within limits, and test the network with them."""
    import torch

    from mbq_train.export import export_onnx, export_store
    from mbq_train.files import atomic_path

    from ..runs.folder import CONFIG, SEARCH, SEARCH_NETWORK, SEARCH_PLOT, load_options
    from ..runs.networks import input_shape
    from ..runs.search import search_run
    from .output import c_stdout_on_stderr, show
    from .progress import observing
    from .tables import allocation_table, search_table

    for path in filter(None, (store, onnx)):
        if not path.parent.is_dir():
            raise ValueError(f"no folder {path.parent} to write {path.name} to")
    torch.set_num_threads(threads)
    limits = {"mean_bits": mean_bits or None, "max_bytes": max_bytes or None, "max_latency": max_latency or None,
              "max_bit_operations": max_bit_operations or None}
    with c_stdout_on_stderr(), observing(load_options(run / CONFIG)) as observer:
        result = search_run(run, objective=objective, bits=bits_of(bits), solutions=solutions, sweep=sweep,
                            fine_tune=fine_tune, latency=latency, adapt=adapt_bn, device=device, observer=observer,
                            **limits)
    written = [run / name for name in (SEARCH, SEARCH_PLOT, SEARCH_NETWORK)]
    with contextlib.ExitStack() as files:  # both are written or none
        if store is not None:
            export_store(result.network, files.enter_context(atomic_path(store)), bits=result.model_bits,
                         layout="packed")
        if onnx is not None:
            export_onnx(result.network, files.enter_context(atomic_path(onnx)), bits=result.model_bits,
                        example=torch.zeros(1, *input_shape(run)))
    written += filter(None, (store, onnx))
    show(as_json, {**result.to_json(), "written": written}, allocation_table(result), search_table(result),
         f"written: {', '.join(map(str, written))}")
