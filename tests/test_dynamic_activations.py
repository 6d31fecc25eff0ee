"""Dynamic(): inputs whose range is that of each token, measured in the call."""

import copy

import compiled_networks
import onnx
import pytest
import torch
from networks import one_thread, small_network  # noqa: F401
from onnx_files import run
from torch import nn

import mbq_kernels as mbq
from mbq_lab import Options
from mbq_train import (
    BitState,
    DoubleRounding,
    Dynamic,
    DynamicQuantizer,
    Float,
    Learned,
    RoundClamp,
    add_bits,
    convert,
    deploy,
    export_onnx,
    load_quantized,
    recompute_quantized,
    save_checkpoint,
    scales,
    set_bits,
    set_layer_bits,
)

RANGES = pytest.mark.parametrize("symmetric", [False, True], ids=["asymmetric", "symmetric"])


def linear(bits=(8, 4, 2), activations=None, **options):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 3))
    return convert(model, bits, activations=activations or Dynamic(), keep_float=(), **options)


def slow(x, bits, symmetric):
    """x_hat and which elements are inside, token by token in float32; codes are 0 .. 2^bits - 1, or -hi .. hi."""
    values, inside, hi = [], [], 2 ** (bits - 1) - 1 if symmetric else 2**bits - 1
    lo = -hi if symmetric else 0
    for token in x.reshape(-1, x.shape[-1]):
        least, greatest = token.amin().clamp(max=0), token.amax().clamp(min=0)
        scale = (token.abs().amax() if symmetric else greatest - least) / hi
        scale = scale.clamp(min=torch.finfo(torch.float32).tiny)
        zero_point = 0 if symmetric else (0 - (least / scale).round()).clamp(lo, hi)
        code = (token * (1 / scale)).round() + zero_point
        values.append((code.clamp(lo, hi) - zero_point) * scale)
        inside.append((code >= lo) & (code <= hi))
    return torch.stack(values).reshape(x.shape), torch.stack(inside).reshape(x.shape)


def tokens(width=40):
    torch.manual_seed(0)
    x = torch.randn(3, 4, width) * torch.logspace(-3, 3, 12).reshape(3, 4, 1)
    x[0, 0], x[0, 1], x[0, 2] = 0, x[0, 1].abs() + 1, -1
    return x


@RANGES
@pytest.mark.parametrize("bits", range(2, 9))
def test_values_and_gradients_are_those_of_a_slow_formula(bits, symmetric):
    quantizer, x = DynamicQuantizer(BitState((bits,)), symmetric=symmetric), tokens().requires_grad_()
    x_hat, grad = quantizer(x), torch.randn(3, 4, 40)
    want, inside = slow(x.detach(), bits, symmetric)
    assert torch.equal(x_hat, want)
    assert torch.equal(torch.autograd.grad(x_hat, x, grad)[0], torch.where(inside, grad, 0))
    hi = 2 ** (bits - 1) - 1
    lo = -hi if symmetric else -hi - 1
    assert torch.equal(x_hat, mbq.fake_quantize_dynamic(x, quant_min=lo, quant_max=hi, symmetric=symmetric)[0])
    assert torch.equal(quantizer.eval()(x), x_hat)
    if symmetric:
        torch.testing.assert_close(x_hat.abs().amax(-1), x.detach().abs().amax(-1))  # the largest has a code of its own
    assert torch.equal(quantizer(x[1:2, 2:]), x_hat[1:2, 2:])  # no token has an effect on another


def test_one_bit_has_zero_and_the_larger_end():
    x_hat = DynamicQuantizer(BitState((1,)))(torch.tensor([[-1.0, 0.2, 3.0], [-3.0, 0.2, 1.0]]))
    assert x_hat.tolist() == [[0, 0, 4], [-4, 0, 0]]


