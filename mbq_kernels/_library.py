"""The one place that touches `torch.library` and the compiled library.

An op is a pair of raw operators `mbq::<op>_forward` and `mbq::<op>_backward`. Each backend gives functions of those
names and that signature: `reference/<op>.py` (plain PyTorch), `csrc/ops`, `csrc/cpu` and `csrc/cuda` (in `_C.so`, they
register themselves) and `triton/<op>.py`. PyTorch's dispatcher picks by the device of the tensors; there is no second
one.

Ops of one family share kernels, not raw operators: one operator for a family, over lists or with flags, makes a small
call 0.3 to 11 us slower.
"""

import contextlib
import ctypes
import importlib
import importlib.util
import itertools
import os
import warnings
from pathlib import Path

import torch
import torch.utils._pytree as pytree

NAMES = ("reference", "cpu", "cuda", "triton")  # every backend there is
_PREFERENCE = {"cpu": ("cpu", "reference"), "cuda": ("cuda", "triton", "reference")}
# The backend that comes before those for an op, until a GPU has measured both. switched_linear: in sm_90 machine code
# its CUDA loop reads a bfloat16 x by single elements, 16 cache lines an instruction, at 0.5 TB/s of int8 codes or less
# and so four times slower than a bfloat16 linear; Triton's reads x in 16-byte accesses, at 5 to 8 instructions a code.
_FIRST = {("switched_linear", "cuda"): "triton"}
_COMPILED = Path(__file__).with_name("_C.so")

_library = torch.library.Library("mbq", "DEF")
_fallbacks = torch.library.Library("mbq", "IMPL")
_raw_names: dict[str, list[str]] = {}  # op -> its raw operators, in the order of definition
_compiled: dict[str, set[str]] = {"CPU": set(), "CUDA": set()}  # raw operators that _C.so registered, by dispatch key
_load_error: str | None = None
_forced: str | None = None  # the backend every op is forced to
_overrides: torch.library.Library | None = None  # the kernels that lie over those of the first of _PREFERENCE


class BackendError(RuntimeError):
    """A backend was asked for that cannot run here."""


def _load_compiled() -> None:
    global _load_error
    if not _COMPILED.exists():
        _load_error = f"{_COMPILED.name} was not built"
    else:
        try:
            torch.ops.load_library(str(_COMPILED))
        except OSError as error:
            _load_error = f"{_COMPILED.name} does not load: {error}"
    if _load_error and os.environ.get("MBQ_BACKEND") not in ("reference", "triton"):
        warnings.warn(f"mbq_kernels: compiled kernels are missing ({_load_error}); CPU tensors use the PyTorch "
                      "reference, CUDA tensors Triton or the reference", RuntimeWarning, stacklevel=2)


def _check_instruction_set() -> None:
    wish, facts = os.environ.get("MBQ_CPU_ISA"), build()
    if wish and facts and facts["instruction_set"].removeprefix("x86-64-") != wish:
        warnings.warn(f"mbq_kernels: MBQ_CPU_ISA={wish} was asked for (there are baseline, v3 and v4), but the CPU "
                      f"loops use {facts['instruction_set']}, the widest up to it that this processor has",
                      RuntimeWarning, stacklevel=2)


def define(op: str, raw: str, signature: str, fake) -> torch._ops.OpOverload:
    """Define raw operator `mbq::<raw>` of `op`, and register its shape function and its backends."""
    _library.define(raw + signature, tags=torch.Tag.pt2_compliant_tag)
    torch.library.register_fake(f"mbq::{raw}", fake, lib=_library)
    kernel = getattr(torch.ops.mbq, raw).default
    torch.library.register_vmap(
        f"mbq::{raw}", lambda info, dims, *args: _one_by_one(kernel, info, dims, args), lib=_library)
    for key, compiled in _compiled.items():
        if torch._C._dispatch_has_kernel_for_dispatch_key(f"mbq::{raw}", key):
            compiled.add(raw)
    _raw_names.setdefault(op, []).append(raw)
    _fallbacks.impl(raw, _python_kernel("reference", op, raw), "CompositeExplicitAutograd")
    if raw not in _compiled["CUDA"] and _triton_reason(op) is None:
        _fallbacks.impl(raw, _python_kernel("triton", op, raw), "CUDA")
    return kernel


def _one_by_one(kernel, info, dims, args):
    """The vmap rule of every raw operator: a loop over the batch, for correctness and not for speed."""
    if info.batch_size == 0:
        raise ValueError(f"{kernel.name()}: vmap needs a batch of at least one")
    flat_args, structure = pytree.tree_flatten(list(args))
    flat_dims = pytree._broadcast_to_and_flatten(list(dims), structure)
    results = []
    for i in range(info.batch_size):
        one = [arg if dim is None else arg.select(dim, i) for arg, dim in zip(flat_args, flat_dims, strict=True)]
        results.append(pytree.tree_flatten(kernel(*pytree.tree_unflatten(one, structure))))
    stacked = [torch.stack(column) for column in zip(*(flat for flat, _ in results), strict=True)]
    return pytree.tree_unflatten(stacked, results[0][1]), pytree.tree_unflatten([0] * len(stacked), results[0][1])


def _python_kernel(backend: str, op: str, raw: str):
    """The function `raw` of mbq_kernels/<backend>/<op>.py, imported at the first call: importing Triton is slow."""
    def kernel(*args):
        return getattr(importlib.import_module(f"mbq_kernels.{backend}.{op}"), raw)(*args)
    return kernel


