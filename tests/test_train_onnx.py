"""export_onnx: the file computes what the network does, its weights are the trained ones, bit for bit, and small."""

import re

import numpy as np
import onnx
import pytest
import torch
from networks import (  # noqa: F401
    conv1d_network,
    depthwise_network,
    encoder_network,
    llama_network,
    one_thread,
    small_network,
    specs,
    vision_transformer,
)
from onnx_files import different, images, run, trained, weights_of
from torch import nn

import mbq_train
from mbq_lab import build_model
from mbq_train import Float, Learned, convert, export_onnx, initialise, set_bits

NETWORKS = {
    "small": (small_network, images, {"bits": (8, 1)}),
    "small, double rounding": (small_network, images, {"quantizer": "double-rounding", "rounding": "half_up"}),
    "offsets": (small_network, images, {"learn_offset": True, "batch_norm": "shared", "bits": (3,)}),
    "weights alone": (small_network, images, {"rules": [("*", {"activations": Float()})], "bits": (6,)}),
    "depthwise": (depthwise_network, images, {"bits": (5,)}),
    "conv1d": (conv1d_network, lambda: torch.randn(4, 2, 16), {"bits": (8,), "learn_offset": True}),
    "llama": (llama_network, lambda: torch.randint(0, 7, (4, 6)), {"quantizer": "double-rounding", "bits": (4,)}),
    "encoder": (lambda: different(encoder_network(batch_first=False)), lambda: torch.randn(5, 4, 8), {"bits": (4,)}),
    "resnet8": (lambda: build_model("resnet8", classes=3, in_channels=1, image_size=(8, 8)), images, {"bits": (8,)}),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_the_file_computes_what_the_network_does(tmp_path, name):
    make, example, options = NETWORKS[name]
    model = trained(make(), x := example(), **options)
    layers = {name: layer for name, layer in model.named_modules() if hasattr(layer, "weight_quantizer")}
    for bits in options.get("bits", (8, 4, 2)):
        export_onnx(model, tmp_path / "file.onnx", bits=bits, example=x)
        set_bits(model, bits)
        for batch, optimised in ((x, True), (x, False), (x[:1], True), (torch.cat([x, x, x[:1]]), True)):
            want = model(batch).detach()
            got, = run(tmp_path / "file.onnx", batch, optimised=optimised)
            torch.testing.assert_close(torch.from_numpy(got), want, rtol=0, atol=1e-5 * float(want.abs().max()))
        stored = weights_of(tmp_path / "file.onnx")
        assert stored.keys() == layers.keys()
        for name, (weight, dtype) in stored.items():
            assert np.array_equal(weight, layers[name].weight_quantizer(layers[name].weight).detach().numpy())
            assert dtype == (onnx.TensorProto.INT4 if bits <= 4 else onnx.TensorProto.INT8)


class Kinds(nn.Module):
    """Layers of every kind with biases, between rounded inputs: Linear on 2-D and 3-D, grouped convolutions.

    Part p at b bits is quantized in the way p + b: over all bit-widths every part is in every way.
    """

    WAYS = ({}, {"activations": Learned(offset=True)}, {"rules": [("*", {"activations": Float()})]},
            {"weight_correction": True}, {"quantizer": "double-rounding"}, {"quantizer": "round-clamp"})
    SHAPES = ((12,), (3, 4), (2, 6), (2, 3, 2))  # of a sample of each part

    def __init__(self, bits):
        super().__init__()
        parts = (nn.Sequential(nn.Linear(12, 24), nn.ReLU(), nn.Linear(24, 4)),
                 nn.Sequential(nn.Linear(4, 24), nn.ReLU(), nn.Linear(24, 4)),
                 nn.Sequential(nn.Conv1d(2, 4, 2, groups=2), nn.ReLU(), nn.Conv1d(4, 6, 2, groups=2), nn.ReLU(),
                               nn.Conv1d(6, 3, 2)),
                 nn.Sequential(nn.Conv2d(2, 4, 2, groups=2, padding=1), nn.ReLU(), nn.MaxPool2d(2),
                               nn.Conv2d(4, 6, 1, groups=2), nn.ReLU(), nn.Conv2d(6, 3, 1)))
        ways = [way for way in self.WAYS if bits > 1 or "double-rounding" not in way.values()]
        self.parts = nn.ModuleList(convert(part, (bits,), keep_float=(), **specs(**ways[(p + bits) % len(ways)]))
                                   for p, part in enumerate(parts))

    def forward(self, x):
        return [part(x.unflatten(1, shape)) for part, shape in zip(self.parts, self.SHAPES, strict=True)]


@pytest.mark.parametrize("bits", range(1, 9))
def test_default_sessions_compute_what_the_network_does(tmp_path, bits):
    """All layers, quantizers and bit-widths; no product in integers, and no weight in float in the file."""
    torch.manual_seed(bits)
    model, path, x = Kinds(bits), tmp_path / "file.onnx", torch.randn(16, 12)
    for part, shape in zip(model.parts, model.SHAPES, strict=True):
        initialise(part, x.unflatten(1, shape))
    set_bits(model.eval().requires_grad_(False), bits)
    export_onnx(model, path, bits=bits, example=x)
    for got, want in zip(run(path, x, dump=tmp_path / "optimised.onnx"), model(x), strict=True):
        torch.testing.assert_close(torch.from_numpy(got), want, rtol=0, atol=1e-6 * float(want.abs().max()))
    operators = {node.op_type for node in onnx.load(tmp_path / "optimised.onnx").graph.node}
    assert "QuantizeLinear" in operators and "DequantizeLinear" not in operators
    assert not [name for name in operators if re.search("QLinear|NBits|Integer", name)]
    largest = {dtype: max((np.prod(tensor.dims) for tensor in onnx.load(path).graph.initializer
                           if (tensor.data_type == onnx.TensorProto.FLOAT) == (dtype == "float")), default=0)
               for dtype in ("float", "codes")}
    assert largest == {"float": 24, "codes": 12 * 24}


def test_a_linear_layer_on_a_vector(tmp_path):
    model = trained(nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3)), x := torch.randn(6), bits=(2,),
                    keep_float=())
    export_onnx(model, tmp_path / "file.onnx", bits=2, example=x, dynamic_batch=False)
    np.testing.assert_allclose(run(tmp_path / "file.onnx", x)[0], model(x).detach(), rtol=0, atol=1e-6)


