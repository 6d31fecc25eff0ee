"""Schedules, optimizers and the training loop."""

import math
from dataclasses import replace

import pytest
import torch
from networks import one_thread, tiny_model  # noqa: F401
from small_data import halves
from small_runs import BITS, OPTIONS, train

from mbq_lab import evaluate
from mbq_lab.training.loop import Training
from mbq_lab.training.optimizers import build_optimizer, rate_at
from mbq_train import convert, parameter_groups, set_bits
from mbq_train.batches import Batch
from mbq_train.quantize.bits import bit_states
from mbq_train.quantize.quantizer import quantizers
from mbq_train.training import distillation, steps
from mbq_train.training.optimizers import load_optimizer_tensors, optimizer_tensors, set_rate


@pytest.fixture(scope="module")
def data():
    return halves()


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
