"""export_onnx: the file computes what the network does, its weights are the trained ones, bit for bit, and small."""

import copy
import importlib.util
import re
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
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
from onnx.reference import ReferenceEvaluator
from torch import nn
from typer.testing import CliRunner

import mbq_lab
import mbq_train
from mbq_lab import build_model
from mbq_lab.command.app import app
from mbq_train import Float, Learned, convert, deploy, export_onnx, initialise, set_bits


def images(count=4, channels=1, size=8):
    return torch.randn(count, channels, size, size, generator=torch.Generator().manual_seed(1))


def trained(model, example, bits=(8, 4, 2), **options):
    model = convert(model, bits, **specs(**options))
    initialise(model, example)
    return model.eval()


def run(path, *inputs, optimised=True, dump=None):
    """Outputs of the file in onnxruntime's default session, or with graph optimisations off: those of its own nodes.

    dump: where to write what the optimisations made of the graph.
    """
    options = onnxruntime.SessionOptions()
    if not optimised:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    if dump:
        options.optimized_model_filepath, options.log_severity_level = str(dump), 3  # it warns that a file was wished
    source = path if isinstance(path, bytes) else str(path)
    session = onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])
    feed = {given.name: x.numpy() for given, x in zip(session.get_inputs(), inputs, strict=True)}
    return session.run(None, feed)


def weights_of(path):
    """{layer: (weight, code dtype)}, Cast and Mul of the codes evaluated by ONNX's own reference."""
    proto = onnx.load(path)
    constants = {tensor.name: tensor for tensor in proto.graph.initializer}
    found = {}
    for node in proto.graph.node:
        if node.op_type == "Cast" and node.input[0] in constants:
            product = next(other for other in proto.graph.node if node.output[0] in other.input)
            given = [constants[name] for name in (node.input[0], product.input[1])]
            graph = onnx.helper.make_graph([node, product], "weight", [],
                                           [onnx.ValueInfoProto(name=product.output[0])], given)
            one = onnx.helper.make_model(graph, opset_imports=proto.opset_import, ir_version=proto.ir_version)
            weight, = ReferenceEvaluator(one).run(None, {})
            found[node.input[0].removesuffix(".weight_quantizer.codes")] = weight, given[0].data_type
    return found


def different(model):
    """`model` whose layers are no copies of each other: a file holds equal tensors once."""
    for parameter in model.parameters():
        parameter.data.add_(0.01 * torch.randn_like(parameter))
    return model


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


def test_the_file_is_small_and_says_nothing_of_where_it_was_made(tmp_path):
    """Codes as bytes, and two a byte up to 4 bits; the same file every time."""
    model = nn.Sequential(nn.Linear(8, 256), nn.ReLU(), nn.Linear(256, 512), nn.ReLU(), nn.Linear(512, 512), nn.ReLU(),
                          nn.Linear(512, 3))
    as_float = sum(4 * parameter.numel() for parameter in model.parameters())
    model = trained(model, x := torch.rand(4, 8), quantizer="double-rounding")
    path = tmp_path / "file.onnx"
    for bits, share in ((8, 0.27), (4, 0.15), (2, 0.15)):
        export_onnx(model, path, bits=bits, example=x, metadata={"run": "seven"})
        data = path.read_bytes()
        assert len(data) <= share * as_float
        assert b".py" not in data and str(Path(__file__).parent).encode() not in data
        assert {p.key: p.value for p in onnx.load(path).metadata_props} == {"run": "seven", "mbq.bits": str(bits)}
        export_onnx(model, path, bits=bits, example=x, metadata={"run": "seven"})
        assert path.read_bytes() == data and list(tmp_path.iterdir()) == [path]


def test_weights_are_never_quantized_at_run_time(tmp_path):
    model = trained(small_network(), images())
    export_onnx(model, tmp_path / "file.onnx", bits=4, example=images())
    proto = onnx.load(tmp_path / "file.onnx")
    constants = {tensor.name for tensor in proto.graph.initializer}
    operators = [node.op_type for node in proto.graph.node]
    assert {node.domain for node in proto.graph.node} == {""} and proto.opset_import[0].version == 21
    assert [operators.count(name) for name in ("QuantizeLinear", "Clip", "Cast", "DequantizeLinear")] == [2, 2, 4, 0]
    assert not [n for n in proto.graph.node if n.op_type == "QuantizeLinear" and n.input[0] in constants]
    assert proto.graph.output[0].name == "output" and proto.graph.input[0].type.tensor_type.shape.dim[0].dim_param


def test_the_network_is_left_as_it_was(tmp_path):
    model = trained(small_network(), images()).train()
    set_bits(model, 2)
    before, twin = copy.deepcopy(model.state_dict()), copy.deepcopy(model)
    export_onnx(model, tmp_path / "file.onnx", bits=8, example=images())
    assert model.training and model[3].weight_quantizer.bit_state.bits == 2
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert torch.equal(model(images()), twin(images()))


class TwoInputs(nn.Module):
    """A layer used twice under two names, and an input whose first dimension is no batch."""

    def __init__(self):
        super().__init__()
        self.first, self.layer, self.last = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 2)
        self.again = self.layer

    def forward(self, x, shift, factor=1.0):
        return self.last(self.again(self.layer(self.first(x)).relu() + shift).relu()) * factor, x + 1


