"""What a store keeps beside the quantized weights: every tensor of the state, and what no file can hold."""

import warnings

import numpy as np
import pytest
import torch
from networks import one_thread  # noqa: F401
from torch.testing._internal.two_tensor import TwoTensor

import mbq_store
from mbq_train import DoubleRounding, convert, export_onnx, initialise, load_checkpoint, save_checkpoint
from mbq_train.export import export_store


class Holder(torch.nn.Sequential):
    """A network with one more entry in its state_dict, a buffer or what get_extra_state returns."""

    def __init__(self, entry, is_extra):
        super().__init__(*(torch.nn.Linear(4, 4) for _ in range(3)))
        self.is_extra = is_extra
        self.entry = entry if is_extra else None
        if not is_extra:
            del self.entry
            self.register_buffer("entry", entry)

    def get_extra_state(self):
        return self.entry if self.is_extra else torch.zeros(0)

    def set_extra_state(self, state):
        self.entry = state if self.is_extra else self.entry

    def forward(self, x):
        return self[2](self[1](self[0](x)))


def holder(entry, is_extra=False):
    torch.manual_seed(0)
    model = convert(Holder(entry, is_extra), (8,), weights=DoubleRounding())
    initialise(model, torch.randn(3, 4))
    return model.eval()


EXACT = torch.tensor([1.0, -2.0, 0.5, 0.0])
STORED = {str(dtype): EXACT.to(dtype) for dtype in (
    torch.float8_e4m3fn, torch.float8_e5m2, torch.float8_e4m3fnuz, torch.float8_e5m2fnuz, torch.float16, torch.bfloat16,
    torch.float64, torch.int8)} | {
    "float8_e8m0fnu": torch.tensor([2.0**-127, 1.0, 2.0**127]).to(torch.float8_e8m0fnu), "bool": EXACT > 0,
    "uint16": torch.tensor([0, 65535], dtype=torch.uint16), "0-dim": torch.tensor(3), "empty": torch.zeros(0, 2),
    "strided": torch.arange(12.0).view(3, 4).T[::2], "imaginary part": torch.ones(3, dtype=torch.complex64).conj().imag}


@pytest.mark.parametrize("is_extra", [False, True], ids=["buffer", "extra state"])
@pytest.mark.parametrize("name", STORED)
def test_every_dense_tensor_of_the_state_is_stored(tmp_path, name, is_extra):
    entry, path = STORED[name], tmp_path / "file"
    model = holder(entry.clone(), is_extra)
    export_store(model, path)
    with mbq_store.open(path) as store:
        stored = store.tensor("_extra_state" if is_extra else "entry")
    assert stored.shape == entry.shape and np.array_equal(stored.astype(np.float64), entry.double().numpy())
    save_checkpoint(path, model)
    other = holder(torch.empty_like(entry), is_extra)
    load_checkpoint(path, other)
    assert other.entry.dtype == entry.dtype and torch.equal(other.entry.double(), entry.double())


def no_tensors():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # nested, csr and quantized tensors are said to be young or old
        return {"torch.complex64": EXACT.to(torch.complex64), "torch.qint8": torch.quantize_per_tensor(
                    EXACT, 0.1, 0, torch.qint8), "torch.float4_e2m1fn_x2": torch.zeros(4, dtype=torch.uint8).view(
                    torch.float4_e2m1fn_x2), "one on device meta": EXACT.to("meta"),
                "layout torch.sparse_coo": torch.eye(3).to_sparse(), "layout torch.sparse_csr": torch.eye(
                    3).to_sparse_csr(), "a nested tensor": torch.nested.nested_tensor([EXACT, EXACT[:2]]),
                "TwoTensor": TwoTensor(EXACT, EXACT)}


@pytest.mark.parametrize("kind, entry", no_tensors().items(), ids=no_tensors())
def test_what_no_file_can_hold_is_named(tmp_path, kind, entry):
    model = holder(EXACT)
    model.entry = entry
    for function in (export_store, save_checkpoint):
        arguments = (model, tmp_path / "file") if function is export_store else (tmp_path / "file", model)
        with pytest.raises(ValueError, match=f"^{function.__name__}: entry must be a dense, real tensor, got {kind}; "):
            function(*arguments)
    with pytest.raises(TypeError, match=f"^export_onnx: .*got {kind}( in entry)?$") as error:
        export_onnx(model, tmp_path / "file", bits=8, example=torch.randn(2, 4))
    assert "entry" in str(error.value) and not list(tmp_path.iterdir())


@pytest.mark.parametrize("state", [{"a": 1}, None, [EXACT]], ids=["dict", "None", "list"])
def test_extra_state_that_is_no_tensor(tmp_path, state):
    """A store and a checkpoint name it; an ONNX file, which holds what the forward needs, has no place for it."""
    model = holder(state, is_extra=True)
    for function in (export_store, save_checkpoint, load_checkpoint):
        arguments = (model, tmp_path / "file") if function is export_store else (tmp_path / "file", model)
        with pytest.raises(ValueError, match=f"^{function.__name__}: _extra_state must be a tensor, got "
                                             f"{type(state).__name__}; get_extra_state can return one"):
            function(*arguments)
    assert not list(tmp_path.iterdir())
    export_onnx(model, tmp_path / "file.onnx", bits=8, example=torch.randn(2, 4))
    assert (tmp_path / "file.onnx").stat().st_size