def test_float_empty_and_other_dtypes():
    state = BitState((8, 4))
    quantizer, x = DynamicQuantizer(state), tokens()
    state.select(32)
    assert quantizer(x) is x
    state.select(4)
    for shape in ((0, 5), (2, 0), (2, 0, 5)):
        assert quantizer(torch.empty(shape)).shape == shape
    for dtype in (torch.bfloat16, torch.float16, torch.float64):
        assert quantizer(x.to(dtype)).dtype == dtype
    with torch.autocast("cpu", torch.bfloat16):
        low = quantizer(x.requires_grad_())
        assert low.dtype == torch.bfloat16 and quantizer(x.double()).dtype == torch.float64
    assert torch.equal(low, quantizer(x).bfloat16())
    low.float().sum().backward()
    assert x.grad.dtype == torch.float32 and x.grad.any()


def test_nothing_is_kept_and_nothing_to_initialise(tmp_path):
    model, x = linear(activations=Dynamic(symmetric=True)), torch.randn(5, 6)
    assert repr(model[0].input_quantizer) == "DynamicQuantizer(bits=8, 4, 2, symmetric, range per token)"
    assert not list(model[0].input_quantizer.parameters())
    assert not any("input_quantizer" in key and not key.endswith("layer_bits") for key in model.state_dict())
    for bits in (8, 4, 2):
        with set_bits(model, bits):
            model(x)  # first values of the weights
    save_checkpoint(tmp_path / "file", model)
    other = load_quantized(tmp_path / "file", nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 3)))
    assert other[2].specs.activations == Dynamic(symmetric=True)
    for twin in (other, copy.deepcopy(model)):
        for bits in (8, 4, 2, 32):
            with set_bits(twin, bits), set_bits(model, bits):
                assert torch.equal(twin(x), model(x))


def test_bit_widths_of_inputs():
    x = tokens(6)
    fixed, follows = linear(activations=Dynamic(bits=4), example=x), linear(example=x)
    with set_bits(fixed, 2), set_bits(follows, 4):
        assert torch.equal(fixed[0].input_quantizer(x), follows[0].input_quantizer(x))
    set_layer_bits(follows, {"0": 2})
    assert torch.equal(follows[0].input_quantizer(x), slow(x, 2, False)[0])
    assert torch.equal(follows[2].input_quantizer(x), slow(x, 8, False)[0])
    added = add_bits(linear(example=x), (6, 1), [])
    with set_bits(added, 6):
        assert torch.equal(added[0].input_quantizer(x), slow(x, 6, False)[0])
    assert len(scales(linear(weights=RoundClamp()))) == 0


def test_two_compiles_serve_all_bit_widths():
    """With scales of groups beside it, and both ranges."""
    x, rules = torch.randn(4, 6), [("2", {"activations": Dynamic(symmetric=True)})]
    model = linear((8, 6, 4, 2), weights=Learned(group_size=2), rules=rules, example=x)
    compiled_networks.check_two_compiles(model, x, lambda bits: [f"0.weight_quantizer.scales.{bits}"])


def test_inputs_are_made_again_in_backward():
    kept, again = linear(example=torch.randn(4, 6)), linear(example=torch.randn(4, 6))
    again.load_state_dict(kept.state_dict())
    recompute_quantized(again)
    found = []
    for model in (kept, again):
        x = torch.randn(64, 6, generator=torch.Generator().manual_seed(3)).requires_grad_()
        graph, quantized = model(x), model[0].input_quantizer(x)
        found.append(sum(torch.equal(each, quantized) for each in graph_tensors(graph)))
        graph.square().sum().backward()
        found.append([x.grad, *(p.grad for p in model.parameters() if p.grad is not None)])
    assert found[0] == 1 and found[2] == 0 and all(map(torch.equal, found[1], found[3]))


def graph_tensors(out):
    """Tensors that the nodes of a graph have saved as they are."""
    nodes, seen = [out.grad_fn], set()
    while nodes:
        node = nodes.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        nodes += [following for following, _ in node.next_functions]
        for name in dir(node):
            if name.startswith("_raw_saved"):
                value = getattr(node, name)
                for each in value if isinstance(value, (list, tuple)) else [value]:
                    if isinstance(data := getattr(each, "data", None), torch.Tensor):
                        yield data


