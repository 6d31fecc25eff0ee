"""The quantizer with one scale for all bit-widths: values, first scales, gradients, conversion and everything else."""

import copy

import pytest
import torch
from compiled_networks import check_two_compiles, gradients
from networks import encoder_network, one_thread, small_network, specs, tiny_model  # noqa: F401

import mbq_kernels
from mbq_lab import Options
from mbq_train import (
    ActivationQuantizer,
    BitState,
    DoubleRounding,
    DoubleRoundingQuantizer,
    Float,
    Learned,
    QuantMultiheadAttention,
    WeightBank,
    add_bits,
    convert,
    drop_idle_gradients,
    initialise,
    plan_conversion,
    set_bits,
)

BITS = (8, 6, 4, 2)


@pytest.fixture
def weight():
    return torch.randn(6, 5, 3, 3, generator=torch.Generator().manual_seed(0)) * 0.1 + 0.02


def converted(batch_norm="shared", bits=BITS, **options):
    model = convert(small_network(), bits, batch_norm=batch_norm, **specs(quantizer="double-rounding", **options))
    images = torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    initialise(model, images)
    return model, images


def test_the_scale_reaches_three_deviations_at_the_highest_bit_width(weight):
    quantizer = DoubleRoundingQuantizer(BitState((6, 4)), weight)
    before = quantizer.scales["6"]
    quantizer.bit_state.select(4)  # whichever bit-width comes first
    quantizer(weight)
    flat = weight.flatten(1).double()
    mean, std = flat.mean(1), ((flat - flat.mean(1, keepdim=True)).square().sum(1) / 44).sqrt()
    expected = torch.maximum((mean - 3 * std).abs(), (mean + 3 * std).abs()) / 32
    torch.testing.assert_close(quantizer.scale(6), expected.float())
    assert quantizer.scales["6"] is before and list(quantizer.scales) == ["6"]
    assert quantizer.initialised.tolist() == [True] and not quantizer.missing


def test_channels_without_reach_still_get_a_scale():
    weight = torch.tensor([[0.0, 0.0], [0.5, 0.5], [1.0, 0.0]])
    scales = DoubleRoundingQuantizer(BitState(BITS), weight)
    scales(weight)
    one, two = 0.5, 0.5 + 3 * 0.5**0.5
    expected = torch.tensor([(one + two) / 3, one, two]) / 128
    torch.testing.assert_close(scales.scale(8), expected)
    single = DoubleRoundingQuantizer(BitState(BITS), weight[1:, :1])
    single(weight[1:, :1])
    torch.testing.assert_close(single.scale(8), torch.tensor([0.5, 1.0]) / 128)


@pytest.mark.parametrize("rounding", ["half_even", "half_up"])
def test_forward_is_the_kernel_at_every_bit_width(weight, rounding):
    quantizer = DoubleRoundingQuantizer(BitState(BITS), weight, rounding=rounding)
    for bits in BITS:
        quantizer.bit_state.select(bits)
        out = quantizer(weight)
        assert torch.equal(out, mbq_kernels.double_round(weight, quantizer.scale(8), bits=bits, axis=0,
                                                         rounding=rounding))
        assert len(out[0].unique()) <= 2**bits
    quantizer.bit_state.select(32)
    assert quantizer(weight) is weight


def test_every_bit_width_trains_the_one_scale(weight):
    quantizer = DoubleRoundingQuantizer(BitState(BITS), weight)
    optimizer = torch.optim.SGD(quantizer.parameters(), lr=0.001)
    for bits in BITS:
        quantizer.bit_state.select(bits)
        optimizer.zero_grad()
        quantizer(weight).square().sum().backward()
        drop_idle_gradients(quantizer, [bits])
        assert quantizer.scales["8"].grad.abs().min() > 0
        before = quantizer.scales["8"].detach().clone()
        optimizer.step()
        assert (quantizer.scales["8"] != before).all()


def test_switches_of_the_gradient(weight):
    grads = {}
    for name, options in {"plain": {}, "chain": {"scale_chain": True}, "shared": {"shared_sum": True}}.items():
        quantizer = DoubleRoundingQuantizer(BitState(BITS), weight, **options)
        quantizer.bit_state.select(4)
        out = quantizer(weight)
        out.square().sum().backward()
        grads[name] = quantizer.scales["8"].grad * quantizer.scale_units["8"]  # of the scale itself
        assert torch.equal(out, mbq_kernels.double_round(weight, quantizer.scale(8), bits=4, axis=0))
    assert torch.equal(grads["chain"], 16 * grads["plain"])
    torch.testing.assert_close(grads["shared"], grads["plain"].sum().expand(6))


def test_autocast_gives_bfloat16_out_and_float32_gradients(weight):
    quantizer = DoubleRoundingQuantizer(BitState(BITS), weight.requires_grad_())
    with torch.autocast("cpu", torch.bfloat16):
        out = quantizer(weight)
    assert out.dtype == torch.bfloat16 and torch.equal(out, quantizer(weight).bfloat16())
    out.float().square().sum().backward()
    assert weight.grad.dtype == torch.float32 and quantizer.scales["8"].grad.dtype == torch.float32


def test_eval_before_the_first_batch_is_an_error_that_names_the_layer(weight):
    quantizer = DoubleRoundingQuantizer(BitState(BITS), weight, layer_name="blocks.0.conv1").eval()
    quantizer.bit_state.select(4)
    with pytest.raises(RuntimeError, match=r"blocks\.0\.conv1: DoubleRoundingQuantizer must have seen a training"):
        quantizer(weight)


