"""Networks for export_onnx, and sessions that run its files."""

import onnx
import onnxruntime
import torch
from networks import specs
from onnx.reference import ReferenceEvaluator

from mbq_train import convert, initialise


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
