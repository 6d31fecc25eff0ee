"""Schedules, optimizers and the training loop."""

import math
from dataclasses import replace

import pytest
import torch
from networks import one_thread, tiny_model  # noqa: F401
from small_data import halves
from torch import nn

from mbq_lab import Options, evaluate
from mbq_lab.training.loop import Training, stepper_of
from mbq_lab.training.optimizers import build_optimizer, rate_at
from mbq_train import TrainingError, convert, initialise, parameter_groups, set_bits
from mbq_train.batches import Batch
from mbq_train.quantize import learned
from mbq_train.quantize.bits import bit_states
from mbq_train.quantize.quantizer import quantizers
from mbq_train.quantize.weight_bank import WeightBank
from mbq_train.training import distillation, steps
from mbq_train.training.optimizers import load_optimizer_tensors, optimizer_tensors, set_rate

BITS = (8, 4, 2)
OPTIONS = Options(epochs=1, batch_size=16)


@pytest.fixture(scope="module")
def data():
    return halves()


def train(model, data, bits=BITS, *, on_epoch=None, **options):
    training = Training(model, data, bits, replace(OPTIONS, **options))
    training.run(on_epoch=on_epoch)
    return training


def batch_of(data, images=16):
    return next(data.train_batches(images, seed=0, epoch=0))


def test_one_loop_trains_the_float_and_the_quantized_network(data):
    model, records = tiny_model(), []
    train(model, data, (32,), epochs=10, learning_rate=0.01, on_epoch=records.append)
    assert evaluate(model, data, 32) >= 0.9
    convert(model, BITS)
    train(model, data, epochs=10, learning_rate=0.01, on_epoch=records.append)
    assert all(evaluate(model, data, b) >= 0.9 for b in BITS)
    assert [record["epoch"] for record in records] == [*range(1, 11)] * 2
    assert list(records[-1]["loss"]) == list(BITS)
    assert all(records[-1]["loss"][b] < records[10]["loss"][b] for b in BITS)
    assert records[-1]["learning_rate"] < records[10]["learning_rate"] <= 0.01


def test_a_step_after_each_bit_width_moves_the_scales_of_that_bit_width_alone(data, monkeypatch):
    model, seen = convert(tiny_model(), BITS), []
    scales = model[3].weight_quantizer.scales
    step = steps.Stepper._step_on

    def watch(self, group):
        before = {b: scale.detach().clone() for b, scale in scales.items()}
        losses = step(self, group)
        moved = [b for b, scale in scales.items() if not torch.equal(scale, before[b])]
        seen.append((tuple(bits for bits, _, _ in group), moved))
        return losses

    monkeypatch.setattr(steps.Stepper, "_step_on", watch)
    train(model, data, batch_size=30)
    assert seen == [((8,), ["8"]), ((4,), ["4"]), ((2,), ["2"])] * 2


def gradients(model, data, **options):
    """Gradients of one accumulated step, by name, without the step."""
    initialise(model, batch_of(data).images)
    options = replace(OPTIONS, schedule="accumulate", optimizer="sgd", momentum=0.0, learning_rate=1e-30, **options)
    stepper = stepper_of(options, model, BITS, build_optimizer(model, options))
    losses = stepper(batch_of(data))
    return losses, {name: parameter.grad for name, parameter in model.named_parameters()}


def test_accumulate_adds_the_gradients_of_all_bit_widths(data):
    batch = batch_of(data)
    losses, summed = gradients(convert(tiny_model(), BITS, batch_norm="shared").eval(), data)
    model = convert(tiny_model(), BITS, batch_norm="shared").eval()
    initialise(model, batch.images)
    for b, loss in zip(BITS, losses, strict=True):
        set_bits(model, b)
        own = nn.functional.cross_entropy(model(batch.images), batch.labels)
        own.backward()
        assert own.item() == loss.item()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(summed[name], parameter.grad, rtol=1e-6, atol=1e-8)
    assert len({summed[f"3.weight_quantizer.scales.{b}"].abs().sum().item() for b in BITS}) == 3


