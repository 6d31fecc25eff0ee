"""Run every op on every CUDA backend at odd sizes, tails and layouts: what gpu_check.sh runs under compute-sanitizer.

    python bench/sanitize_ops.py [--backends NAME...] [--ops OP...] [--repeat [ROUNDS]] [--dry]

--repeat: instead, are the results of large calls the same bits every time? Sums that the last block of a launch
finishes, whichever that is, must not depend on it, nor on launches beside them: each op is called on two streams at
once, again and again, and replayed from a CUDA graph.
"""

import argparse
import contextlib
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent))

import timing  # noqa: E402
from op_calls import FLOATS, MANIFEST, outputs_and_gradients  # noqa: E402

from mbq_kernels import backends, use_backend  # noqa: E402

SIZE, SMALL, DRY = 100_003, 2_003, 131  # of each of an op's few rows: many blocks in a launch, and a tail


def large_calls(op, device: str, size: int):
    """Give functions that call an op and its backward pass and return all tensors that come out: of a few channels,
    and where it takes a scale, of one, whose sums are those of the whole launch."""
    torch.manual_seed(0)
    inputs = op.data.make(device, size)
    yield lambda: outputs_and_gradients(op, inputs)
    if op.data is FLOATS:
        x, scale = inputs[0].detach().reshape(1, -1).requires_grad_(), inputs[1].detach()[:1].requires_grad_()
        yield lambda: outputs_and_gradients(op, (x, scale))


def check_same(name: str, call, device: str, rounds: int) -> None:
    """Raise SystemExit where a repeated call gives other bits."""
    want = call()
    for _ in range(rounds):
        for got in _two_at_once(call) if device == "cuda" else [call()]:
            _check(name, got, want)
    if device == "cuda":
        _check_graph(name, call, want, rounds)


def _check_graph(name: str, call, want: list[torch.Tensor], rounds: int) -> None:
    results = []
    try:
        graph = timing.cuda_graph(lambda: results.append(call()), contextlib.nullcontext)
    except RuntimeError as error:  # it waits for the host
        print(f"{name}: not in a CUDA graph, {str(error).splitlines()[0]}")
        return
    for _ in range(rounds):
        graph.replay()
        torch.cuda.synchronize()
        for got in results[-timing.GRAPH_CALLS:]:
            _check(f"{name} in a CUDA graph", got, want)


def _two_at_once(call) -> list[list[torch.Tensor]]:
    torch.cuda.synchronize()
    streams, results = [torch.cuda.Stream() for _ in range(2)], []
    for _ in range(4):
        for stream in streams:
            with torch.cuda.stream(stream):
                results.append(call())
    torch.cuda.synchronize()
    return results


def _check(name: str, got: list[torch.Tensor], want: list[torch.Tensor]) -> None:
    for k, (one, other) in enumerate(zip(got, want, strict=True)):
        if not torch.equal(one.nan_to_num(), other.nan_to_num()):
            raise SystemExit(f"{name}: result {k} of a repeated call has other bits")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--backends", nargs="+", help="[default: all but the reference]")
    parser.add_argument("--ops", nargs="+", choices=sorted(MANIFEST), default=sorted(MANIFEST))
    parser.add_argument("--repeat", type=int, nargs="?", const=6, help="large calls, again and again [default: 6]")
    parser.add_argument("--dry", action="store_true", help="on the CPU, at few sizes")
    arguments = parser.parse_args()
    device = "cpu" if arguments.dry else "cuda"
    every = {name for op in arguments.ops for name in backends(op, device)} - {"reference"}
    for name in arguments.backends or sorted(every):
        ops = [MANIFEST[op] for op in arguments.ops if name in backends(op, device)]
        with use_backend(name):
            for op in ops:
                if arguments.repeat:  # (norms may multiply all positions with all)
                    for call in large_calls(op, device, DRY if arguments.dry else SIZE if op.cuda else SMALL):
                        check_same(op.name, call, device, arguments.repeat)
                else:
                    op.sanitize(device, some=arguments.dry)
                print(f"{name} {op.name}: ok", flush=True)


if __name__ == "__main__":
    main()
