"""How many bytes training keeps from forward to backward, by ops, layers and networks; python
bench/training_memory.py prints the same beside other libraries."""

import memory
import pytest
import torch
from manifest import MANIFEST
from networks import one_thread  # noqa: F401 - a fixture
from test_train_saved import WEIGHTS
from torch import nn

from mbq_kernels import fake_quantize, fake_quantize_affine
from mbq_kernels._library import ops
from mbq_lab.models import build_model
from mbq_train import AnyPrecision, Learned, RoundClamp, convert, recompute_quantized

SIZE = 4096
X, ROW = 4 * 4 * SIZE, 4 * 4  # bytes of x, (4, SIZE), and of a number for each row
SAVED = {  # by the op's call in the manifest, with its inputs
    "correct_weight_bias": 4 * X + 7 * ROW,  # of several operations: w_quant, w_ref and what they were made of
    "cross_entropy_el2n": X + 6 * ROW,  # targets are of 8 bytes
    "double_round": X + ROW, "fake_quantize": X + ROW, "fake_quantize_affine": X + 2 * ROW,
    "fake_quantize_corrected": X + 8 * ROW, "fake_quantize_dynamic": X + 2 * ROW,
    "fake_quantize_foreach": 2 * X + 4 * ROW, "fake_quantize_multi": X + 2 * ROW,  # two tensors; two bit-widths
    "lsb_penalty": X + ROW, "round_clamp": 0, "round_clamp_lsb": X + ROW, "round_clamp_lsb_foreach": 2 * X + ROW + 4,
    "switched_linear": X + X // 4 + ROW,  # the store's codes are of 1 byte
}


@pytest.mark.parametrize("op", [op for op in ops() if op in MANIFEST and MANIFEST[op].differentiable])
def test_ops(op):
    inputs = MANIFEST[op].data.make("cpu", SIZE)
    assert memory.saved_bytes(lambda: MANIFEST[op].call(*inputs)) == SAVED[op]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_constant_scales_save_x_too(dtype):
    """A mask would be smaller, but x often lives anyway: as a Parameter, or as what a ReLU has saved."""
    x, scale = torch.randn(64, 64, dtype=dtype, requires_grad=True), torch.tensor([0.1])
    zero_point = torch.zeros(1, dtype=torch.int32)
    assert memory.saved_bytes(lambda: fake_quantize(x, scale, bits=4)) == x.nbytes + 4
    assert memory.saved_bytes(lambda: fake_quantize_affine(x, scale, zero_point, quant_min=-8, quant_max=7)) == (
        x.nbytes + 8)
    assert memory.kept_bytes(lambda: fake_quantize(x.relu(), scale, bits=4)) == x.nbytes


LAYERS = {"linear": (lambda: nn.Linear(256, 256), (512, 256)), "conv": (lambda: nn.Conv2d(32, 32, 3), (4, 32, 16, 16))}


def kept(layer, x):
    layer(x.clone())  # what is made once
    return memory.kept_bytes(lambda: layer(x.clone()))


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("weights", WEIGHTS, ids=repr)
def test_layers(weights, name):
    """A layer keeps its input, the quantized input and the quantized weight, and with the switch its input alone, as
    the float layer does. Weights that are normalised first keep what that takes in both cases."""
    make, shape = LAYERS[name]
    x, plain = torch.randn(shape).requires_grad_(), make()
    copies = {AnyPrecision(): 2, RoundClamp(normalise="tanh"): 1}.get(weights, 0)
    layer = convert(nn.Sequential(make()), (4,), weights=weights, activations=Learned(), example=x.detach(),
                    keep_float=())
    weight, found = plain.weight.nbytes, []
    few = 6 * 4 * len(plain.weight)  # numbers for each channel
    for on in (False, True):
        recompute_quantized(layer, on)
        found.append(kept(layer, x))
    assert kept(plain, x) == x.nbytes
    assert 0 <= found[1] - (x.nbytes + copies * weight) <= few
    assert 0 <= found[0] - (2 * x.nbytes + (1 + copies) * weight) <= few
    assert found[1] <= 0.65 * found[0]


@pytest.mark.parametrize("name, most", [("resnet20", 0.61), ("vit_t", 0.51)])
def test_networks(name, most):
    """With the switch a network of learned scales keeps no byte more than in float."""
    x = torch.rand(4, 3, 32, 32)
    model = build_model(name, classes=10, in_channels=3, image_size=(32, 32))
    plain = kept(model, x)
    convert(model, (4,), example=x)
    without = kept(model, x)
    recompute_quantized(model)
    assert kept(model, x) == plain <= most * without
