"""QuantMultiheadAttention beside nn.MultiheadAttention."""

import copy

import pytest
import torch
from networks import one_thread  # noqa: F401
from torch import nn

from mbq_train import Learned, QuantLinear, convert, set_bits
from mbq_train.quantize.quantizer import quantizers

BITS = (8, 4, 2)
N, L, S, E, HEADS = 3, 4, 5, 8, 2


def attention(training=False, **options):
    """nn.MultiheadAttention with no parameter at zero, and its quantized form."""
    torch.manual_seed(0)
    source = nn.MultiheadAttention(E, HEADS, **options).train(training)
    with torch.no_grad():
        for parameter in source.parameters():
            parameter.copy_(torch.randn_like(parameter) / 2)
    model = convert(nn.Sequential(copy.deepcopy(source)), BITS, keep_float=(),
                    rules=[("0", {"activations": Learned(signed=True)})])
    return source, model


def in_float(model):
    set_bits(model, 32)
    return model[0]


def inputs(batch_first=False, kdim=E, vdim=E):
    generator = torch.Generator().manual_seed(1)
    tensors = [torch.randn(length, N, width, generator=generator) for length, width in ((L, E), (S, kdim), (S, vdim))]
    return [x.transpose(0, 1).contiguous() for x in tensors] if batch_first else tensors


def assert_same(ours, theirs):
    assert (ours[1] is None) == (theirs[1] is None)
    for a, b in zip(ours, theirs, strict=True):
        assert a is b is None or torch.isfinite(b).all()
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


BUILDS = [{}, {"batch_first": True}, {"bias": False}, {"kdim": 6, "vdim": 3}, {"add_bias_kv": True},
          {"add_zero_attn": True}, {"add_bias_kv": True, "add_zero_attn": True, "batch_first": True, "kdim": 6}]
PADDING = torch.tensor([[0, 0, 0, 0, 0], [0, 0, 0, 1, 1], [0, 1, 0, 0, 0]]).bool()
MASK = torch.tensor([[0, 1, 0, 0, 0], [0, 0, 0, 0, 1], [0, 0, 1, 0, 0], [1, 0, 0, 0, 1]]).bool()
BIAS = torch.linspace(-1, 1, N * HEADS * L * S).view(N * HEADS, L, S)
CALLS = [{}, {"need_weights": False}, {"average_attn_weights": False}, {"attn_mask": MASK},
         {"attn_mask": MASK, "need_weights": False}, {"attn_mask": BIAS}, {"attn_mask": BIAS[0]},
         {"attn_mask": BIAS > 0.9, "need_weights": False}, {"key_padding_mask": PADDING},
         {"key_padding_mask": PADDING.float(), "need_weights": False},
         {"key_padding_mask": PADDING, "attn_mask": MASK, "need_weights": False},
         {"key_padding_mask": PADDING.float(), "attn_mask": BIAS}]


def call_id(call):
    return "-".join(f"{name}={f'{value.dtype}{value.dim()}d' if torch.is_tensor(value) else value}"
                    for name, value in call.items()) or "plain"


@pytest.mark.parametrize("build", BUILDS, ids=str)
@pytest.mark.parametrize("call", CALLS, ids=call_id)
def test_float_path_is_multihead_attention(build, call):
    source, model = attention(**build)
    x = inputs(**{name: value for name, value in build.items() if name in ("batch_first", "kdim", "vdim")})
    assert_same(in_float(model)(*x, **call), source(*x, **call))


@pytest.mark.parametrize("build", BUILDS, ids=str)
@pytest.mark.parametrize("call", [{}, {"average_attn_weights": False}, {"need_weights": False},
                                  {"key_padding_mask": PADDING[1]}, {"attn_mask": BIAS[:HEADS], "need_weights": False},
                                  {"attn_mask": MASK, "key_padding_mask": PADDING[2]}], ids=call_id)
def test_unbatched_inputs(build, call):
    source, model = attention(**build)
    x = [tensor[:, 0] for tensor in inputs(kdim=build.get("kdim", E), vdim=build.get("vdim", E))]
    assert_same(in_float(model)(*x, **call), source(*x, **call))


@pytest.mark.parametrize("need_weights", [True, False])
@pytest.mark.parametrize("padding", [None, PADDING[:, :L].float()], ids=["no padding", "padding"])
def test_causal_hint(need_weights, padding):
    source, model = attention(batch_first=True)
    x = inputs(batch_first=True)[0]
    call = {"attn_mask": nn.Transformer.generate_square_subsequent_mask(L), "is_causal": True,
            "need_weights": need_weights, "key_padding_mask": padding}
    out = in_float(model)(x, x, x, **call)
    assert_same(out, source(x, x, x, **call))
    assert not torch.allclose(out[0], in_float(model)(x, x, x, key_padding_mask=padding)[0])


@pytest.mark.parametrize("need_weights", [True, False])
def test_dropout_draws_the_same_numbers(need_weights):
    source, model = attention(training=True, dropout=0.5)
    torch.manual_seed(3)
    results = [in_float(model)(*inputs(), need_weights=need_weights)]
    torch.manual_seed(3)
    results.append(source(*inputs(), need_weights=need_weights))
    assert_same(*results)
    assert not torch.allclose(results[0][0], source.eval()(*inputs())[0])


