"""Print, as JSON, what every path of the manifest launches on CUDA: {name: [[kernel, blocks, threads, shared bytes]]}.

    python tests/launches.py LIBRARY

No GPU takes part. LIBRARY is the code of csrc/cuda over a CUDA runtime that runs nothing (launches_on_host.cpp), and
its operators are called with tensors of the CPU, which no kernel touches. A process of its own, because they take the
place of those for CUDA.
"""

import ctypes
import json
import sys

import torch
import torch.utils._pytree as pytree
from manifest import MANIFEST

CUDA = torch._C.DispatchKeySet(torch._C.DispatchKey.CUDA)


def absent(argument):
    """Return what an argument is that a path does not name."""
    kind = str(argument.type)
    return True if argument.name == "signed" else False if kind == "bool" else [] if kind.startswith("List") else None


def call(path):
    operator = getattr(torch.ops.mbq, path.operator).default
    given = pytree.tree_map_only(torch.Tensor, lambda t: torch.empty_like(t, device="cpu"), path.arguments)
    operator.redispatch(CUDA, *(given.get(a.name, absent(a)) for a in operator._schema.arguments))


def main():
    library = ctypes.CDLL(sys.argv[1])
    library.take_launches.restype = ctypes.c_char_p
    found = {}
    for op in MANIFEST.values():
        for path in op.paths:
            call(path)  # the first one may also clear memory that later ones find cleared
            library.take_launches()
            call(path)
            lines = library.take_launches().decode().splitlines()
            found[path.name] = [[name, *map(int, numbers)] for name, *numbers in map(str.split, lines)]
    print(json.dumps(found))


if __name__ == "__main__":
    main()