def _triton_reason(op: str) -> str | None:
    if not Path(__file__).with_name("triton").joinpath(f"{op}.py").exists():
        return f"{op} has no Triton kernel"
    return None if importlib.util.find_spec("triton") else "triton is not installed"


def _interpreting() -> bool:
    return os.environ.get("TRITON_INTERPRET") == "1"


def why_not(backend: str, op: str, device: str) -> str | None:
    """Why `backend` cannot run `op` on tensors of `device` ("cpu" or "cuda"); None when it can."""
    if backend not in NAMES:
        return f"there is no such backend (there are {', '.join(NAMES)})"
    if backend == "reference":
        return None
    if backend == "triton":
        if device == "cpu" and not _interpreting():
            return "Triton runs on CPU tensors only under TRITON_INTERPRET=1"
        return _triton_reason(op)
    if backend != device:
        return f"{backend} kernels take {backend} tensors"
    if set(_raw_names[op]) <= _compiled[device.upper()]:
        return None
    if _load_error:
        return _load_error
    if not _compiled[device.upper()] and device == "cuda":
        return "built without CUDA (MBQ_CUDA=on builds it where nvcc is found)"
    return f"{_COMPILED.name} has no {op}: build it again"


def backends(op: str, device: str = "cpu") -> list[str]:
    """Return the backends that can run `op` on tensors of `device` ("cpu" or "cuda"), the one in use by default first.

    Raises ValueError for an unknown op or device. Whether a GPU is present is not asked.
    """
    if op not in _raw_names:
        raise ValueError(f"backends: op must be one of {', '.join(sorted(_raw_names))}, got {op!r}")
    if device not in _PREFERENCE:
        raise ValueError(f"backends: device must be 'cpu' or 'cuda', got {device!r}")
    order = dict.fromkeys((_FIRST.get((op, device), _PREFERENCE[device][0]), *_PREFERENCE[device], *NAMES))
    return [name for name in order if why_not(name, op, device) is None]


@contextlib.contextmanager
def use_backend(backend: str):
    """Run every op on `backend` inside the `with` block, whatever the device's default is.

    The whole process is affected, all threads. Raises ValueError for an unknown name and BackendError when the backend
    can run no op here, at once; an op the backend lacks, or a tensor of a device it does not take, raises BackendError
    at the call.
    """
    if backend not in NAMES:
        raise ValueError(f"use_backend: backend must be one of {', '.join(NAMES)}, got {backend!r}")
    reasons = {(op, device): why_not(backend, op, device) for op in _raw_names for device in _PREFERENCE}
    if None not in reasons.values():
        detail = "; ".join(f"{device}: {reasons[ops()[0], device]}" for device in _PREFERENCE)
        raise BackendError(f"use_backend: {backend} cannot run {ops()[0]} here, nor any other op ({detail})")
    previous = _forced
    _force(backend)
    try:
        yield
    finally:
        _force(previous)


def _force(backend: str | None) -> None:
    """Replace the kernels of every op and device that would not run `backend`, or the first of backends() where it is
    None, and nothing else."""
    global _forced, _overrides
    if _overrides is not None:
        _overrides._destroy()  # what lay under the replaced kernels is in force again
    _forced, _overrides = backend, _override(backend)


def _override(backend: str | None) -> torch.library.Library:
    library = torch.library.Library("mbq", "IMPL")
    with warnings.catch_warnings():  # the dispatcher warns of every replaced kernel; here that is the purpose
        warnings.filterwarnings("ignore", "Warning only once for all operators")
        for op, device in _FIRST if backend is None else itertools.product(_raw_names, _PREFERENCE):
            wanted = backend or backends(op, device)[0]
            reason = why_not(wanted, op, device)
            if reason is None and wanted == _registered(op, device):
                continue
            for raw in _raw_names[op]:
                kernel = _refuse(wanted, op, reason) if reason else _python_kernel(wanted, op, raw)
                library.impl(raw, kernel, device.upper(), allow_override=True)
    return library


def _registered(op: str, device: str) -> str:
    """Return the backend whose kernels _C.so and define registered, which run where nothing lies over them."""
    return next(name for name in _PREFERENCE[device] if why_not(name, op, device) is None)


def _refuse(backend: str, op: str, reason: str):
    def kernel(*args):
        raise BackendError(f"{op}: backend {backend!r} was asked for, but {reason}")
    return kernel


def ops() -> list[str]:
    """Return the names of the public ops, in the order of definition."""
    return list(_raw_names)


def build() -> dict[str, str] | None:
    """Return what the compiled library was built with and uses here; None where it was not built or does not load."""
    if _load_error:
        return None
    library = ctypes.CDLL(str(_COMPILED))
    facts = {}
    for name in ("compiler", "instruction_set", "cuda_architectures"):
        function = getattr(library, f"mbq_{name}")
        function.restype = ctypes.c_char_p
        facts[name] = function().decode()
    return facts


def choose_backends() -> None:
    """Apply _FIRST, or MBQ_BACKEND for the life of the process; called once, after every op is defined.

    What cannot run fails when it is called, so that the package still imports and `mbq_kernels.info` can say why.
    """
    _force(os.environ.get("MBQ_BACKEND") or None)


_load_compiled()
_check_instruction_set()