@pytest.mark.parametrize("autocast", ["none", "bfloat16"])
def test_the_weight_bank_changes_nothing_but_the_order_of_a_sum(data, autocast):
    with_bank, without = (gradients(convert(tiny_model(), BITS), data, autocast=autocast, weight_bank=bank)
                          for bank in (True, False))
    assert torch.equal(with_bank[0], without[0])
    for name, expected in without[1].items():
        torch.testing.assert_close(with_bank[1][name], expected, rtol=1e-5, atol=1e-6)


def test_the_weight_bank_quantizes_once_a_step_and_lets_its_copies_go(data, monkeypatch):
    calls = []
    foreach = learned.mbq_kernels.fake_quantize_foreach

    def watch(weights, *rest, **options):
        calls.append(len(weights))
        return foreach(weights, *rest, **options)

    monkeypatch.setattr(learned.mbq_kernels, "fake_quantize_foreach", watch)
    model = convert(tiny_model(), BITS)
    train(model, data, schedule="accumulate", weight_bank=True, batch_size=30)
    quantized = [module for module in model.modules() if isinstance(module, learned.WeightQuantizer)]
    assert calls == [len(quantized)] * 2 and not any(quantizer.held for quantizer in quantized)
    elements = sum(model[i].weight.numel() for i in (3,))
    assert WeightBank(model, BITS).nbytes == 2 * len(BITS) * 4 * elements


def test_a_weight_bank_leaves_layers_that_no_batch_has_reached_alone(data):
    model = convert(tiny_model(), BITS)
    bank = WeightBank(model, BITS)
    bank.fill()
    assert not model[3].weight_quantizer.held
    initialise(model, batch_of(data).images)
    bank.fill()
    assert list(model[3].weight_quantizer.held) == list(BITS)
    bank.drop()
    assert not model[3].weight_quantizer.held


def test_scales_stay_positive_at_a_rate_that_overshoots(data):
    model = convert(tiny_model(), BITS)
    train(model, data, epochs=2, learning_rate=1.0)
    found = [(scale, quantizer.scale(int(b)), quantizer.scale_floors[b])
             for quantizer in quantizers(model)
             for b, scale in quantizer.scales.items()]
    assert len(found) == 6 and all((parameter > 0).all() and (scale > 0).all() for parameter, scale, _ in found)
    assert any((scale == floor).any() for _, scale, floor in found)  # the clamp was needed


@pytest.mark.parametrize("options", [{}, {"schedule": "accumulate"}, {"distill": 0.7}, {"autocast": "bfloat16"}],
                         ids=str)
def test_the_same_seed_gives_the_same_network(data, options):
    states = []
    for _ in range(2):
        model = convert(tiny_model(), BITS)
        train(model, data, epochs=2, seed=5, **options)
        states.append(model.state_dict())
    assert len(states[0]) > 20 and all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_clipping_bounds_the_gradient_of_a_step(data):
    def norms(**options):
        model, seen = convert(tiny_model(), BITS), []
        training = Training(model, data, BITS, replace(OPTIONS, optimizer="sgd", **options))
        training.optimizer.register_step_pre_hook(lambda optimizer, *_: seen.append(
            torch.stack([p.grad.norm() for p in model.parameters() if p.grad is not None]).norm().item()))
        training.run()
        return seen

    assert max(norms()) > 0.02 and max(norms(clip_norm=0.01)) <= 0.01 * (1 + 1e-5)


def test_autocast_runs_convolutions_in_bfloat16_with_float32_weights_and_gradients(data):
    model, seen = convert(tiny_model(), BITS), []
    model[3].register_forward_hook(lambda module, args, out: seen.append(out.dtype))
    train(model, data, autocast="bfloat16")
    assert seen[-1] == torch.bfloat16
    parameters = [p for p in model.parameters() if p.grad is not None]
    assert parameters and all(p.dtype == p.grad.dtype == torch.float32 for p in parameters)


