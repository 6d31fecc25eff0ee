"""torch.export with sizes that change: every public op, converted and deployed layers, strict and not."""

import pytest
import torch
from networks import one_thread, specs  # noqa: F401
from torch import nn
from torch.export import Dim

import mbq_kernels as mbq
import mbq_train
from mbq_kernels._library import _raw_names
from mbq_train import Learned

S = torch.tensor([0.1, 0.2, 0.3])  # scales of three channels
CODES = torch.arange(-15, 15, dtype=torch.int8).view(3, 10)


def floats(*shape):
    return torch.randn(shape)


def codes(*shape):
    return torch.randint(-8, 8, shape, dtype=torch.int8)


def classes(*shape):
    return torch.randint(0, 5, shape)


def packed_bytes(*shape):
    return torch.randint(0, 256, shape, dtype=torch.uint8)


def halves(*shape):
    return torch.rand(shape) / 10


def norms_of(op, *shapes, **options):
    """A case of a sample_grad_norm: batch and positions change."""
    return op, [(floats, *shape) for shape in shapes], options


# op: (call, its tensors as (maker, *sizes), where a size "n" or "m" changes), {keyword: value}
CASES = {
    "fake_quantize": (lambda x: mbq.fake_quantize(x, S, S / 2, bits=4, axis=1), [(floats, "n", 3, "m")], {}),
    "fake_quantize, channels": (lambda x, s: mbq.fake_quantize(x, s.abs(), bits=4, axis=1),
                                [(floats, "n", "m"), (floats, "m")], {}),
    "fake_quantize_multi": (lambda x: mbq.fake_quantize_multi(x, [S, S], bits=[8, 2], axis=1),
                            [(floats, "n", 3, "m")], {}),
    "fake_quantize_foreach": (lambda x, y: mbq.fake_quantize_foreach([x, y], [S[:2], S[1:]], bits=[8, 2]),
                              [(floats, "n", "m"), (floats, "m")], {}),
    "fake_quantize_affine": (lambda x: mbq.fake_quantize_affine(x, S, S, quant_min=-8, quant_max=7, axis=1),
                             [(floats, "n", 3, "m")], {}),
    "fake_quantize_dynamic": (lambda x: mbq.fake_quantize_dynamic(x, quant_min=-8, quant_max=7),
                              [(floats, "n", 3, "m")], {}),
    "fake_quantize_corrected": (lambda x: mbq.fake_quantize_corrected(x, S, bits=4, axis=0), [(floats, 3, "m")], {}),
    "fold_correction": (lambda x: mbq.fold_correction(x, S, bits=4, axis=0), [(floats, 3, "m")], {}),
    "correct_weight_bias": (lambda x, y: mbq.correct_weight_bias(x, y), [(floats, "n", "m"), (floats, "n", "m")], {}),
    "double_round": (lambda x: mbq.double_round(x, S, bits=[4, 2], axis=0), [(floats, 3, "m")], {}),
    "round_clamp": (lambda x: mbq.round_clamp(x, bits=4, limit=S, axis=0), [(halves, 3, "m")], {}),
    "round_clamp_lsb": (lambda x: mbq.round_clamp_lsb(x, bits=4, k=1, limit=S, axis=0), [(halves, 3, "m")], {}),
    "round_clamp_lsb_foreach": (lambda x, y: mbq.round_clamp_lsb_foreach([x, y], bits=4, k=1),
                                [(halves, "n", "m"), (halves, "n")], {}),
    "lsb_penalty": (lambda x: mbq.lsb_penalty(x, bits=4, k=1, limit=S, axis=0), [(halves, 3, "m")], {}),
    "quantize_codes": (lambda x: mbq.quantize_codes(x, S, bits=4, axis=1), [(floats, "n", 3, "m")], {}),
    "dequantize_codes": (lambda x: mbq.dequantize_codes(x, S, from_bits=4, to_bits=3, axis=1),
                         [(codes, "n", 3, "m")], {}),
    "switch_bits": (lambda x: mbq.switch_bits(x, from_bits=4, to_bits=2), [(codes, "n", "m")], {}),
    "extract_lsb": (lambda x: mbq.extract_lsb(x, bits=4, k=2), [(halves, "n", "m")], {}),
    "pack_codes": (lambda x: mbq.pack_codes(x, bits=4), [(codes, "n", "m")], {}),
    "unpack_codes": (lambda x: mbq.unpack_codes(x, bits=4, shape=(x.shape[0], 2 * x.shape[1])),
                     [(packed_bytes, "n", "m")], {}),
    "to_planes": (lambda x: mbq.to_planes(x, bits=4), [(codes, "n", "m")], {}),
    "from_planes": (lambda x: mbq.from_planes(x, high_bits=8, bits=4, shape=(x.shape[1], 8 * x.shape[2])),
                    [(packed_bytes, 8, "n", "m")], {}),
    "el2n": (lambda x, t: mbq.el2n(x, t), [(floats, "n", "m", 5), (classes, "n", "m")], {}),
    "cross_entropy_el2n": (lambda x, t: mbq.cross_entropy_el2n(x, t), [(floats, "n", "m", 5), (classes, "n", "m")], {}),
    "switched_linear": (lambda x: mbq.switched_linear(x, CODES, S, S, bits=4), [(floats, "n", "m", 10)], {}),
    "switched_linear, weight": (lambda x, store, s: mbq.switched_linear(x, store, s.abs(), s, bits=4),
                                [(floats, 3, "m"), (codes, "n", "m"), (floats, "n")], {}),
    "switched_linear, vector": (lambda x: mbq.switched_linear(x, CODES, S, bits=4), [(floats, 10)], {}),
    "switched_linear, planes": (lambda x: mbq.switched_linear(x, mbq.to_planes(CODES, bits=8), S, bits=4),
                                [(floats, "n", 10)], {}),
    "sample_grad_norm_linear": norms_of(mbq.sample_grad_norm_linear, ("n", "m", 2, 3), ("n", "m", 2, 4)),
    "sample_grad_norm_embedding": (mbq.sample_grad_norm_embedding, [(classes, "n", "m", 2), (floats, "n", "m", 2, 4)],
                                   {}),
    "sample_grad_norm_layer_norm": norms_of(mbq.sample_grad_norm_layer_norm, *[("n", "m", 2, 4)] * 2,
                                            normalized_shape=(2, 4)),
    "sample_grad_norm_batch_norm": norms_of(mbq.sample_grad_norm_batch_norm, *[("n", 3, "m", 2)] * 2),
    "sample_grad_norm_conv2d": norms_of(mbq.sample_grad_norm_conv2d, ("n", 2, "m", 4), ("n", 3, "m", 4), kernel_size=3,
                                        padding=1),
    "sample_grad_norm_conv1d": norms_of(mbq.sample_grad_norm_conv1d, ("n", 2, "m"), ("n", 3, "m"), kernel_size=3,
                                        padding="same"),
}


