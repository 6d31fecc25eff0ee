"""nn.Transformer* with quantized parts: the fused paths of eval mode must not pass the quantizers by."""

import pytest
import torch
from networks import encoder_network, one_thread  # noqa: F401
from torch import nn

from mbq_train import QuantMultiheadAttention, convert, plan_conversion, set_bits

BITS = (8, 4, 2)


def eval_outputs(model, *args, **kwargs):
    """What two bit-widths give without gradients, with the fused paths allowed and with them forbidden."""
    model.eval()
    outputs = []
    with torch.no_grad():
        for fused in (True, False):
            torch.backends.mha.set_fastpath_enabled(fused)
            for bits in (2, 32):
                set_bits(model, bits)
                outputs.append(model(*args, **kwargs))
    torch.backends.mha.set_fastpath_enabled(True)
    return outputs


@pytest.mark.parametrize("rules", [(), [(nn.MultiheadAttention, "float")], [("*.linear?", "float")]], ids=str)
@pytest.mark.parametrize("norm_first", [False, True])
def test_encoder_in_eval_mode_uses_the_quantizers(rules, norm_first):
    model, x = encoder_network(norm_first=norm_first), torch.randn(3, 5, 8)
    with torch.no_grad():
        expected = model.eval()(x)
    convert(model.train(), rules=rules)
    for bits in BITS:
        set_bits(model, bits)
        model(x)
    low, exact, slow_low, slow_exact = eval_outputs(model, x)
    torch.testing.assert_close(low, slow_low)  # not equal: a MultiheadAttention left in float may still fuse itself
    torch.testing.assert_close(exact, slow_exact)
    torch.testing.assert_close(exact, expected)
    assert (low - exact).abs().max() > 1e-2


def test_encoder_takes_padding_in_eval_mode():
    model, x = encoder_network()[1], torch.randn(3, 5, 8)
    padding = torch.tensor([[0, 0, 0, 0, 0], [0, 0, 0, 1, 1], [0, 0, 0, 0, 1]]).bool()
    with torch.no_grad():
        expected = model.eval()(x, src_key_padding_mask=padding)
    convert(model.train())
    for bits in BITS:
        set_bits(model, bits)
        model(x, src_key_padding_mask=padding)
    low, exact, slow_low, _ = eval_outputs(model, x, src_key_padding_mask=padding)
    assert torch.equal(low, slow_low)
    torch.testing.assert_close(exact[~padding], expected[~padding])
    assert (low - exact)[~padding].abs().max() > 1e-2


def test_an_encoder_made_of_a_converted_layer():
    layer = nn.TransformerEncoderLayer(8, 2, dim_feedforward=16, dropout=0.0, batch_first=True)
    with pytest.warns(UserWarning, match="use_nested_tensor is False"):
        model = nn.TransformerEncoder(convert(layer, keep_float=()), 2)
    x = torch.randn(3, 5, 8)
    for bits in BITS:
        set_bits(model, bits)
        model(x)
    low, exact, slow_low, _ = eval_outputs(model, x, src_key_padding_mask=torch.zeros(3, 5, dtype=torch.bool))
    assert torch.equal(low, slow_low) and (low - exact).abs().max() > 1e-2


def test_float_encoder_keeps_its_fused_path():
    model = nn.Sequential(encoder_network()[1], nn.Linear(8, 8), nn.Linear(8, 8))
    convert(model, rules=[("0.*", "float")], keep_float=())
    assert model[0].layers[0].activation_relu_or_gelu == 1 and model[0].use_nested_tensor


def test_decoder_and_whole_transformer():
    torch.manual_seed(0)
    model = nn.Transformer(8, 2, 1, 1, dim_feedforward=16, dropout=0.0, batch_first=True)
    source, target = torch.randn(2, 5, 8), torch.randn(2, 4, 8)
    mask = nn.Transformer.generate_square_subsequent_mask(4)
    with torch.no_grad():
        expected = model.eval()(source, target, tgt_mask=mask)
    plan = plan_conversion(model.train(), keep_float=())
    assert sum(entry.type == "MultiheadAttention" for entry in plan.entries if entry.action == "quantize") == 3
    plan.apply()
    assert isinstance(model.decoder.layers[0].multihead_attn, QuantMultiheadAttention)
    for bits in BITS:
        set_bits(model, bits)
        model(source, target, tgt_mask=mask)
    low, exact, slow_low, _ = eval_outputs(model, source, target, tgt_mask=mask)
    torch.testing.assert_close(exact, expected)
    assert torch.equal(low, slow_low) and not torch.allclose(low, exact, atol=1e-2)
