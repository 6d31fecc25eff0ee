"""ScaleRates: the rates of every mode from gradients computed by hand, in loops as people write them."""

import pytest
import torch
from torch import nn

from mbq_train import DoubleRounding, Learned, ScaleRates, convert, parameter_groups, scales, set_bits
from mbq_train.quantize.quantizer import quantizers
from mbq_train.training.scale_rates import MODES, eta


def model_of(bits=(8, 4, 2), weights=None):
    torch.manual_seed(0)
    layers = [nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3)]
    return convert(nn.Sequential(*layers), bits, weights=weights or Learned(), example=torch.randn(32, 6))


def backward(model, bits):
    model.zero_grad()
    set_bits(model, bits)
    model(torch.linspace(-2, 2, 60).reshape(10, 6)).square().mean().backward()


def size_by_hand(model):
    """Return the mean over quantizers of min(max |gradient of the scale|, 1), one tensor after the other."""
    sizes = []
    for quantizer in quantizers(model):
        for bits, parameter in quantizer.scales.items():
            if parameter.grad is not None:
                sizes.append(min(float((parameter.grad * quantizer.scale_units[bits]).abs().max()), 1.0))
    return sum(sizes) / len(sizes)


def expected(mode, rate, bits, trained, size):
    etas = {(8, 4, 2): {8: 1, 4: 0.01, 2: 0.001}, (4, 3, 2): {4: 1, 3: 0.5, 2: 0.1}}[trained]
    return {"multiplicative": etas[bits] * rate * (1 - size), "literal": etas[bits] * max(0.0, rate - size),
            "eta": etas[bits] * rate, "released": rate * 0.1 ** trained.index(bits)}[mode]


@pytest.mark.parametrize("trained, values", [((8, 6, 4, 2), (1, 0.1, 0.01, 0.001)), ((4, 3, 2), (1, 0.5, 0.1))])
def test_eta(trained, values):
    assert [eta(trained[0], b) for b in trained] == pytest.approx(values)


@pytest.mark.parametrize("trained", [(8, 4, 2), (4, 3, 2)])
@pytest.mark.parametrize("weights", [Learned(), DoubleRounding()], ids=["learned", "double rounding"])
@pytest.mark.parametrize("mode", MODES)
def test_a_step_of_sgd_moves_scales_by_the_rate_of_the_mode(mode, weights, trained):
    model = model_of(trained, weights)
    optimizer = torch.optim.SGD(parameter_groups(model, 0.0), lr=0.5)
    rates = ScaleRates(optimizer, model, mode=mode)
    for bits in trained:
        backward(model, bits)
        size, rate = size_by_hand(model), None
        before = [(p, p.detach().clone(), p.grad.clone()) for p in scales(model) if p.grad is not None]
        untouched = model[0].weight.detach() - 0.5 * model[0].weight.grad
        optimizer.step()
        rate = expected(mode, 0.5, bits, trained, size)
        assert before
        for parameter, value, grad in before:
            torch.testing.assert_close(parameter.detach(), value - rate * grad)
        assert torch.equal(model[0].weight, untouched)
        assert all(group["lr"] == 0.5 for group in optimizer.param_groups)
        logged = rates.averages()
        assert list(logged) == [bits] and logged[bits]["rate"] == pytest.approx(rate)
        if mode in ("multiplicative", "literal"):
            assert 0 < size < 1 and logged[bits]["gradient"] == pytest.approx(size)


def test_released_lowers_the_rate_of_biases_and_norms_too():
    model = model_of()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    ScaleRates(optimizer, model, mode="released")
    backward(model, 2)
    bias, weight = model[2].bias, model[2].weight
    to_bias, to_weight = bias.detach() - 0.005 * bias.grad, weight.detach() - 0.5 * weight.grad
    optimizer.step()
    torch.testing.assert_close(bias.detach(), to_bias)
    torch.testing.assert_close(weight.detach(), to_weight)


@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW, torch.optim.RMSprop])
def test_any_optimizer_over_model_parameters_with_a_scheduler(kind):
    model = model_of(weights=DoubleRounding())
    optimizer = kind(model.parameters(), lr=1e-2)
    ScaleRates(optimizer, model, mode="eta")
    held = [id(p) for group in optimizer.param_groups for p in group["params"]]
    assert sorted(held) == sorted(map(id, model.parameters()))
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, step_size=1, gamma=0.5)
    before = [p.detach().clone() for p in scales(model)]
    for step in range(3):
        for bits in (8, 4, 2):
            backward(model, bits)
            optimizer.step()
        scheduler.step()
        assert {group["lr"] for group in optimizer.param_groups} == {1e-2 * 0.5 ** (step + 1)}
    assert any(not torch.equal(a, b) for a, b in zip(before, scales(model), strict=True))


def test_added_gradients_give_every_scale_the_rate_of_its_own_bit_width():
    model = model_of()
    optimizer = torch.optim.SGD(parameter_groups(model, 0.0), lr=0.5)
    ScaleRates(optimizer, model, mode="eta")
    model.zero_grad()
    for bits in (8, 4, 2):
        set_bits(model, bits)
        model(torch.linspace(-2, 2, 60).reshape(10, 6)).square().mean().backward()
    wanted = {(quantizer, b): p.detach() - 0.5 * eta(8, int(b)) * p.grad for quantizer in quantizers(model)
              for b, p in quantizer.scales.items()}
    optimizer.step()
    for (quantizer, b), value in wanted.items():
        torch.testing.assert_close(quantizer.scales[b].detach(), value)


def test_a_rate_in_a_tensor_is_changed_in_place_and_put_back():
    model = model_of(weights=DoubleRounding())
    groups = [{**group, "lr": torch.tensor(0.5)} for group in parameter_groups(model, 0.0)]
    optimizer = torch.optim.Adam(groups, capturable=False, foreach=False)
    holders = [group["lr"] for group in optimizer.param_groups]
    rates = ScaleRates(optimizer, model)
    backward(model, 2)
    size = size_by_hand(model)
    optimizer.step()
    assert all(group["lr"] is holder and holder == 0.5 for group, holder in
               zip(optimizer.param_groups, holders, strict=False))
    assert rates.averages()[2]["rate"] == pytest.approx(0.001 * 0.5 * (1 - size))


def test_rates_come_back_after_a_step_that_raised_and_stay_once_removed():
    model = model_of()
    optimizer = torch.optim.SGD(parameter_groups(model, 0.0), lr=0.5)
    rates = ScaleRates(optimizer, model, mode="eta")
    backward(model, 2)

    def closure():
        raise RuntimeError("lost")

    with pytest.raises(RuntimeError, match="lost"):
        optimizer.step(closure)
    backward(model, 8)
    optimizer.step()
    assert {group["lr"] for group in optimizer.param_groups} == {0.5}
    rates.remove()
    backward(model, 2)
    wanted = [p.detach() - 0.5 * p.grad for p in scales(model) if p.grad is not None]
    optimizer.step()
    for parameter, value in zip([p for p in scales(model) if p.grad is not None], wanted, strict=True):
        torch.testing.assert_close(parameter.detach(), value)


def test_bad_input():
    model = model_of()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(ValueError, match="mode must be one of .* got 'etas' .did you mean 'eta'"):
        ScaleRates(optimizer, model, mode="etas")
    with pytest.raises(ValueError, match="optimizer must hold scales"):
        ScaleRates(torch.optim.SGD(model[0].parameters(), lr=0.1), model)
    with pytest.raises(ValueError, match="optimizer must hold scales"):
        ScaleRates(torch.optim.SGD((net := nn.Linear(2, 2)).parameters(), lr=0.1), net)
