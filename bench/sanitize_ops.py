"""Every op on every CUDA backend at odd sizes, tails and layouts: what gpu_check.sh runs under compute-sanitizer."""

import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from manifest import MANIFEST  # noqa: E402

from mbq_kernels import backends, use_backend  # noqa: E402


def main(names: list[str]) -> None:
    for name in names or [name for name in backends("fake_quantize", "cuda") if name != "reference"]:
        ops = [op for op in MANIFEST.values() if name in backends(op.name, "cuda")]
        with use_backend(name):
            for op in ops:
                op.sanitize("cuda")
        torch.cuda.synchronize()
        print(f"{name}: {len(ops)} ops")


if __name__ == "__main__":
    main(sys.argv[1:])
