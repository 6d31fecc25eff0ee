"""accelerate and restore, whatever the library: what stays of a module, what is left alone, what an example shows."""

import copy
import io
import pickle
import time

import pytest
import torch
from torch import nn
from torch.ao.quantization import FakeQuantize, MinMaxObserver

from mbq_train import accelerate, restore
from mbq_train.drop_in import acceleration
from mbq_train.drop_in.replacement import is_replaced

ROWS = 512


def network(width=64):
    """Quantizers of activations of 512 x 64 elements, which kernels take, and of four, which they leave."""
    torch.manual_seed(0)
    small = nn.Sequential(nn.AdaptiveAvgPool1d(4), FakeQuantize(MinMaxObserver))
    return nn.Sequential(nn.Linear(8, width), FakeQuantize(), nn.BatchNorm1d(width), nn.Dropout(), FakeQuantize(),
                         small)


def names(entries):
    return [entry.name for entry in entries]


def test_second_call_is_as_good_as_one():
    model = network()
    first, classes = accelerate(model), [type(module) for module in model.modules()]
    assert names(first.replaced) == ["1", "4", "5.1"] and not first.left
    assert accelerate(model) == first and [type(module) for module in model.modules()] == classes
    assert restore(model) == 3 and restore(model) == 0
    assert not any(map(is_replaced, model.modules())) and not any("mbq_plan" in vars(m) for m in model.modules())


def test_nothing_to_replace():
    with pytest.warns(RuntimeWarning, match="model should hold a fake-quantizer that can be replaced, got none"):
        report = accelerate(nn.Linear(2, 2))
    assert str(report) == "0 modules replaced, 0 left\n"
    for function in (accelerate, restore):
        with pytest.raises(TypeError, match="model must be a torch.nn.Module, got int"):
            function(3)


def test_everything_else_stays():
    model, calls = network(), []
    quantizer = model[1]
    quantizer.register_forward_hook(lambda module, args, output: calls.append(module))
    quantizer.note = "kept"
    keys, parameters = list(model.state_dict()), list(map(id, model.parameters()))
    accelerate(model.eval())
    assert model[1] is quantizer and isinstance(quantizer, FakeQuantize) and quantizer.note == "kept"
    assert list(model.state_dict()) == keys and list(map(id, model.parameters())) == parameters
    assert not quantizer.training and repr(model) == repr(network())
    model(torch.randn(ROWS, 8))
    assert calls == [quantizer]


@pytest.mark.parametrize("way", ["deepcopy", "pickle", "save"])
def test_copies(way):
    model = network()
    accelerate(model)
    if way == "deepcopy":
        twin = copy.deepcopy(model)
    elif way == "pickle":
        twin = pickle.loads(pickle.dumps(model))
    else:
        torch.save(model, buffer := io.BytesIO())
        twin = torch.load(io.BytesIO(buffer.getvalue()), weights_only=False)
    x = torch.randn(ROWS, 8)
    assert torch.equal(model.eval()(x), twin.eval()(x)) and restore(twin) == 3 and is_replaced(model[1])
    assert type(twin[1]) is FakeQuantize


def test_shared_modules_are_one():
    quantizer = FakeQuantize()
    model = nn.Sequential(nn.Linear(8, 64), quantizer, nn.Linear(64, 64), quantizer)
    twin, x = copy.deepcopy(model), torch.randn(ROWS, 8)
    assert names(accelerate(model).replaced) == ["1"]
    assert torch.equal(model(x), twin(x)) and torch.equal(model[1].scale, twin[1].scale) and restore(model) == 1


def test_functional_call():
    model = network().eval()
    twin, x = copy.deepcopy(model), torch.randn(ROWS, 8)
    accelerate(model)
    state = {name: value.clone() for name, value in model.state_dict().items()}
    assert torch.equal(torch.func.functional_call(model, state, (x,)), twin(x))
    assert torch.equal(state["1.scale"], twin[1].scale) and not torch.equal(model[1].scale, twin[1].scale)


def test_left_alone():
    own, compiled, parametrized = FakeQuantize(), FakeQuantize(), FakeQuantize()
    own.forward = lambda x: x
    compiled.compile()
    nn.utils.parametrize.register_parametrization(parametrized, "scale", nn.Identity())
    model = nn.ModuleDict({"own": own, "compiled": compiled, "wrapped": torch.compile(FakeQuantize()),
                           "scripted": torch.jit.script(nn.ReLU()), "parametrized": parametrized})
    with pytest.warns(RuntimeWarning, match=r"own \(FakeQuantize\): has a forward of its own instance"):
        report = accelerate(model)
    assert not report.replaced and names(report.left) == list(model)
    reasons = " ".join(entry.why for entry in report.left)
    assert reasons.count("accelerate the model before") == 3 and "is parametrized" in reasons