@pytest.mark.parametrize("name, kind", [("adamw", torch.optim.AdamW), ("adam", torch.optim.Adam),
                                        ("sgd", torch.optim.SGD)])
def test_optimizers_train_and_decay_no_scale(data, name, kind):
    model = convert(tiny_model(), BITS)
    optimizer = train(model, data, optimizer=name, weight_decay=0.1).optimizer
    assert type(optimizer) is kind
    decay = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    assert all(decay[id(p)] == (0 if "_quantizer" in key else 0.1) for key, p in model.named_parameters())


@pytest.mark.parametrize("cuda_graph", [False, True], ids=["numbers", "tensors"])
def test_scales_have_a_learning_rate_of_their_own(cuda_graph):
    """What a graph would read are tensors, one for each group."""
    options = replace(OPTIONS, scale_rate=0.25, cuda_graph=cuda_graph)
    model = convert(tiny_model(), BITS)
    optimizer = build_optimizer(model, options)
    set_rate(optimizer, 0.5)
    rates = {id(p): float(group["lr"]) for group in optimizer.param_groups for p in group["params"]}
    assert all(rates[id(p)] == (0.125 if "_quantizer" in key else 0.5) for key, p in model.named_parameters())


def test_parameter_groups_hold_every_parameter_once():
    model = convert(tiny_model(), BITS)
    held = [id(parameter) for group in parameter_groups(model, 0.1) for parameter in group["params"]]
    assert sorted(held) == sorted(map(id, model.parameters()))
    assert len(parameter_groups(tiny_model(), 0.1)) == 1


def test_rates_over_the_epochs():
    cosine = [rate_at(replace(OPTIONS, epochs=4), step=step, steps=8) for step in range(9)]
    assert cosine[0] == 1e-3 and cosine[4] == pytest.approx(5e-4) and cosine[8] == pytest.approx(0)
    options = replace(OPTIONS, epochs=4, rate="step", rate_epochs=(1, 3))
    assert [rate_at(options, step=step, steps=8) for step in range(8)] == pytest.approx(
        [1e-3] * 2 + [1e-4] * 4 + [1e-5] * 2)
    assert rate_at(replace(OPTIONS, rate="constant"), step=7, steps=8) == 1e-3


def test_the_optimizers_state_goes_through_named_tensors(data):
    model = convert(tiny_model(), BITS)
    optimizer = train(model, data).optimizer
    tensors = optimizer_tensors(optimizer, model)
    other = build_optimizer(model, OPTIONS)
    load_optimizer_tensors(other, model, tensors)
    trained = [name for name, _ in model.named_parameters() if ".by_bits.32." not in name]
    assert sorted(tensors) == sorted(f"{name}:{key}" for name in trained for key in ("step", "exp_avg", "exp_avg_sq"))
    for parameter, state in optimizer.state.items():
        assert all(torch.equal(torch.as_tensor(value), other.state[parameter][key]) for key, value in state.items())
    with pytest.raises(ValueError, match="must belong to parameters of Sequential, got nothing.weight"):
        load_optimizer_tensors(other, model, {"nothing.weight:exp_avg": torch.zeros(1)})


def test_soft_targets_mix_in_what_the_highest_bit_width_said_an_epoch_ago():
    table = distillation.SoftTargets(5, 2, largest=0.8, epochs=4, device="cpu")
    batch = Batch(torch.zeros(2, 1), torch.tensor([0, 1]), torch.tensor([3, 1]), 2)
    table.begin_epoch(0)
    assert torch.equal(table.targets(batch), torch.eye(2))
    table.remember(batch, torch.tensor([[0.0, 0.0], [0.0, math.log(3)]]))
    table.begin_epoch(1)
    expected = torch.tensor([[0.6 + 0.4 * 0.5, 0.4 * 0.5], [0.4 * 0.25, 0.6 + 0.4 * 0.75]])
    torch.testing.assert_close(table.targets(batch), expected, rtol=1e-3, atol=1e-3)
    other = Batch(torch.zeros(2, 1), torch.tensor([0, 1]), torch.tensor([0, 2]), 2)
    assert torch.equal(table.targets(other), torch.eye(2))


