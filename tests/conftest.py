"""Every op test runs once per backend and device; uninitialised memory is NaN, so an unwritten output fails."""

import os

import torch

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # before Triton is imported: its kernels then run on CPU tensors

import pytest

import mbq_kernels
from mbq_kernels import _library

DEVICES = {"cpu": ("cpu", "reference", "triton"), "cuda": ("cuda", "triton", "reference")}


def _pairs():
    for device, names in DEVICES.items():
        for name in names:
            reason = None
            if device == "cuda" and not torch.cuda.is_available():
                reason = "no CUDA device"
            elif name not in mbq_kernels.backends("fake_quantize", device):
                reason = f"{name} cannot run on {device} tensors here (python -m mbq_kernels.info says why)"
            marks = [pytest.mark.skip(reason=reason)] if reason else []
            yield pytest.param((device, name), id=f"{device}-{name}", marks=marks)


@pytest.fixture
def op(request):
    """The op that a test is about: its parameter `op`, else its module's OP, else the one its file is named after."""
    named = request.module.__name__.removeprefix("test_")
    return getattr(request.module, "OP", named if named in _library.ops() else "fake_quantize")


@pytest.fixture(params=_pairs())
def device(request, op):
    """A device, with every op forced to one of its backends; skipped where the test's op has no such backend."""
    device, name = request.param
    if name not in mbq_kernels.backends(op, device):
        pytest.skip(f"{name} has no {op} for {device} tensors (python -m mbq_kernels.info says why)")
    with mbq_kernels.use_backend(name):
        yield device


@pytest.fixture
def backend(request, device):
    """The name of the backend that `device` forces."""
    return request.node.callspec.params["device"][1]


@pytest.fixture(autouse=True)
def poisoned_memory():
    torch.use_deterministic_algorithms(True, warn_only=True)  # fills what torch.empty gives, in C++ too
    torch.manual_seed(0)
    assert torch.empty(3).isnan().all()
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture(autouse=True)
def fresh_dynamo():
    yield
    torch._dynamo.reset()


@pytest.fixture(scope="session")
def finished(tmp_path_factory):
    """The folder of a finished run on the digits, and what the command said while it trained; nothing may change it."""
    from cli import TINY, mbq

    folder = tmp_path_factory.mktemp("runs") / "digits"
    threads = torch.get_num_threads()
    result = mbq("train", *TINY, "--out", folder)
    torch.set_num_threads(threads)
    assert result.exit_code == 0, result.output
    return folder, result
