"""For which GPUs CUDA kernels are built, with and without nvcc and a GPU; and what is asked for and cannot be."""

import shutil
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parent.parent / "csrc/cuda_archs.cmake"
NVCC = r"printf 'sm_75\nsm_80\nsm_86\nsm_89\nsm_90\nsm_90a\nsm_100\n'"
NO_GPU = "exit 9"


def decide(tmp_path, mbq_cuda="auto", archs="", **programs):
    """(exit status, what CMake says) with these programs alone on the PATH."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name, script in programs.items():
        path = folder / name.replace("_", "-")
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)
    command = [shutil.which("cmake"), f"-DMBQ_CUDA={mbq_cuda}", f"-DMBQ_CUDA_ARCHS={archs}",
               "-DCMAKE_FIND_USE_CMAKE_SYSTEM_PATH=OFF", "-P", SCRIPT]
    done = subprocess.run(command, env={"PATH": str(folder)}, capture_output=True, text=True, check=False)
    return done.returncode, " ".join((done.stdout + done.stderr).split())


@pytest.mark.parametrize("arguments, said", [
    (dict(nvcc=NVCC, nvidia_smi="echo 9.0"), "CUDA kernels for sm_90"),
    (dict(nvcc=NVCC, nvidia_smi="echo 9.0; echo 8.0; echo 9.0"), "CUDA kernels for sm_90 sm_80"),
    (dict(nvcc=NVCC, nvidia_smi="echo 10.0"), "CUDA kernels for sm_100"),
    (dict(nvcc=NVCC, nvidia_smi="echo 12.0"), "no CUDA kernels (nvcc knows none of the GPUs' architectures, 120)"),
    (dict(nvcc=NVCC, nvidia_smi=NO_GPU), "no CUDA kernels (no GPU is visible; MBQ_CUDA=on builds without one)"),
    (dict(nvcc=NVCC), "no CUDA kernels (no GPU is visible; MBQ_CUDA=on builds without one)"),
    (dict(nvidia_smi="echo 9.0"), "no CUDA kernels (no nvcc)"),
    (dict(), "no CUDA kernels (no nvcc)"),
    (dict(archs="80;90", nvcc=NVCC), "CUDA kernels for sm_80 sm_90"),
    (dict(mbq_cuda="on", nvcc=NVCC), "CUDA kernels for sm_80 sm_86 sm_89 sm_90 sm_100"),
    (dict(mbq_cuda="on", nvcc=NVCC, nvidia_smi="echo 9.0"), "CUDA kernels for sm_80 sm_86 sm_89 sm_90 sm_100"),
    (dict(mbq_cuda="on", archs="90", nvcc=NVCC), "CUDA kernels for sm_90"),
    (dict(mbq_cuda="off", archs="90", nvcc=NVCC, nvidia_smi="echo 9.0"), "no CUDA kernels (MBQ_CUDA=off)"),
], ids=lambda value: None if isinstance(value, str) else "-".join(value) or "nothing")
def test_architectures(tmp_path, arguments, said):
    assert decide(tmp_path, **arguments) == (0, f"-- mbq_kernels: {said}")


@pytest.mark.parametrize("arguments, said", [
    (dict(mbq_cuda="on"), "asks for CUDA kernels, but nvcc was not found"),
    (dict(archs="90"), "asks for CUDA kernels, but nvcc was not found"),
    (dict(mbq_cuda="yes", nvcc=NVCC), "MBQ_CUDA must be auto, on or off, got yes"),
], ids=["on", "named architectures", "unknown"])
def test_what_cannot_be_built_is_an_error(tmp_path, arguments, said):
    status, text = decide(tmp_path, **arguments)
    assert status == 1 and said in text
