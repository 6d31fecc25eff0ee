"""Copies, averages, checkpoints and ensembles of a converted network compute like it."""

import copy
import io
import pickle

import pytest
import torch
from networks import one_thread  # noqa: F401
from own_loop import BITS, IMAGES, converted, outputs, step, trained
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from mbq_train import Learned, set_bits
from mbq_train.quantize.quantizer import quantizers
from mbq_train.quantize.scaled_quantizer import ScaledQuantizer

COPIES = {
    "deepcopy": copy.deepcopy,
    "pickle": lambda model: pickle.loads(pickle.dumps(model)),
    "torch.save": lambda model: torch.load(_saved(model), weights_only=False),
    "load_state_dict": lambda model: _filled(model, lambda fresh: fresh.load_state_dict(model.state_dict())),
    "assign": lambda model: _filled(model, lambda fresh: fresh.load_state_dict(model.state_dict(), assign=True)),
    "in place": lambda model: _filled(model, lambda fresh: _copy_into(fresh, model)),
    "average": lambda model: _averaged(model),
    "average with buffers": lambda model: _averaged(model, use_buffers=True),
    "exponential": lambda model: _averaged(model, multi_avg_fn=get_ema_multi_avg_fn(0.5)),
    "exponential with buffers": lambda model: _averaged(model, multi_avg_fn=get_ema_multi_avg_fn(0.5),
                                                        use_buffers=True),
}
OPTIONS = {"learned": {}, "double-rounding": {"quantizer": "double-rounding"},
           "offset": {"activations": Learned(offset=True)}, "round-clamp": {"quantizer": "round-clamp"},
           "any-precision": {"quantizer": "any-precision"}}


def _saved(model):
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return file


def _filled(model, fill):
    fresh = converted(**model.options)
    fill(fresh)
    return fresh


@torch.no_grad()
def _copy_into(fresh, model):
    for name, value in fresh.state_dict().items():
        value.copy_(model.state_dict()[name])


def _averaged(model, **options):
    average = AveragedModel(model, **options)
    for _ in range(3):
        average.update_parameters(model)
    return average


@pytest.mark.filterwarnings("ignore:.*inputs are negative")
@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("kind", COPIES)
def test_a_copy_computes_like_the_original_and_keeps_its_values_in_training(kind, options):
    model = trained(**OPTIONS[options])
    model.options = OPTIONS[options]
    twin = COPIES[kind](model)
    assert torch.equal(outputs(twin), outputs(model))
    before = {name: parameter.detach().clone() for name, parameter in twin.named_parameters()}
    twin.train()
    for bits in BITS:
        set_bits(twin, bits)
        twin(IMAGES)
    assert all(torch.equal(parameter, before[name]) for name, parameter in twin.named_parameters())


def test_functional_call_reads_the_flags_it_is_given():
    model, fresh = trained(), converted()
    expected = outputs(model)
    state = dict(model.named_parameters()) | dict(model.named_buffers())
    for bits, value in zip(BITS, expected, strict=True):
        set_bits(fresh.eval(), bits)
        assert torch.equal(torch.func.functional_call(fresh, state, (IMAGES,)), value)
    with pytest.raises(RuntimeError, match=r"3: ActivationQuantizer must .* convert\(\.\.\., example=batch\)"):
        fresh(IMAGES)


def test_an_ensemble_of_models_runs_under_vmap():
    models = [converted(example=IMAGES + k, batch_norm="shared").eval() for k in range(3)]
    parameters, buffers = torch.func.stack_module_state(models)
    base = copy.deepcopy(models[0])
    together = torch.vmap(lambda p, b: torch.func.functional_call(base, (p, b), (IMAGES,)))(parameters, buffers)
    torch.testing.assert_close(together, torch.stack([model(IMAGES) for model in models]))


def test_an_ensemble_of_models_with_other_flags_is_refused():
    models = [converted(**options, batch_norm="shared").eval() for options in ({"example": IMAGES}, {})]
    parameters, buffers = torch.func.stack_module_state(models)
    with pytest.raises(RuntimeError, match="^3: models of an ensemble must all have first values and signs alike, got"):
        torch.vmap(lambda p, b: torch.func.functional_call(models[0], (p, b), (IMAGES,)))(parameters, buffers)


@pytest.mark.parametrize("save", [False, True], ids=["itself", "saved and loaded"])
@pytest.mark.parametrize("decay", [None, 0.9], ids=["mean", "exponential"])
def test_an_average_that_began_before_the_first_values_is_refused(decay, save):
    model = converted()
    average = AveragedModel(model, multi_avg_fn=decay and get_ema_multi_avg_fn(decay))
    average.update_parameters(model)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
    for _ in range(3):
        step(model, optimizer)
        average.update_parameters(model)
    twin = average.module
    if save:
        twin = converted()
        twin.load_state_dict(average.module.state_dict())
    with pytest.raises(RuntimeError, match=r"3: .* example=batch\)"):
        twin.eval()(IMAGES)


def test_checkpoints_of_before_there_were_units_still_load():
    model = trained()
    old = {name: value for name, value in model.state_dict().items()
           if "scale_units" not in name and "scale_floors" not in name}
    for quantizer, module in ((q, name) for name, q in model.named_modules() if hasattr(q, "scale_units")):
        for b in quantizer.scales:
            old[f"{module}.scales.{b}"] = quantizer.scale(int(b))
        old[f"{module}.initialised"] = quantizer.initialised.bool()
        old[f"{module}.is_signed"] = quantizer.is_signed.bool()
    fresh = converted()
    fresh.load_state_dict(old)
    assert torch.equal(outputs(fresh), outputs(model))


def test_scales_without_their_units_are_refused():
    model, other = converted(example=IMAGES), converted(example=20 * IMAGES)
    with pytest.raises(RuntimeError, match="3: a state with scales must hold their units, scale_units, got Parameters"):
        other.load_state_dict(dict(model.named_parameters()), strict=False)


def test_flags_are_read_only_after_they_were_written(monkeypatch):
    reads = []
    read = ScaledQuantizer._read
    monkeypatch.setattr(ScaledQuantizer, "_read", lambda quantizer: reads.append(quantizer) or read(quantizer))
    model, other = trained(), trained()
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
    outputs(model.train())
    reads.clear()
    step(model.train(), optimizer)
    outputs(model)
    assert not reads
    model.load_state_dict(other.state_dict())
    outputs(model)
    assert {id(quantizer) for quantizer in reads} == {id(quantizer) for quantizer in quantizers(model)}
