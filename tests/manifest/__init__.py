"""The manifest: every op of mbq_kernels once, and all that tests and benches must know of it.

Whatever runs "every op" iterates over MANIFEST: raw operators and transforms, ahead-of-time compiles, the sanitizer's
sweeps. An op that lacks an entry, or an entry that lacks a field, fails test_manifest.py.
"""

from . import codes, lsb, norms, quantizers, scores
from .entry import LAYOUTS, Op, Variant

__all__ = ["LAYOUTS", "MANIFEST", "Op", "Variant"]

ENTRIES = [*quantizers.OPS, *lsb.OPS, *codes.OPS, *scores.OPS, *norms.OPS]
MANIFEST: dict[str, Op] = {op.name: op for op in ENTRIES}