def edges(scale, bits, signed, offset):
    """Ties, clamp edges, one ulp around each, zeros, infinities and far values, as inputs x."""
    lo, hi = mbq_train.quantize.bits.code_range(bits, signed)
    v = torch.cat([torch.arange(2 * lo - 5, 2 * hi + 6) / 2, torch.randn(200) * hi])
    x = v * scale + offset
    inf = torch.tensor(float("inf"))
    special = torch.tensor([0.0, -0.0, 1e-45, -1e-45, 3e38, -3e38, float("inf"), -float("inf")])
    return torch.cat([x, torch.nextafter(x, inf), torch.nextafter(x, -inf), special])


class Side(nn.Module):
    """Layers that read the same tensor, each with an input quantizer of its own."""

    def __init__(self):
        super().__init__()
        self.signed, self.unsigned, self.signed_offset, self.offset = (nn.Linear(1, 2) for _ in range(4))

    def forward(self, x):
        return self.signed(x), self.unsigned(x), self.signed_offset(x), self.offset(x)


@pytest.mark.parametrize("bits", [8, 7, 4, 2, 1])
def test_inputs_are_rounded_as_in_training_bit_for_bit(tmp_path, bits):
    model = convert(Side(), (bits,), keep_float=(), rules=[
        ("*", {"activations": Learned(signed=True)}), ("*offset", {"activations": Learned(offset=True)}),
        ("unsigned", {"activations": Learned(signed=False)}),
        ("offset", {"activations": Learned(signed=False)})])
    initialise(model, torch.rand(5, 1))
    for layer in (model.signed, model.unsigned, model.signed_offset, model.offset):
        layer.input_quantizer.start(bits, torch.tensor(0.0731), torch.tensor(0.0731))
    export_onnx(model, tmp_path / "file.onnx", bits=bits, example=torch.rand(5, 1))
    proto = onnx.load(tmp_path / "file.onnx")
    products = [node for node in proto.graph.node if node.op_type == "Gemm"]
    proto.graph.output.extend(onnx.ValueInfoProto(name=node.input[0]) for node in products)
    for layer, place in ((model.signed, 0), (model.unsigned, 1), (model.signed_offset, 2), (model.offset, 3)):
        quantizer = layer.input_quantizer
        x = edges(0.0731, bits, quantizer.signed, 0.0731 * (quantizer.offsets is not None)).reshape(-1, 1)
        for optimised in (True, False):
            got = torch.from_numpy(run(proto.SerializeToString(), x, optimised=optimised)[4 + place])
            assert torch.equal(got, quantizer(x)) and len(got.unique()) == 2**bits


class TwoInputs(nn.Module):
    """A layer used twice under two names, and an input whose first dimension is no batch."""

    def __init__(self):
        super().__init__()
        self.first, self.layer, self.last = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 2)
        self.again = self.layer

    def forward(self, x, shift, factor=1.0):
        return self.last(self.again(self.layer(self.first(x)).relu() + shift).relu()) * factor, x + 1


@pytest.mark.parametrize("call", ["tuple", "dict"])
def test_several_inputs_and_outputs_and_a_shared_layer(tmp_path, call):
    x, shift = torch.randn(3, 6), torch.randn(6)
    model = convert(TwoInputs(), (4,))
    with torch.no_grad():
        model(x, shift)
    example = (x, shift) if call == "tuple" else {"x": x, "shift": shift, "factor": 1.0}
    export_onnx(model, tmp_path / "file.onnx", bits=4, example=example)
    for batch in (x, x[:1]):
        for got, want in zip(run(tmp_path / "file.onnx", batch, shift), model.eval()(batch, shift), strict=True):
            np.testing.assert_allclose(got, want.detach(), rtol=0, atol=1e-5)
    assert len(weights_of(tmp_path / "file.onnx")) == 1


def test_channels_last_and_a_batch_of_one(tmp_path):
    model = trained(small_network().to(memory_format=torch.channels_last), images(), batch_norm="shared")
    export_onnx(model, tmp_path / "file.onnx", bits=8, example=images(1).to(memory_format=torch.channels_last))
    np.testing.assert_allclose(run(tmp_path / "file.onnx", images())[0], model(images()).detach(), rtol=0, atol=1e-5)


def test_a_model_that_fixes_its_batch(tmp_path):
    """len(x) is a number to torch.export."""
    model, path = trained(vision_transformer(), images()), tmp_path / "file.onnx"
    with pytest.raises(ValueError, match="model must be one that torch.onnx.export takes, got VisionTransformer .*"
                                         "dynamic_batch=False allows"):
        export_onnx(model, path, bits=8, example=images())
    assert not path.exists()
    export_onnx(model, path, bits=8, example=images(), dynamic_batch=False)
    np.testing.assert_allclose(run(path, images())[0], model(images()).detach(), rtol=0, atol=1e-5)