@pytest.mark.parametrize("need_weights", [True, False])
def test_autocast(need_weights):
    source, model = attention(add_bias_kv=True)
    call = {"need_weights": need_weights, "key_padding_mask": PADDING, "attn_mask": MASK}
    with torch.autocast("cpu", torch.bfloat16):
        ours, theirs = in_float(model)(*inputs(), **call), source(*inputs(), **call)
        set_bits(model, 8)
        out = model.train()[0](*inputs(), **call)[0]
    assert ours[0].dtype == theirs[0].dtype == out.dtype == torch.bfloat16
    torch.testing.assert_close(ours[0].float(), theirs[0].float(), rtol=0.02, atol=0.05)
    out.float().square().sum().backward()
    assert model[0].q_proj.weight.grad.dtype == model[0].bias_k.grad.dtype == torch.float32


def test_gradients_of_the_float_path():
    source, model = attention(batch_first=True)
    x = inputs(batch_first=True)
    in_float(model)(*x)[0].square().sum().backward()
    source(*x)[0].square().sum().backward()
    ours = torch.cat([model[0].q_proj.weight.grad, model[0].k_proj.weight.grad, model[0].v_proj.weight.grad])
    torch.testing.assert_close(ours, source.in_proj_weight.grad)
    torch.testing.assert_close(model[0].out_proj.bias.grad, source.out_proj.bias.grad)


def test_projections_are_quantized_and_attention_is_not():
    source, model = attention(training=True)
    x, layer = inputs(), model[0]
    _, weights = layer(*x)
    for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
        projection = getattr(layer, name)
        assert type(projection) is QuantLinear and projection.in_features == E
        assert projection.input_quantizer.initialised[0] and projection.weight_quantizer.layer_name == f"0.{name}"
    twin = copy.deepcopy(source)
    with torch.no_grad():
        twin.in_proj_weight.copy_(torch.cat([p.weight_quantizer(p.weight)
                                             for p in (layer.q_proj, layer.k_proj, layer.v_proj)]))
    hats = [p.input_quantizer(t) for p, t in zip((layer.q_proj, layer.k_proj, layer.v_proj), x, strict=True)]
    torch.testing.assert_close(weights, twin(*hats)[1])
    assert not torch.allclose(weights, source(*x)[1], rtol=1e-6)


def test_every_parameter_is_real_and_trains():
    source, model = attention(training=True, add_bias_kv=True)
    count = sum(parameter.numel() for parameter in source.parameters())
    own = {id(parameter) for quantizer in quantizers(model) for parameter in quantizer.parameters()}
    weights = [parameter for parameter in model.parameters() if id(parameter) not in own]
    assert sum(parameter.numel() for parameter in weights) == count and all(p.is_leaf for p in weights)
    assert len({parameter.untyped_storage().data_ptr() for parameter in weights}) == len(weights) == 10
    optimizer, before = torch.optim.SGD(model.parameters(), lr=0.1), [p.detach().clone() for p in weights]
    for _ in range(2):
        model[0](*inputs())[0].square().sum().backward()
        optimizer.step()
    moved = sum(not torch.equal(a, b) for a, b in zip(weights, before, strict=True))
    assert moved >= 9  # k_proj.bias alone has no gradient, apart from rounding


def test_frozen_packed_weights_stay_frozen():
    source = nn.MultiheadAttention(E, HEADS)
    source.in_proj_weight.requires_grad = False
    layer = convert(nn.Sequential(source), keep_float=())[0]
    assert not layer.q_proj.weight.requires_grad and layer.q_proj.bias.requires_grad
    assert layer.out_proj.weight is source.out_proj.weight


@pytest.mark.parametrize("build", [{}, {"kdim": 6, "vdim": 3}, {"bias": False}, {"add_bias_kv": True}], ids=str)
def test_loads_the_state_of_multihead_attention(build):
    source, _ = attention(**build)
    model = convert(nn.Sequential(nn.MultiheadAttention(E, HEADS, **build)), keep_float=()).eval()
    x = inputs(**{name: value for name, value in build.items() if name in ("kdim", "vdim")})
    model.load_state_dict({f"0.{key}": value for key, value in source.state_dict().items()})
    assert_same(in_float(model)(*x), source(*x))
    assert_same(copy.deepcopy(in_float(model))(*x), source(*x))


@pytest.mark.parametrize("call, error, match", [
    ({"attn_mask": MASK[:2]}, ValueError, r"attn_mask must have shape \(4, 5\) or \(6, 4, 5\), got \(2, 5\)"),
    ({"key_padding_mask": PADDING[0]}, ValueError, r"key_padding_mask must have shape \(3, 5\), got \(5,\)"),
    ({"attn_mask": MASK.long()}, TypeError, "attn_mask must be bool or floating point, got torch.int64"),
    ({"is_causal": True}, ValueError, "attn_mask must be given with is_causal"),
])
def test_refuses_masks(call, error, match):
    _, model = attention()
    with pytest.raises(error, match=f"QuantMultiheadAttention: {match}"):
        in_float(model)(*inputs(), **call)


def test_refuses_shapes_and_nested_tensors():
    (_, model), (query, key, value) = attention(), inputs()
    with pytest.raises(ValueError, match=r"must all have 2 or all 3 dimensions.*\(4, 3, 8\), \(4, 3, 8\), \(5, 3, 8\)"):
        in_float(model)(query, query, value)
    with pytest.raises(ValueError, match="key must have the batch size of query, 3, got 1"):
        in_float(model)(query, key[:, :1], value[:, :1])
    nested = torch.nested.nested_tensor([torch.randn(3, E), torch.randn(2, E)])
    with pytest.raises(TypeError, match="must be dense tensors, got a nested one"):
        in_float(model)(nested, nested, nested)
