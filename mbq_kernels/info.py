"""`python -m mbq_kernels.info`: versions, build, and for every op the backend each device would use, and why."""

import os
import platform

import torch

from . import __version__, _library


def lines() -> list[str]:
    """Return the report, a line each."""
    forced = os.environ.get("MBQ_BACKEND")
    return [f"mbq_kernels {__version__}, Python {platform.python_version()}, torch {torch.__version__}, "
            f"triton {_triton_version()}",
            *_build_lines(),
            f"GPU: {torch.cuda.get_device_name() if torch.cuda.is_available() else 'none that torch can use'}",
            f"MBQ_BACKEND: {forced or 'not set'}",
            *(line for op in _library.ops() for line in _op_lines(op, forced))]


def facts() -> dict:
    """Return what the report says of versions, the build, the GPU and the usable backends, the first of which is the
    default, as plain data for JSON."""
    return {"mbq_kernels": __version__, "python": platform.python_version(), "torch": torch.__version__,
            "triton": _triton_version(), "build": _library.build(),
            "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
            "MBQ_BACKEND": os.environ.get("MBQ_BACKEND"),
            "backends": {op: {device: list(_library.backends(op, device)) for device in ("cpu", "cuda")}
                         for op in _library.ops()}}


def _triton_version() -> str:
    try:
        import triton
    except ImportError:
        return "not installed"
    return triton.__version__


def _build_lines() -> list[str]:
    build = _library.build()
    if build is None:
        return [f"compiled library: missing ({_library.why_not('cpu', _library.ops()[0], 'cpu')})"]
    archs = build["cuda_architectures"]
    cuda = "sm_" + archs.replace(" ", " sm_") if archs else "not built (MBQ_CUDA=on builds them where nvcc is found)"
    return [f"compiled library: {build['compiler']}; CPU loops use {build['instruction_set']}",
            f"CUDA kernels: {cuda}"]


def _op_lines(op: str, forced: str | None) -> list[str]:
    rows = [op]
    for device in ("cpu", "cuda"):
        usable = _library.backends(op, device)
        in_use = forced or usable[0]
        why = _library.why_not(in_use, op, device)
        state = f"cannot run: {why}" if why else "forced by MBQ_BACKEND" if forced else "default"
        rows.append(f"  {device} tensors: {in_use} ({state})")
        for name in _library.NAMES:
            reason = _library.why_not(name, op, device)
            if name != in_use and not (name in ("cpu", "cuda") and name != device):
                rows.append(f"    {name}: {reason or 'can run'}")
    return rows


def main() -> None:
    print("\n".join(lines()))


if __name__ == "__main__":
    main()