def test_corrected_weights_have_their_offset_in_the_file(tmp_path):
    model = trained(small_network(), x := images(), weight_correction=True)
    for bits in (8, 2):
        export_onnx(model, tmp_path / "file.onnx", bits=bits, example=x)
        set_bits(model, bits)
        want = model(x).detach()
        got, = run(tmp_path / "file.onnx", x)
        torch.testing.assert_close(torch.from_numpy(got), want, rtol=0, atol=1e-5 * float(want.abs().max()))


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


@pytest.mark.parametrize("change, error, message", [
    ({"model": small_network}, ValueError, "model must hold layers made by convert, not yet deployed, got Sequential"),
    ({"model": lambda: deploy(trained(small_network(), images(), quantizer="double-rounding"))}, ValueError,
     "model must hold layers made by convert, not yet deployed, got Sequential"),
    ({"model": lambda: trained(small_network(), images()).bfloat16(), "example": images().bfloat16()}, TypeError,
     r"model must be float32, got torch\.bfloat16 in 0\.weight"),
    ({"model": lambda: trained(small_network(), images(), quantizer="any-precision")}, ValueError,
     "quantizer must be learned, double-rounding or round-clamp, got any-precision"),
    ({"bits": 3}, ValueError, "bits must be one of 8, 4, 2, which were trained, got 3"),
    ({"bits": 32}, ValueError, "bits must be one of 8, 4, 2, which were trained, got 32"),
    ({"bits": True}, TypeError, "bits must be an integer, got True"),
    ({"bits": None}, TypeError, "bits must be an integer, got None"),
    ({"example": images(channels=2)}, ValueError, "example must be what Sequential can be called with, got an error"),
    ({"example": "image"}, TypeError, "example must be a tensor, a tuple of arguments or a dict"),
    ({"example": images()[:0]}, ValueError, "example must hold a batch of at least one, got none"),
    ({"metadata": {"a": 1}}, TypeError, "metadata must map strings to strings, got {'a': 1}"),
], ids=lambda value: value if isinstance(value, str) else "" if isinstance(value, type) else "/".join(value))
def test_what_cannot_be_exported_is_an_error(tmp_path, change, error, message):
    given = {"model": lambda: trained(small_network(), images()), "bits": 8, "example": images()} | change
    with pytest.raises(error, match=f"^export_onnx: {message}"):
        export_onnx(given.pop("model")(), tmp_path / "file.onnx", **given)
    assert not list(tmp_path.iterdir())


def test_scales_without_values_are_an_error_that_names_the_layer(tmp_path):
    with pytest.raises(RuntimeError, match="^3: ActivationQuantizer must have seen a training batch at 4 bits"):
        export_onnx(convert(small_network(), (8, 4)), tmp_path / "file.onnx", bits=4, example=images())


def test_missing_packages_large_files_and_full_disks(tmp_path, monkeypatch):
    from mbq_train.export import onnx as module

    model, path = trained(small_network(), images()), tmp_path / "file.onnx"
    path.write_text("old")

    def refused(error, message):
        with pytest.raises(error, match=message):
            export_onnx(model, path, bits=8, example=images())
        assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]

    def full(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(module, "_LARGEST", 500)
        refused(ValueError, "model must fit into a file of 2 GiB")
    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", full)
        refused(OSError, "No space left")
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "onnxscript" else find(name))
    refused(ImportError, r"package onnxscript must be installed, got none: pip install 'mbq-kernels\[onnx\]'")


def test_the_command(tmp_path):
    def mbq(*arguments):
        return CliRunner().invoke(app, [str(argument) for argument in arguments])

    path = tmp_path / "four.onnx"
    mbq("train", "--epochs", 1, "--float-epochs", 1, "--batch-size", 256, "--bits", "8,4", "--out", tmp_path / "run")
    done = mbq("export", tmp_path / "run", "--onnx", path, "--bits", 4)
    assert done.exit_code == 0 and "written: " in done.output, done.output
    x = images(5)
    model = mbq_lab.load_quantized(tmp_path / "run")
    set_bits(model, 4)
    np.testing.assert_allclose(run(path, x)[0], model(x).detach(), rtol=0, atol=1e-4)
    assert mbq("export", tmp_path / "run", "--onnx", path, "--bits", 8, "--batch", 3).exit_code == 0
    assert onnx.load(path).graph.input[0].type.tensor_type.shape.dim[0].dim_value == 3
    for arguments, message in (((), "--store or --onnx must name a file to write, got neither"),
                               (("--onnx", path), "--onnx needs --bits, one of 8, 4")):
        done = mbq("export", tmp_path / "run", *arguments)
        assert done.exit_code == 2 and message in done.output
    before, store = path.read_bytes(), tmp_path / "four.safetensors"
    for other, bits in ((path, 0), (tmp_path / "no/four.onnx", 4), (store, 4)):  # both or none
        done = mbq("export", tmp_path / "run", "--store", store, "--onnx", other, "--bits", bits)
        assert done.exit_code == 2 and len(done.stderr.splitlines()) == 1
    assert sorted(file.name for file in tmp_path.iterdir()) == ["four.onnx", "run"] and path.read_bytes() == before
    assert mbq("export", tmp_path / "run", "--store", store, "--onnx", path, "--bits", 4).exit_code == 0
    assert sorted(file.name for file in tmp_path.iterdir()) == ["four.onnx", "four.safetensors", "run"]
