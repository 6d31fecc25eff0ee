"""export_onnx: a trained network at one bit-width as an ONNX file of standard operators."""

import math
import warnings

import torch
import torch.utils._pytree as pytree
from torch import nn

from .._errors import first_line
from .._packages import required
from ..checkpoint import not_dense
from ..conversion.call_order import arguments, try_example
from ..files import atomic_path
from ..quantize.bits import bit_states, in_mode, set_bits
from .one_bit_width import DEQUANTIZE, OPSET, at_one_bit_width, packed_codes

_LARGEST = 2**31 - 1  # bytes of a protobuf message


def export_onnx(model: nn.Module, path, *, bits: int, example, dynamic_batch: bool = True,
                metadata: dict[str, str] | None = None) -> None:
    """Write `model` at `bits` bits as an ONNX file (opset 21), its quantized weights as integer codes.

    A weight is an initializer of codes, Cast and Mul by a scale per output channel, or per group before a Reshape:
    int8, or int4, two codes a byte, up to 4 bits; code * scale is what training computed with, bit for bit. That of
    round-clamp has the bit-width of the layer where it has its own, and in the sign-magnitude form a sign beside it. An
    input is QuantizeLinear to 8 bits, Clip to the codes of `bits` bits, Cast and Mul (at 1 signed bit the sign),
    between Sub and Add for a real offset: training's division and rounding; only NaN has no code. With Dynamic() it is
    ReduceMin, ReduceMax, Div, Round, Clip and Mul: training's values too, bit for bit in onnxruntime, of tokens without
    NaN and infinity. BatchNorm after a float layer is folded into it.

    There is no DequantizeLinear: behind one, runtimes with their default settings round biases, activations or float
    weights to 8 bits where training did not (onnxruntime: WeightBiasQuantization, MatMulNBits). Without one the
    products are those of float32, and onnxruntime makes float weights of the codes once, when it loads the file.

    Args:
        model: what `convert` returned, float32, with first values for all scales; left as it is.
        path: the file, written whole or not at all.
        bits: one of the trained bit-widths.
        example: a tensor, a tuple of arguments or a dict of keyword arguments to call the model with, in eval mode.
        dynamic_batch: dimension 0 of the tensors in example, as long as that of the first, has any size in the file;
            False for a model that fixes it, as by len(x), which x.shape[0] does not.
        metadata: more strings for the file's metadata.

    Raises:
        TypeError: bits is not an integer, example none of these, a tensor of the model not dense or not float32,
        metadata no text. ValueError: bits was not trained; nothing is quantized; the model does not run on example or
        cannot be exported; a layer of 8 bits in round-clamp's sign-magnitude form; the file would exceed 2 GiB.
        RuntimeError: a scale has no value yet. OSError: the disk is full. ImportError: onnx or onnxscript is missing.
    """
    for package in ("onnx", "onnxscript"):
        required("export_onnx", package)
    _check_bits(model, bits)
    metadata = dict(metadata or {})
    if not all(isinstance(part, str) for item in metadata.items() for part in item):
        raise TypeError(f"export_onnx: metadata must map strings to strings, got {metadata!r}")
    args, kwargs = arguments("export_onnx", example)
    _check_tensors(model)
    frozen = at_one_bit_width(model, bits)
    with in_mode(model, training=False):
        set_bits(model, bits)
        try_example("export_onnx", model, example)
    program = _program(frozen, args, kwargs, dynamic_batch)
    _tidy(program, packed_codes(frozen), {**metadata, "mbq.bits": str(bits)})
    proto = _checked_proto(program)
    with atomic_path(path) as temporary:
        temporary.write_bytes(proto.SerializeToString(deterministic=True))


def _check_bits(model: nn.Module, bits: int) -> None:
    if isinstance(bits, bool) or not isinstance(bits, int):
        raise TypeError(f"export_onnx: bits must be an integer, got {bits!r}")
    for state in bit_states(model):
        if bits not in state.trained:
            raise ValueError(f"export_onnx: bits must be one of {', '.join(map(str, state.trained))}, which were "
                             f"trained, got {bits}")


