"""Exit with 0 where the compiled library has the kernels of this GPU for every op that has any, else say why not."""

import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent))

from op_calls import MANIFEST  # noqa: E402

from mbq_kernels import backends  # noqa: E402
from mbq_kernels._library import build  # noqa: E402


def lacks() -> str | None:
    here = "{}{}".format(*torch.cuda.get_device_capability())
    archs = (build() or {}).get("cuda_architectures", "").split()
    if here not in archs:
        return f"kernels for sm_{here}: it has {' '.join(archs) or 'none'}"
    ops = [op.name for op in MANIFEST.values() if op.cuda and "cuda" not in backends(op.name, "cuda")]
    return f"kernels of {', '.join(ops)}" if ops else None


if __name__ == "__main__":
    reason = lacks()
    sys.exit(f"the compiled library lacks {reason}" if reason else 0)
