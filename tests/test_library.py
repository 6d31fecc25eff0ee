"""Backends: which there are, forcing one, environment variables, instruction sets, info, cost of importing."""

import importlib
import json
import subprocess

import pytest
import torch
from running import run_python

import mbq_kernels as mbq
from mbq_kernels import _library, info


def test_compiled_library_is_the_default_on_the_cpu():
    for op in _library.ops():
        assert mbq.backends(op)[:2] == ["cpu", "reference"]


def test_backends_rejects_unknown_names():
    with pytest.raises(ValueError, match="backends: op must be one of .*fake_quantize.*got 'quantise'"):
        mbq.backends("quantise")
    with pytest.raises(ValueError, match="backends: device must be 'cpu' or 'cuda', got 'tpu'"):
        mbq.backends("fake_quantize", "tpu")


@pytest.fixture
def calls(monkeypatch):
    """A list that gets an entry of every call of the reference of fake_quantize."""
    calls = []
    reference = importlib.import_module("mbq_kernels.reference.fake_quantize")
    original = reference.fake_quantize_forward
    monkeypatch.setattr(reference, "fake_quantize_forward", lambda *args: calls.append(1) or original(*args))
    return calls


def test_use_backend_is_undone_and_nests(calls):
    x, scale = torch.randn(5), torch.ones(1)
    mbq.fake_quantize(x, scale, bits=4)
    assert calls == []
    with mbq.use_backend("reference"):
        mbq.fake_quantize(x, scale, bits=4)
        with mbq.use_backend("cpu"):
            mbq.fake_quantize(x, scale, bits=4)
        mbq.fake_quantize(x, scale, bits=4)
    mbq.fake_quantize(x, scale, bits=4)
    assert calls == [1, 1]


def test_another_backend_may_come_first(calls, monkeypatch):
    x, scale = torch.randn(5), torch.ones(1)
    with monkeypatch.context() as patch:
        patch.setitem(_library._FIRST, ("fake_quantize", "cpu"), "reference")
        _library._force(None)
        assert mbq.backends("fake_quantize")[:2] == ["reference", "cpu"]
        mbq.fake_quantize(x, scale, bits=4)
        with mbq.use_backend("cpu"):
            mbq.fake_quantize(x, scale, bits=4)
        assert calls == [1]
        mbq.fake_quantize(x, scale, bits=4)
        assert calls == [1, 1]
    _library._force(None)
    mbq.fake_quantize(x, scale, bits=4)
    assert calls == [1, 1]


def test_use_backend_rejects_what_cannot_run():
    with pytest.raises(ValueError, match="use_backend: backend must be one of reference, cpu, cuda, triton, got 'gpu'"):
        with mbq.use_backend("gpu"):
            pass
    if "cuda" not in mbq.backends("fake_quantize", "cuda"):
        with pytest.raises(mbq.BackendError, match=r"use_backend: cuda cannot run \w+ here"):
            with mbq.use_backend("cuda"):
                pass


CALL = "import torch, mbq_kernels as m; print(m.fake_quantize(torch.ones(2), torch.ones(1), bits=4).tolist())"


@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_environment_forces_a_backend(backend):
    assert run_python(CALL, MBQ_BACKEND=backend) == (0, "[1.0, 1.0]\n", "")


@pytest.mark.parametrize("backend, reason", [("triton", "Triton runs on CPU tensors only under TRITON_INTERPRET=1"),
                                             ("cuda", "cuda kernels take cuda tensors"),
                                             ("gpu", "there is no such backend")])
def test_a_forced_backend_that_is_not_there_fails_when_called(backend, reason):
    code, _, errors = run_python(CALL, MBQ_BACKEND=backend)
    assert code == 1 and f"fake_quantize: backend '{backend}' was asked for, but {reason}" in errors
    assert run_python("import mbq_kernels", MBQ_BACKEND=backend) == (0, "", "")