def _check_tensors(model: nn.Module) -> None:
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if kind := not_dense(tensor):
            raise TypeError(f"export_onnx: {name} must be a dense tensor, got {kind}")
        is_float = tensor.is_floating_point() or tensor.is_complex() or tensor.is_quantized
        if is_float and tensor.dtype != torch.float32:
            raise TypeError(f"export_onnx: model must be float32, got {tensor.dtype} in {name}")


def _program(frozen: nn.Module, args: tuple, kwargs: dict, dynamic_batch: bool):
    """Return the network as an ONNXProgram of torch.onnx, whose nodes are the operators in `frozen`."""
    tensors = [leaf for leaf in pytree.tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor) and leaf.dim()]
    if not tensors or not len(tensors[0]):
        raise ValueError("export_onnx: example must hold a batch of at least one, got none")
    batch = len(tensors[0]) if dynamic_batch else -1

    def in_batch(leaf):
        return isinstance(leaf, torch.Tensor) and leaf.dim() > 0 and len(leaf) == batch

    def prepared(leaf):  # two at least: torch.export takes a size of one for a constant
        leaf = leaf.detach().cpu() if isinstance(leaf, torch.Tensor) else leaf
        return torch.cat([leaf, leaf]) if batch == 1 and in_batch(leaf) else leaf

    def marked(mark):
        return pytree.tree_map(lambda leaf: {0: mark} if in_batch(leaf) else None, args or kwargs)

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of torch about itself
            exported = torch.export.export(frozen, *pytree.tree_map(prepared, (args, kwargs)),
                                           dynamic_shapes=marked(torch.export.Dim.DYNAMIC))
            return torch.onnx.export(exported, (), dynamo=True, opset_version=OPSET, verbose=False,
                                     dynamic_shapes=marked("batch"))
    except Exception as error:
        hint = "; dynamic_batch=False allows a model that fixes its batch" if dynamic_batch else ""
        raise ValueError(f"export_onnx: model must be one that torch.onnx.export takes, got {type(frozen).__name__} "
                         f"({type(error).__name__}: {first_line(error)}{hint})") from error


def _tidy(program, packed: set[str], metadata: dict[str, str]) -> None:
    """Standard operators alone, the codes named `packed` two a byte, nothing of the place where the file was made."""
    import ml_dtypes
    import onnx_ir as ir

    graph = program.model.graph
    _write_out_dequantize(program.model)
    program.model.metadata_props.clear()
    program.model.metadata_props.update(metadata)
    if len(graph.outputs) == 1:
        graph.outputs[0].name = "output"
    values = [*graph.inputs, *graph.initializers.values(), *(value for node in graph for value in node.outputs)]
    for part in (*graph, *values):
        part.metadata_props.clear()  # torch writes lines of source code, with their paths
    for name in packed & graph.initializers.keys():
        stored = graph.initializers[name]
        signed = stored.dtype == ir.DataType.INT8
        codes = stored.const_value.numpy().astype(ml_dtypes.int4 if signed else ml_dtypes.uint4)
        stored.const_value = ir.tensor(codes, name=name)
        stored.dtype = ir.DataType.INT4 if signed else ir.DataType.UINT4


def _write_out_dequantize(model) -> None:
    """Put Cast and Mul in place of every `DEQUANTIZE`, now that nothing folds them into float weights any more."""
    import onnx_ir as ir

    for node in [node for node in model.graph if (node.domain, node.op_type) == DEQUANTIZE]:
        cast = ir.node("Cast", node.inputs[:1], {"to": ir.DataType.FLOAT})
        product = ir.node("Mul", [cast.outputs[0], node.inputs[1]])
        ir.convenience.replace_nodes_and_values(model.graph, node, [node], [cast, product], node.outputs,
                                                product.outputs)
    model.opset_imports.pop(DEQUANTIZE[0], None)


def _checked_proto(program):
    import onnx

    size = sum(math.ceil(value.const_value.nbytes) for value in program.model.graph.initializers.values())
    if size > _LARGEST:
        raise ValueError(f"export_onnx: model must fit into a file of 2 GiB, got {size / 2**30:.1f} GiB of tensors")
    proto = program.model_proto
    onnx.checker.check_model(proto, full_check=True)
    return proto