def test_state_dict_carries_the_scale_and_the_flag(weight):
    quantizer = DoubleRoundingQuantizer(BitState(BITS), weight)
    quantizer.bit_state.select(4)
    expected = quantizer(weight)
    other = DoubleRoundingQuantizer(BitState(BITS), weight).eval()
    other.load_state_dict(quantizer.state_dict())
    other.bit_state.select(4)
    assert torch.equal(other(weight), expected)
    twin = copy.deepcopy(quantizer)
    twin.bit_state.select(2)
    assert quantizer.bit_state.bits == 4 and torch.equal(twin.scales["8"], quantizer.scales["8"])


def test_conversion_gives_weights_one_scale_and_activations_one_each():
    model, _ = converted(rounding="half_up", scale_chain=True)
    quantizer = model[3].weight_quantizer
    assert type(quantizer) is DoubleRoundingQuantizer and quantizer.rounding == "half_up" and quantizer.scale_chain
    assert not quantizer.shared_sum and list(quantizer.scales) == ["8"]
    assert type(model[3].input_quantizer) is ActivationQuantizer
    assert sorted(model[3].input_quantizer.scales) == ["2", "4", "6", "8"]
    attention = convert(encoder_network(), BITS, weights=DoubleRounding())
    found = [module for module in attention.modules() if isinstance(module, QuantMultiheadAttention)]
    assert found and all(type(m.q_proj.weight_quantizer) is DoubleRoundingQuantizer for m in found)


@pytest.mark.parametrize("options, error, message", [
    (lambda: {"weights": "double-rounding"}, TypeError,
     r"convert: weights must be a spec such as Learned\(\), .*DoubleRounding\(\).*, got 'double-rounding'"),
    (lambda: {"weights": Float()}, TypeError, r"convert: weights must be a spec such as .*, got Float\(\)"),
    (lambda: {"activations": DoubleRounding()}, TypeError, "convert: activations must be a spec such as .*Float"),
    (lambda: {"weights": DoubleRounding(), "bits": (8, 1)}, ValueError,
     r"convert: bits must be at least 2 with DoubleRounding weights: at 1 bit a code 0 has no sign, got \(8, 1\)"),
    (lambda: {"rules": [("3", {"weights": DoubleRounding()})], "bits": (8, 1)}, ValueError, "convert: bits must be at"),
    (lambda: {"weights": Learned(offset=True)}, ValueError,
     "convert: weights must leave offset of Learned alone, which is an option of activations, got True"),
    (lambda: DoubleRounding(rounding="up"), ValueError, "DoubleRounding: rounding must be one of half_even, half_up"),
    (lambda: DoubleRounding(shared_sum=1), TypeError, "DoubleRounding: shared_sum must be True or False, got 1"),
    (lambda: Options(rounding="half_up"), ValueError,
     "options: rounding must be left alone unless quantizer is double-rounding, got 'half_up' with 'learned'"),
], ids=range(9))
def test_what_cannot_be_converted_is_an_error(options, error, message):
    with pytest.raises(error, match=f"^{message}"):
        plan_conversion(tiny_model(), **{"bits": BITS, **options()})


def test_a_quantizer_without_code_for_a_bit_width_is_an_error(weight):
    with pytest.raises(ValueError, match="fc: bits must be between 2 and 8 where weights are rounded twice, got 1"):
        DoubleRoundingQuantizer(BitState((8, 1)), weight, layer_name="fc")


@pytest.mark.parametrize("options", [{}, {"shared_sum": True, "rounding": "half_up"}], ids=str)
def test_two_compiles_serve_all_bit_widths_with_the_eager_values_and_gradients(options):
    model, images = converted(**options)
    check_two_compiles(model, images, lambda bits: ["3.weight_quantizer.scales.8",
                                                    f"3.input_quantizer.scales.{bits}"])


def test_lower_bit_widths_are_in_the_codes():
    model, images = converted()
    wider = add_bits(model, (7, 5, 3), [])
    quantizer = wider[3].weight_quantizer
    assert list(quantizer.scales) == ["8"] and quantizer.bit_state.trained == (8, 7, 6, 5, 4, 3, 2)
    assert sorted(wider[3].input_quantizer.scales) == ["2", "3", "4", "5", "6", "7", "8"]
    set_bits(wider.eval(), 3)
    expected = mbq_kernels.double_round(model[3].weight, model[3].weight_quantizer.scale(8), bits=3, axis=0)
    assert torch.equal(quantizer(model[3].weight), expected) and wider(images).isfinite().all()
    wider.load_state_dict(wider.state_dict())


@pytest.mark.parametrize("bits, got", [((3, 1), 1), ((8, 5), 8)])
def test_bit_widths_that_are_not_in_the_codes_are_an_error(bits, got):
    model, _ = converted(bits=(6, 4))
    with pytest.raises(ValueError, match=f"3: bits must be between 2 and 6 where weights are rounded twice, got {got}"):
        add_bits(model, bits, [])


@pytest.mark.parametrize("shared_sum", [False, True])
def test_weight_bank_gives_the_same_values_and_gradients(shared_sum):
    model, images = converted(shared_sum=shared_sum)
    bank, results = WeightBank(model, BITS), []
    for filled in (False, True):
        model.zero_grad()
        if filled:
            bank.fill()
        outs = []
        for bits in BITS:
            set_bits(model, bits)
            outs.append(model(images))
            outs[-1].square().sum().backward()
        if filled:
            assert len(model[3].weight_quantizer.held) == len(BITS)
            bank.backward()
        results.append((torch.stack(outs), gradients(model)))
    (outs, one), (banked, other) = results
    assert torch.equal(outs, banked) and one.keys() == other.keys()
    for name in one:
        torch.testing.assert_close(one[name], other[name], rtol=1e-4, atol=1e-5)
    assert bank.nbytes == 2 * 4 * 4 * (4 * 6 * 9 + 96 * 5) and not model[3].weight_quantizer.held