def test_an_error_of_a_family_leaves_the_model_as_it_was(monkeypatch):
    def family(module):
        if isinstance(module, nn.Dropout):
            raise LookupError("unknown")

    model = network()
    monkeypatch.setattr(acceleration, "FAMILIES", (*acceleration.FAMILIES, family))
    with pytest.raises(LookupError):
        accelerate(model)
    assert not any(map(is_replaced, model.modules()))


def test_compiled():
    """As the original is: torch compiles nothing of a network whose quantizers ask their switches."""
    original = network()
    ours = copy.deepcopy(original)
    accelerate(ours)
    for model in (original, ours):
        model[3].p = 0.0
    torch._dynamo.reset()
    compiled = torch.compile(ours, backend="eager")
    for _ in range(2):
        x = torch.randn(ROWS, 8)
        expected, out = original(x), compiled(x)
        assert torch.equal(out, expected)
    assert all(torch.equal(value, original.state_dict()[name]) for name, value in ours.state_dict().items())


def test_many_layers_in_less_than_a_second():
    model = nn.Sequential(*(layer for _ in range(100) for layer in (nn.Linear(4, 4), FakeQuantize())))
    start = time.perf_counter()
    assert len(accelerate(model).replaced) == 100
    assert time.perf_counter() - start < 1


@pytest.mark.parametrize("example", [torch.randn(ROWS, 8), (torch.randn(ROWS, 8),), {"input": torch.randn(ROWS, 8)}],
                         ids=["tensor", "tuple", "dict"])
def test_example(example):
    """Of the model and of the random numbers nothing changes; what kernels leave to the original is left alone."""
    model = network()
    before = copy.deepcopy(model.state_dict())
    state = torch.random.get_rng_state()
    report = accelerate(model, example=example)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not any(module._forward_pre_hooks for module in model.modules())
    assert names(report.replaced) == ["1", "4"] and names(report.left) == ["5.1"]
    assert [is_replaced(module) for module in (model[1], model[4], model[5][1])] == [True, True, False]
    left = report.left[0]
    assert left.why == "not faster with the example" and left.timing.gain < acceleration.WORTHWHILE
    for entry in report.replaced:
        assert entry.timing.gain == entry.timing.original / entry.timing.fused > acceleration.WORTHWHILE
    lines = str(report).splitlines()
    assert lines[0].split() == ["module", "type", "library", "action", "original", "fused", "gain", "why"]
    assert f"{report.replaced[0].timing.gain:.2f} x" in lines[1] and lines[-1].startswith("forward and backward of")


def test_modules_of_one_configuration_are_timed_once(monkeypatch):
    calls = []
    real = acceleration.measure.__globals__["_timing"]
    monkeypatch.setitem(acceleration.measure.__globals__, "_timing",
                        lambda *args: calls.append(1) or real(*args))
    model = nn.Sequential(*(FakeQuantize() for _ in range(5)), FakeQuantize(MinMaxObserver))
    model.append(nn.Flatten(0)).append(FakeQuantize())
    report = accelerate(model, example=torch.randn(ROWS, 64))
    assert len(calls) == 3 and all(entry.timing is not None for entry in report.entries)


def test_module_that_the_example_does_not_reach():
    class Half(nn.Module):
        def __init__(self):
            super().__init__()
            self.used, self.unused = FakeQuantize(), FakeQuantize()

        def forward(self, x):
            return self.used(x)

    report = accelerate(Half(), example=torch.randn(ROWS, 64))
    assert names(report.replaced) == ["used", "unused"]
    assert report.replaced[0].timing is not None and report.replaced[1].timing is None


def test_bad_example():
    model = network()
    with pytest.raises(ValueError, match="accelerate: example must be what Sequential can be called with, got an"):
        accelerate(model, example=torch.randn(3, 5))
    with pytest.raises(TypeError, match="accelerate: example must be a tensor, a tuple of arguments or a dict"):
        accelerate(model, example=[1])
    assert not any(map(is_replaced, model.modules()))
