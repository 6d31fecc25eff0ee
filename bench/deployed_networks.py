"""The forms of one trained network, each at one bit-width: weights, logits, and what the layers take and give."""

import copy
from typing import NamedTuple

import numpy as np
import onnx
import onnxruntime
import torch
from torch import nn

import mbq_store
from mbq_train import deploy, export_onnx, export_store, set_bits


class Trace(NamedTuple):
    """Logits of a batch, and by layer (input before it is quantized, output)."""
    logits: torch.Tensor
    layers: dict[str, tuple[torch.Tensor, torch.Tensor]]


class TorchNetwork:
    """`model` at `bits` bits; weight(layer) gives the weight that a layer of it computes with."""

    def __init__(self, model: nn.Module, names, bits: int, weight):
        self.model, self.bits = model, bits
        set_bits(model, bits)
        layers = {name: model.get_submodule(name) for name in names}
        self.weights = {name: weight(layer).detach().numpy().copy() for name, layer in layers.items()}
        self.seen = {}
        for name, layer in layers.items():
            layer.register_forward_hook(lambda _, x, y, name=name: self.seen.update({name: (x[0], y)}))

    def __call__(self, images: torch.Tensor) -> Trace:
        set_bits(self.model, self.bits)
        return Trace(self.model(images), dict(self.seen))


class OnnxNetwork:
    """The file at `path` in onnxruntime: logits of the session that anybody gets, layers of one that shows them too."""

    def __init__(self, path, names):
        proto = onnx.load(path)
        self.session = _session(proto)
        makers = {output: node for node in proto.graph.node for output in node.output}
        constants = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in proto.graph.initializer}
        self.weights, self.places = {}, []
        for name in names:
            codes, scale = (constants[f"{name}.weight_quantizer.{part}"] for part in ("codes", "scale"))
            self.weights[name] = codes.astype(np.float32) * scale
            self.places.append((name, *_ends(proto.graph, makers, f"{name}.weight_quantizer.codes")))
        proto.graph.output.extend(onnx.ValueInfoProto(name=value) for _, *ends in self.places for value in ends)
        self.shown = _session(proto)

    def __call__(self, images: torch.Tensor) -> Trace:
        feed = {self.session.get_inputs()[0].name: images.numpy()}
        logits, = self.session.run(None, feed)
        _, *values = map(torch.from_numpy, self.shown.run(None, feed))
        names, pairs = (name for name, *_ in self.places), zip(values[::2], values[1::2], strict=True)
        return Trace(torch.from_numpy(logits), dict(zip(names, pairs, strict=True)))


def _session(proto) -> onnxruntime.InferenceSession:
    """With everything at its default but the threads."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    return onnxruntime.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])


def _ends(graph, makers, codes: str) -> tuple[str, str]:
    """Names of what goes into and what comes out of the layer whose weight has these codes."""
    def user(value):
        return next(node for node in graph.node if value in node.input)

    node = user(codes)
    while node.op_type not in ("Conv", "Gemm", "MatMul"):
        node = user(node.output[0])
    before = makers[node.input[0]]
    has_offset = before.op_type == "Add"
    while before.op_type != "QuantizeLinear":
        before = makers[before.input[0]]
    before = makers[before.input[0]] if has_offset else before
    following = [other for other in graph.node if node.output[0] in other.input]
    adds_bias = node.op_type == "MatMul" and following[0].op_type == "Add" and following[0].input[1].endswith(".bias")
    return before.input[0], (following[0] if adds_bias else node).output[0]


def deployments(model: nn.Module, names, bits: int, images: torch.Tensor, folder) -> dict:
    """{name: network} of every form of `model` at `bits` bits; files are written to `folder`."""
    export_store(model, folder / "store")
    export_onnx(model, folder / "onnx", bits=bits, example=images[:2])
    twin = copy.deepcopy(model)
    with mbq_store.open(folder / "store") as store:
        for name in names:
            layer = twin.get_submodule(name)
            layer.weight.data, layer.weight_quantizer = torch.from_numpy(store.dequantize(name, bits)), nn.Identity()
    networks = {"mbq_store": TorchNetwork(twin, names, bits, lambda layer: layer.weight)}
    for layout in ("codes", "planes"):
        deployed = deploy(copy.deepcopy(model), layout=layout)
        networks[f"deploy, {layout}"] = TorchNetwork(deployed, names, bits,
                                                     lambda layer: layer.weight_at(bits, torch.empty(0)))
    return networks | {"onnxruntime": OnnxNetwork(folder / "onnx", names)}