def test_distillation_changes_training_from_the_second_epoch_on(data):
    def losses(**options):
        records = []
        train(convert(tiny_model(), BITS), data, epochs=2, on_epoch=records.append, **options)
        return [record["loss"] for record in records]

    plain, distilled = losses(), losses(distill=0.7)
    assert plain[0] == pytest.approx(distilled[0], rel=1e-5) and plain[1] != pytest.approx(distilled[1], rel=1e-3)


@pytest.mark.parametrize("place, match", [
    ("loss", r"train: loss must be finite, got (nan|inf) at 8 bits; it begins in layer 5, at step 1"),
    ("parameter", r"train: .*(parameter 3.weight at 8 bits|8 bits; it begins in parameter 3.weight).*, at step 1"),
])
def test_a_loss_that_is_not_finite_stops_with_step_bits_and_layer(data, place, match):
    model = convert(tiny_model(), BITS)
    initialise(model, batch_of(data).images)
    if place == "loss":
        model[5].register_forward_hook(lambda module, args, out: out / 0)
    else:
        with torch.no_grad():
            model[3].weight[0] = math.nan
    with pytest.raises(TrainingError, match=match):
        train(model, data)


def test_a_gradient_that_is_not_finite_stops_before_the_step(data):
    model = convert(tiny_model(), BITS)
    initialise(model, batch_of(data).images)
    model[3].weight.register_hook(lambda grad: grad * math.nan)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items() if "running" not in name}
    with pytest.raises(TrainingError, match="train: gradients must be finite, got nan at 8 bits; NaN or infinity is in "
                                            "that of 3.weight, at step 1"):
        train(model, data, clip_norm=1.0)
    after = model.state_dict()
    assert all(torch.equal(after[name], tensor) or "num_batches" in name for name, tensor in before.items())


def test_the_first_bad_layer_is_named_inside_a_converted_network(data):
    model = convert(tiny_model(), BITS)
    initialise(model, batch_of(data).images)
    with torch.no_grad():
        model[3].bias.fill_(3e38), model[0].bias.fill_(1e38)
    with pytest.raises(TrainingError, match="it begins in layer 1.by_bits.8, at step 1"):
        train(model, data)


def test_losses_that_are_looked_at_later_still_name_their_step(data, monkeypatch):
    model = convert(tiny_model(), BITS)
    training = Training(model, data, BITS, OPTIONS)
    monkeypatch.setattr(training, "_step", lambda batch: torch.tensor([1.0, 1.0, math.nan]))
    with pytest.raises(TrainingError, match="got nan at 2 bits; it begins in the loss, at step 1"):
        training.run()


def test_evaluate_counts_and_restores_mode_and_bits(data):
    model = convert(tiny_model(), BITS)
    train(model, data)
    set_bits(model, 4)
    model.train()
    model[1].eval()
    accuracy = evaluate(model, data, 2, batch_size=7)
    assert bit_states(model)[0].bits == 4 and model.training and not model[1].training
    model.eval()
    set_bits(model, 2)
    batch = next(data.test_batches(20))
    assert accuracy == (model(batch.images).argmax(dim=1) == batch.labels).double().mean().item()


def test_untrained_bit_widths_are_errors(data):
    with pytest.raises(ValueError, match="set_bits: bits must be one of 32, 8, 4, 2, got 6"):
        train(convert(tiny_model(), BITS), data, (8, 6))
    with pytest.raises(ValueError, match="train: bits must go from high to low without repeats"):
        train(tiny_model(), data, ())
