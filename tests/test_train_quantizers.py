"""Quantizer modules: values, first scales, gradients, flags and autocast."""

import copy
import math

import pytest
import torch
from torch import nn

import mbq_kernels
from mbq_train import ActivationQuantizer, BitState, WeightQuantizer, clamp_scales, initialise

BITS = (8, 4, 2)


@pytest.fixture
def weight():
    return torch.randn(6, 5, 3, 3, generator=torch.Generator().manual_seed(0))


def test_weight_scale_starts_at_the_lsq_value_per_channel(weight):
    state = BitState(BITS)
    quantizer = WeightQuantizer(state, weight)
    for bits, hi in zip(BITS, (127, 7, 1), strict=True):
        state.select(bits)
        quantizer(weight)
        expected = 2 * weight.abs().mean(dim=(1, 2, 3)) / math.sqrt(hi)
        torch.testing.assert_close(quantizer.scale(bits), expected)


@pytest.mark.parametrize("signed, hi", [(False, 15), (True, 7)])
def test_activation_scale_starts_at_the_lsq_value(signed, hi):
    x = torch.rand(4, 3) + 0.5
    quantizer = ActivationQuantizer(BitState((4,)), signed=signed)
    quantizer(x)
    torch.testing.assert_close(quantizer.scale(4), 2 * x.mean() / math.sqrt(hi))


def test_first_batch_alone_decides_the_scale(weight):
    quantizer = WeightQuantizer(BitState(BITS), weight)
    quantizer(weight)
    first = quantizer.scale(8)
    quantizer(10 * weight)
    assert torch.equal(quantizer.scale(8), first)
    assert quantizer.scales["4"].isnan().all()  # this bit-width was not seen


def test_forward_is_the_kernel_and_32_bits_is_the_input(weight):
    state = BitState(BITS)
    quantizer = WeightQuantizer(state, weight)
    out = quantizer(weight)
    assert torch.equal(out, mbq_kernels.fake_quantize(weight, quantizer.scale(8), bits=8, axis=0))
    assert not torch.equal(out, weight)
    state.select(32)
    assert quantizer(weight) is weight


def test_only_the_scale_in_use_gets_a_gradient(weight):
    state = BitState(BITS)
    quantizer = WeightQuantizer(state, weight)
    state.select(4)
    quantizer(weight.requires_grad_()).square().sum().backward()
    assert quantizer.scales["4"].grad.abs().min() > 0
    assert quantizer.scales["8"].grad is None and quantizer.scales["2"].grad is None
    assert weight.grad.shape == weight.shape and weight.grad.abs().max() > 0


def test_scales_keep_their_identity_for_an_optimizer_built_before(weight):
    quantizer = WeightQuantizer(BitState(BITS), weight)
    optimizer = torch.optim.SGD(quantizer.parameters(), lr=0.01)
    quantizer(weight).square().sum().backward()
    before = quantizer.scales["8"].detach().clone()
    optimizer.step()
    assert (quantizer.scales["8"] != before).all()


def test_offset_starts_at_the_minimum_and_learns():
    x = torch.rand(64) + 3
    quantizer = ActivationQuantizer(BitState((2,)), learn_offset=True)
    out = quantizer(x)
    assert quantizer.offsets["2"].item() == x.min().item()
    torch.testing.assert_close(quantizer.scale(2), 2 * (x - x.min()).mean() / math.sqrt(3))
    assert (out - x).abs().max() < 1
    with torch.no_grad():
        quantizer.offsets["2"].add_(0.5)  # now some values lie below it
    quantizer(x).sum().backward()
    assert quantizer.offsets["2"].grad.item() > 0


@pytest.mark.parametrize("dead", [[2], list(range(6))], ids=["one channel", "all channels"])
def test_channels_of_zeros_take_the_mean_of_all_or_1(weight, dead):
    weight[dead] = 0
    quantizer = WeightQuantizer(BitState(BITS), weight)
    out = quantizer(weight)
    expected = 2 * (weight.abs().mean().item() or 1.0) / math.sqrt(127)
    torch.testing.assert_close(quantizer.scale(8)[dead], torch.full((len(dead),), expected))
    assert torch.equal(out[dead], torch.zeros_like(out[dead]))