def test_missing_library_warns_once_and_runs_on_the_reference(tmp_path):
    code = ("import sys, pathlib; import mbq_kernels; root = pathlib.Path(mbq_kernels.__file__).parent; "
            f"import shutil; shutil.copytree(root, r'{tmp_path}/mbq_kernels', ignore=shutil.ignore_patterns('*.so'))")
    assert run_python(code)[0] == 0
    code, out, errors = run_python(
        f"import sys; sys.path.insert(0, r'{tmp_path}'); {CALL}; print(m.backends('fake_quantize'))")
    assert code == 0 and out == "[1.0, 1.0]\n['reference']\n"
    assert errors.count("compiled kernels are missing (_C.so was not built)") == 1


def symbols(*command):
    return subprocess.run([*command, _library._COMPILED], capture_output=True, text=True, check=True).stdout


def test_library_asks_for_torch_itself():
    """Which brings the library of the streams where it has CUDA; it defines nothing itself, so a linker drops it."""
    assert "[libtorch.so]" in symbols("readelf", "-d")


def test_library_knows_no_python():
    """So that one wheel serves every Python."""
    names = symbols("nm", "-D", "--undefined-only").split()
    assert "aoti_torch_get_data_ptr" in names and not [name for name in names if name.startswith(("Py", "_Py"))]


SWEEP = """
import json, torch, mbq_kernels as m
torch.manual_seed(0)
torch.use_deterministic_algorithms(True)
digests = []
for dtype in (torch.float32, torch.bfloat16, torch.float16, torch.float64):
    for shape, axis in (((3, 1000), None), ((7, 333), 0), ((50, 9, 3), 1), ((40, 33), 1)):
        x = (torch.randn(shape, dtype=torch.float64) * 3).to(dtype).requires_grad_()
        s = (torch.rand(1 if axis is None else shape[axis]) * 0.3 + 0.1).requires_grad_()
        o = (torch.rand(s.shape) - 0.5).requires_grad_()
        outs = (m.fake_quantize(x, s, o, bits=3, axis=axis), *m.fake_quantize_multi(x, [s, s], bits=[8, 1], axis=axis),
                m.fake_quantize_affine(x, s, o, quant_min=-8, quant_max=7, axis=axis))
        grads = torch.autograd.grad([out.sum() * (i + 1) for i, out in enumerate(outs)], (x, s, o))
        digests += [t.detach().double().numpy().tobytes().hex() for t in (*outs, *grads)]
import hashlib
from mbq_kernels._library import build
print(json.dumps([build()["instruction_set"], [hashlib.sha256(d.encode()).hexdigest() for d in digests]]))
"""


def test_instruction_sets_agree_bit_for_bit():
    """Values and every gradient sum, whatever the processor: the order of addition is fixed."""
    results = {}
    for wish in ("baseline", "v3", "v4"):
        code, out, errors = run_python(SWEEP, MBQ_CPU_ISA=wish)
        assert code == 0, errors
        used, digests = json.loads(out)
        results[used] = digests
    assert "baseline" in results
    assert all(digests == results["baseline"] for digests in results.values())


def test_an_instruction_set_that_is_not_there_is_said():
    code, _, errors = run_python("import mbq_kernels", MBQ_CPU_ISA="avx9000")
    assert code == 0 and "MBQ_CPU_ISA=avx9000 was asked for (there are baseline, v3 and v4), but" in errors
    assert run_python("import mbq_kernels", MBQ_CPU_ISA="baseline") == (0, "", "")


def test_info_tells_every_op_and_why():
    text = "\n".join(info.lines())
    for op in _library.ops():
        assert f"\n{op}\n  cpu tensors: cpu (default)" in text
    assert "CPU loops use " in text and "torch " + torch.__version__ in text
    code, out, _ = run_python("import mbq_kernels.info as i; i.main()", MBQ_BACKEND="reference")
    assert code == 0 and "cpu tensors: reference (forced by MBQ_BACKEND)" in out


def test_import_adds_at_most_0_3_seconds_to_torch():
    code = "import torch, time; t = time.perf_counter(); import mbq_kernels; print(time.perf_counter() - t)"
    best = min(float(run_python(code)[1]) for _ in range(3))
    assert best <= 0.3


def test_importing_does_not_import_triton_or_the_training_layer():
    code = "import sys, torch; before = set(sys.modules); import mbq_kernels; " \
           "print([m for m in set(sys.modules) - before if m.split('.')[0] in ('triton', 'mbq_train', 'mbq_store')])"
    assert run_python(code)[1] == "[]\n"
