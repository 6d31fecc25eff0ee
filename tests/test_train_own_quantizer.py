"""A user's own quantizer: a quantizer and its spec, outside the package."""

import copy
import pickle
from dataclasses import dataclass, field
from typing import ClassVar

import pytest
import torch
from networks import one_thread, small_network  # noqa: F401

from mbq_lab import Options
from mbq_train import (
    BaseWeightQuantizer,
    DoubleRounding,
    Learned,
    WeightBank,
    WeightSpec,
    at_bits,
    convert,
    export_onnx,
    export_store,
    get_bits,
    load_quantized,
    save_checkpoint,
    set_bits,
)
from mbq_train.quantize import specs

BITS = (8, 4, 2)


def power_of_two(x, *, bits, highest, out_dtype):
    exponent = x.detach().abs().clamp_min(1e-12).log2().round().clamp(highest - 2.0 ** (bits - 1), highest)
    return x + (x.sign() * exponent.exp2() - x).detach().to(out_dtype or x.dtype)


class PowerOfTwoQuantizer(BaseWeightQuantizer):
    kernel = staticmethod(power_of_two)

    def __init__(self, bit_state, *, layer_name, highest):
        super().__init__(bit_state, signed=True, layer_name=layer_name)
        self.highest = highest

    def options(self):
        return {"bits": self.bits, "highest": self.highest}


@dataclass(frozen=True)
class PowerOfTwo(WeightSpec):
    name: ClassVar[str] = "power-of-two"
    highest: int = 0  # a plain field, not an option of the command

    def weight_quantizer(self, bit_state, weight, *, layer_name):
        return PowerOfTwoQuantizer(bit_state, layer_name=layer_name, highest=self.highest)


specs._SPECS.pop(PowerOfTwo.name)  # known to the tests of this file alone


@pytest.fixture(autouse=True)
def known(monkeypatch):
    monkeypatch.setattr(specs, "_SPECS", {**specs._SPECS, PowerOfTwo.name: PowerOfTwo})


@pytest.fixture
def images():
    torch.manual_seed(1)
    return torch.rand(8, 1, 8, 8)


def test_it_converts_trains_copies_and_loads(tmp_path, images):
    model = convert(small_network(), BITS, weights=PowerOfTwo(highest=-1), example=images)
    model(images).sum().backward()
    assert model[3].weight.grad.any()
    set_bits(model.eval(), 2)
    outputs = model(images)
    save_checkpoint(tmp_path / "model.safetensors", model)
    loaded = load_quantized(tmp_path / "model.safetensors", small_network())
    assert loaded[3].specs.weights == PowerOfTwo(highest=-1)
    assert set(model[3].quantized_weight().abs().flatten().tolist()) <= {0.125, 0.25, 0.5}
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model)), at_bits(model, 2), loaded):
        set_bits(other, 2)
        torch.testing.assert_close(other(images), outputs, rtol=0, atol=0)


def test_what_it_does_not_define_is_named(tmp_path, images):
    model = convert(small_network(), BITS, weights=PowerOfTwo(), example=images)
    bank = WeightBank(model, BITS)
    bank.fill()
    for layer in (layer for layer in model if hasattr(layer, "weight_quantizer")):
        for b, value in layer.weight_quantizer.held.items():
            assert torch.equal(value, layer.weight_quantizer.at(layer.weight, b)) and get_bits(model) == BITS[0]
    bank.drop()
    with pytest.raises(NotImplementedError, match="^3: PowerOfTwoQuantizer must define stored, or codes"):
        export_store(model, tmp_path / "model.safetensors", bits=4)
    pytest.importorskip("onnxscript")
    with pytest.raises(NotImplementedError, match="^3: PowerOfTwoQuantizer must define stored, or codes"):
        export_onnx(model, tmp_path / "model.onnx", bits=4, example=images)


def test_plain_fields_are_no_options_of_the_command():
    assert specs.flag_of(PowerOfTwo.__dataclass_fields__["highest"]) == ""
    assert "highest" not in Options.__dataclass_fields__


def test_options_of_other_types_are_refused():
    for wrong in (1, 0.0, "yes", torch.ones(2)):
        with pytest.raises(TypeError, match="Learned: signed must be True, False or None"):
            Learned(signed=wrong)
    with pytest.raises(ValueError, match=r"rounding must be one of half_even, half_up, got \['half_even"):
        DoubleRounding(rounding=["half_even"])


def test_a_name_is_taken_once():
    with pytest.raises(ValueError, match="Other: name must be its own, got 'learned', that of Learned"):
        type("Other", (WeightSpec,), {"name": "learned"})
    assert specs.spec_types(WeightSpec)["learned"] is Learned
    again = type("PowerOfTwo", (WeightSpec,), {"name": "power-of-two", "__module__": __name__})  # a cell, run again
    assert specs.spec_types(WeightSpec)["power-of-two"] is again


@dataclass(frozen=True)
class Nameless(WeightSpec):
    pass


@dataclass(frozen=True)
class Inherits(Learned):
    pass


@dataclass(frozen=True)
class Holds(WeightSpec):
    name: ClassVar[str] = "holds"
    values: object = field(default=())


specs._SPECS.pop(Holds.name)


@pytest.mark.parametrize("spec", [Nameless(), Inherits(), Holds((1, 2)), Holds(torch.ones(1)), Holds(float("nan"))],
                         ids=["no name", "name of another", "tuple", "tensor", "nan"])
def test_a_spec_that_no_checkpoint_keeps_is_refused_before_training(spec, monkeypatch):
    monkeypatch.setitem(specs._SPECS, Holds.name, Holds)
    with pytest.raises(TypeError, match="weights must be a spec with a name of its own and options that JSON keeps"):
        convert(small_network(), BITS, weights=spec)
    with pytest.raises(TypeError, match="weights must be a spec with a name of its own and options that JSON keeps"):
        convert(small_network(), BITS, rules=[("3", {"weights": spec})])