class Call(nn.Module):
    def __init__(self, function, options):
        super().__init__()
        self.function, self.options = function, options

    def forward(self, *tensors):
        return self.function(*tensors, **self.options)


def exported(module, tensors, dimensions, strict):
    """`module` exported on `tensors`; dimensions: of each tensor those that change."""
    dynamic = tuple({d: Dim.DYNAMIC for d in of_one} for of_one in dimensions)
    shapes = (dynamic,) if isinstance(module, Call) else dynamic
    return torch.export.export(module, tensors, dynamic_shapes=shapes, strict=strict).module()


def at(sizes, specifications):
    return tuple(maker(*(sizes.get(size, size) for size in shape)) for maker, *shape in specifications)


def test_every_op_is_here():
    public = {name for name in dir(mbq) if not name.startswith("_") and callable(getattr(mbq, name))}
    others = {"BackendError", "backends", "choose_backends", "recomputation", "use_backend"}
    assert public - others == {name.partition(",")[0] for name in CASES}
    assert set(_raw_names) <= public


@pytest.mark.parametrize("strict", [False, pytest.param(True, marks=pytest.mark.long)], ids=["", "strict"])
@pytest.mark.parametrize("name", CASES)
def test_ops(name, strict):
    function, specifications, options = CASES[name]
    call = Call(function, options)
    dimensions = [[d for d, size in enumerate(shape) if isinstance(size, str)] for _, *shape in specifications]
    program = exported(call, at({"n": 4, "m": 20}, specifications), dimensions, strict)
    for sizes in ({"n": 7, "m": 9}, {"n": 2, "m": 130}):
        tensors = at(sizes, specifications)
        for got, want in zip(torch.utils._pytree.tree_leaves(program(*tensors)),
                             torch.utils._pytree.tree_leaves(call(*tensors)), strict=True):
            assert torch.equal(got, want)


def layers(kind):
    """A network with two quantized layers of `kind`, its input and the dimensions of that which change."""
    if kind == "linear, 2-D":
        return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)), (floats, "n", 6)
    if kind == "linear, 3-D":
        return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)), (floats, "n", "m", 6)
    if kind == "conv1d":
        return nn.Sequential(nn.Conv1d(2, 4, 3, padding=1), nn.ReLU(), nn.Conv1d(4, 4, 3, groups=2)), (
            floats, "n", 2, "m")
    return nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3, groups=4)), (floats, "n", 2, "m", 12)


@pytest.mark.parametrize("form, strict", [("converted", False), ("converted", True), ("learned offset", False),
                                          ("codes", False), ("planes", True)])
@pytest.mark.parametrize("kind", ["linear, 2-D", "linear, 3-D", "conv1d", "conv2d"])
def test_networks(kind, form, strict):
    """Also more rows than a deployed linear layer multiplies from its codes where it runs eagerly."""
    network, specification = layers(kind)
    options = {"activations": Learned(offset=True)} if form == "learned offset" else {"quantizer": "double-rounding"}
    model = mbq_train.convert(network, (8, 4), keep_float=(), **specs(**options))
    x, = at({"n": 4, "m": 12}, [specification])
    mbq_train.initialise(model, x)
    model = mbq_train.deploy(model.eval(), layout=form) if form in ("codes", "planes") else model.eval()
    mbq_train.set_bits(model, 4)
    dimensions = [[d for d, size in enumerate(specification[1:]) if isinstance(size, str)]]
    program = exported(model, (x,), dimensions, strict)
    for sizes in ({"n": 3, "m": 130}, {"n": 300, "m": 9}):
        x, = at(sizes, [specification])
        torch.testing.assert_close(program(x), model(x), rtol=0, atol=1e-6)