def test_clamp_scales_makes_every_scale_positive(weight):
    quantizer = WeightQuantizer(BitState(BITS), weight)
    initialise(nn.Sequential(quantizer), weight)
    same, first = quantizer.scales["4"], quantizer.scale(8)
    with torch.no_grad():
        quantizer.scales["8"][0] = -3.0
        quantizer.scales["4"].zero_()
    clamp_scales(quantizer)
    assert quantizer.scales["4"] is same
    assert all((scale > 0).all() for scale in quantizer.scales.values())
    assert torch.equal(quantizer.scale(8)[1:], first[1:])


def test_eval_before_the_first_batch_is_an_error_that_names_the_layer(weight):
    state = BitState(BITS)
    quantizer = WeightQuantizer(state, weight, layer_name="blocks.0.conv1")
    quantizer(weight)
    quantizer.eval()
    quantizer(weight)
    state.select(4)
    with pytest.raises(RuntimeError, match=r"blocks\.0\.conv1: WeightQuantizer must have seen .* at 4 bits"):
        quantizer(weight)


@pytest.mark.parametrize("x", [torch.tensor([1.0, math.nan]), torch.tensor([1.0, math.inf]), torch.empty(0)],
                         ids=["nan", "inf", "empty"])
def test_a_first_batch_without_a_scale_is_an_error(x):
    quantizer = ActivationQuantizer(BitState(BITS), layer_name="conv1")
    with pytest.raises(RuntimeError, match="conv1: the first training batch must be finite and not empty.*8 bits"):
        quantizer(x)
    assert quantizer.scales["8"].isnan() and not quantizer.initialised.any()


def test_negative_inputs_of_an_unsigned_quantizer_warn_with_the_layer():
    with pytest.warns(RuntimeWarning, match="fc: inputs are negative"):
        ActivationQuantizer(BitState(BITS), signed=False, layer_name="fc")(torch.tensor([-1.0, 1.0]))


@pytest.mark.parametrize("x, signed", [([-1.0, 1.0], True), ([0.0, 1.0], False)])
def test_the_first_batch_decides_the_sign_for_every_bit_width_and_the_checkpoint_keeps_it(x, signed):
    state, x = BitState(BITS), torch.tensor(x)
    quantizer = ActivationQuantizer(state)
    quantizer(x)
    state.select(4)
    quantizer(x.abs())
    assert quantizer.signed is signed
    hi = 7 if signed else 15
    torch.testing.assert_close(quantizer.scale(4), 2 * x.abs().mean() / math.sqrt(hi))
    loaded = ActivationQuantizer(BitState(BITS))
    loaded.load_state_dict(quantizer.state_dict())
    assert loaded.signed is signed and torch.equal(loaded(x), quantizer_at(quantizer, 8, x))
    fresh = ActivationQuantizer(BitState(BITS))
    fresh.load_state_dict(ActivationQuantizer(BitState(BITS)).state_dict())
    assert fresh.signed is None  # nothing seen: still open


def quantizer_at(quantizer, bits, x):
    quantizer.bit_state.select(bits)
    return quantizer(x)


def test_state_dict_carries_scales_and_flags(weight):
    state = BitState(BITS)
    quantizer = WeightQuantizer(state, weight)
    state.select(4)
    expected = quantizer(weight)
    other_state = BitState(BITS)
    other = WeightQuantizer(other_state, weight).eval()
    other.load_state_dict(quantizer.state_dict())
    other_state.select(4)
    assert torch.equal(other(weight), expected)
    assert other.initialised.tolist() == [False, True, False]
    other_state.select(2)
    with pytest.raises(RuntimeError, match="2 bits"):
        other(weight)


def test_deepcopy_is_independent(weight):
    quantizer = WeightQuantizer(BitState(BITS), weight)
    quantizer(weight)
    twin = copy.deepcopy(quantizer)
    twin.bit_state.select(2)
    twin(weight)
    assert quantizer.bit_state.bits == 8 and not quantizer.initialised[2]
    assert quantizer.scales["2"].isnan().all()


def test_autocast_gives_bfloat16_out_and_float32_gradients(weight):
    quantizer = WeightQuantizer(BitState(BITS), weight)
    weight.requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        out = quantizer(weight)
    assert out.dtype == torch.bfloat16
    assert torch.equal(out, quantizer(weight).bfloat16())
    out.float().square().sum().backward()
    assert weight.grad.dtype == torch.float32 and quantizer.scales["8"].grad.dtype == torch.float32


def test_float64_stays_float64_also_under_autocast(weight):
    weight = weight.double()
    quantizer = WeightQuantizer(BitState(BITS), weight)
    assert quantizer.scales["8"].dtype == torch.float64
    with torch.autocast("cpu", torch.bfloat16):
        assert quantizer(weight).dtype == torch.float64
