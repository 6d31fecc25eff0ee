"""Measure what the CPU's loops take where memory does not count, and the share of a copy that this leaves.

    python bench/in_cache.py [--threads 2] [--json FILE]

Every case runs on a tensor that stays in the second-level cache, on one thread, and a copy of as many bytes per element
on one that no cache holds, on all threads. The case on such a tensor takes as long as the longer of the two where
computing and memory overlap wholly, and as long as both where they do not overlap at all: its share of a copy lies
between.
"""

import argparse
import json
import sys
import time
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1] / "python")]

import machine  # noqa: E402
import timing  # noqa: E402
import torch  # noqa: E402

import mbq_kernels as mbq  # noqa: E402

SMALL, LARGE, CLASSES = 32 * 1024, 16 * 1024 * 1024, 1000
FOUR = (8, 6, 4, 2)


def forward_and_backward(call, x, *scales):
    """Return a function of no arguments that does both; gradients are made once."""
    leaves = [tensor.requires_grad_() for tensor in (x, *scales)]
    out = call(*leaves)
    outs = out if isinstance(out, (tuple, list)) else [out]
    grads = [torch.randn_like(one) for one in outs]
    return lambda: torch.autograd.grad(call(*leaves), leaves, grads)


def cases(numel: int):
    """Yield (name, bytes read and written per element, what runs it) for tensors of `numel` elements."""
    for dtype in (torch.float32, torch.bfloat16):
        name, size = str(dtype).removeprefix("torch."), dtype.itemsize

        def one_scale(x, scale):
            return mbq.fake_quantize(x, scale, bits=4)

        def of_rows(x, scale):
            return mbq.fake_quantize(x, scale, bits=4, axis=0)

        def four(x, scales):
            return mbq.fake_quantize_multi(x, scales, bits=FOUR)

        def rounded_twice(x, scale):
            return mbq.double_round(x, scale, bits=4)

        def x(dtype=dtype):
            return torch.randn(numel, dtype=dtype)

        yield f"fake_quantize {name}", 5 * size, forward_and_backward(one_scale, x(), torch.tensor([0.1]))
        for group in (128, 64, 32):
            scales = torch.full((numel // group,), 0.1)
            yield f"groups of {group} {name}", 5 * size, forward_and_backward(of_rows, x().view(-1, group), scales)
        yield f"four bit-widths {name}", 11 * size, forward_and_backward(four, x(), torch.tensor([0.1, 0.2, 0.3, 0.4]))
        yield f"double_round {name}", 5 * size, forward_and_backward(rounded_twice, x(), torch.tensor([0.1]))
        rows = numel // CLASSES
        logits, targets = x()[:rows * CLASSES].view(rows, CLASSES), torch.randint(0, CLASSES, (rows,))
        yield f"el2n {name}", size, lambda logits=logits, targets=targets: mbq.el2n(logits, targets)
    codes = torch.randint(-8, 8, (numel,), dtype=torch.int8)
    packed = mbq.pack_codes(codes, bits=4)
    yield "pack_codes 4 bits", 1.5, lambda: mbq.pack_codes(codes, bits=4)
    yield "unpack_codes 4 bits", 1.5, lambda: mbq.unpack_codes(packed, bits=4, shape=(numel,))


def seconds(call, inner: int) -> float:
    """Return the least time of a call, over calls in rows of `inner`."""
    call()
    best = float("inf")
    for _ in range(15):
        start = time.perf_counter()
        for _ in range(inner):
            call()
        best = min(best, (time.perf_counter() - start) / inner)
    return best


def fixed_cost() -> dict[str, float]:
    """Return the time of every case on a tensor so small that only the call counts."""
    return {name: seconds(call, 40) for name, _, call in cases(1024)}


def measure(threads: int) -> list[dict]:
    torch.set_num_threads(1)
    calls = fixed_cost()
    in_cache = {name: (bytes_each, (seconds(call, 20) - calls[name]) / (SMALL - 1024))
                for name, bytes_each, call in cases(SMALL)}
    torch.set_num_threads(threads)
    source = torch.empty(LARGE, dtype=torch.float32).normal_()
    copy = seconds(source.clone, 1) / (8 * LARGE)
    rows = []
    for name, (bytes_each, element) in in_cache.items():
        memory, computing = bytes_each * copy, element / threads
        rows.append({"case": name, "ns_in_cache": element * 1e9, "ns_of_a_copy": memory * 1e9,
                     "share_without_overlap": memory / (memory + computing),
                     "share_with_overlap": min(1.0, memory / computing)})
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    timing.keep_memory()
    rows = measure(options.threads)
    for row in rows:
        print(f"{row['case']:28} {row['ns_in_cache']:7.3f} ns an element in cache, one thread; a copy "
              f"{row['ns_of_a_copy']:.3f}: {row['share_without_overlap']:.2f} to {row['share_with_overlap']:.2f} of it")
    if options.json:
        found = {"machine": machine.describe("cpu") | {"threads": options.threads}, "rows": rows}
        options.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