class Side(nn.Module):
    """Layers that read the same tensor, each with a range of its own kind."""

    def __init__(self):
        super().__init__()
        self.asymmetric, self.symmetric = nn.Linear(40, 2), nn.Linear(40, 2)

    def forward(self, x):
        return self.asymmetric(x), self.symmetric(x)


@pytest.mark.parametrize("bits", [8, 2])
def test_onnx_files_round_as_training_does_bit_for_bit(tmp_path, bits):
    model, x = Side(), torch.cat([tokens(), torch.randn(60, 4, 40)])
    x[3, 0], x[3, 1], x[3, 2, 0] = 1e-38, torch.arange(40.0) - 20, 3e38
    convert(model, (bits,), keep_float=(), activations=Dynamic(), example=x,
            rules=[("symmetric", {"activations": Dynamic(symmetric=True)})])
    export_onnx(model, tmp_path / "file", bits=bits, example=x)
    proto = onnx.load(tmp_path / "file")
    products = [node for node in proto.graph.node if node.op_type == "MatMul"]
    proto.graph.output.extend(onnx.ValueInfoProto(name=node.input[0]) for node in products)
    for optimised in (True, False):
        for batch in (x, x[:1]):
            found = list(map(torch.from_numpy, run(proto.SerializeToString(), batch, optimised=optimised)))
            for place, layer in enumerate((model.asymmetric, model.symmetric)):
                assert torch.equal(found[2 + place], layer.input_quantizer(batch))
                torch.testing.assert_close(found[place], layer(batch), rtol=1e-5, atol=1e-4)


def test_deployed_networks_measure_too():
    x = torch.randn(4, 6)
    model = linear(weights=DoubleRounding(), example=x).eval()
    want = {bits: model(x) for bits in (8, 4, 2) if set_bits(model, bits)}
    deploy(model)
    for bits, outputs in want.items():
        with set_bits(model, bits):
            torch.testing.assert_close(model(x), outputs, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("error, message, options", [
    (ValueError, "Dynamic: per must be one of token, got 'tensor'", {"per": "tensor"}),
    (TypeError, "Dynamic: symmetric must be True or False, got None", {"symmetric": None}),
    (ValueError, "Dynamic: bits must be between 1 and 8, got 9", {"bits": 9})], ids=["per", "symmetric", "bits"])
def test_options_that_cannot_be(error, message, options):
    with pytest.raises(error) as raised:
        Dynamic(**options)
    assert str(raised.value).startswith(message)


def test_what_has_no_tokens_is_refused_by_name():
    with pytest.raises(ValueError, match=r"^3: activations must be Learned\(\) or Float\(\) for a convolution"):
        convert(small_network(), (4,), activations=Dynamic())
    mixed = convert(small_network(), (4,), activations=Dynamic(), rules=[(nn.Conv2d, {"activations": Float()})])
    assert isinstance(mixed[7].input_quantizer, DynamicQuantizer)
    with pytest.raises(ValueError, match="^0: bits must be at least 2 where the range of inputs is symmetric"):
        linear((2, 1), Dynamic(symmetric=True))
    with pytest.raises(ValueError, match="^0: bits must be at least 2 where the range of inputs is symmetric"):
        add_bits(linear((4,), Dynamic(symmetric=True), example=torch.randn(2, 6)), (1,), [])
    with pytest.raises(ValueError, match="set_layer_bits: 0: bits must be at least 2 where the range"):
        linear((4,), Dynamic(symmetric=True))[0].input_quantizer.check_own_bits(1)


def test_the_command_chooses_it():
    options = Options(activation_quantizer="dynamic", symmetric=True, activation_bits=6)
    assert options.activations == Dynamic(bits=6, symmetric=True) and options.weights == Learned()
    assert Options.from_json(options.to_json()) == options
    assert Options(activation_quantizer="float").activations == Float()
    with pytest.raises(ValueError, match="symmetric must be left alone unless activation_quantizer is dynamic, got "
                                         "True with 'learned'"):
        Options(symmetric=True)
    with pytest.raises(ValueError, match=r"activation_quantizer must be one of .*did you mean 'dynamic'"):
        Options(activation_quantizer="dynamics")
