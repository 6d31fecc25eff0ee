"""load_quantized: a float network becomes the one in a file, or stays as it is."""

import json

import pytest
import safetensors
import safetensors.torch
import torch
from networks import one_thread, small_network  # noqa: F401
from torch import nn
from torch.nn.utils import parametrizations

from mbq_train import (
    CheckpointError,
    DoubleRounding,
    Learned,
    convert,
    deploy,
    load_quantized,
    save_checkpoint,
    set_bits,
)

BITS = (8, 4, 2)
LEARNED = {"weights": {"name": "learned"}, "activations": {"name": "float"}}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A file, and the network in it."""
    path = tmp_path_factory.mktemp("trained") / "model.safetensors"
    torch.manual_seed(1)
    model = convert(small_network(), BITS, weights=DoubleRounding(), activations=Learned(bits=8, offset=True),
                    example=torch.rand(8, 1, 8, 8)).eval()
    save_checkpoint(path, model)
    return path, model


def refused(path, model, match):
    """Expect one error that names the file and leaves the model as it is."""
    before = dict(model.named_modules()) if isinstance(model, nn.Module) else {}
    values = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(CheckpointError, match=match) as error:
        load_quantized(path, model)
    assert str(path) in str(error.value)
    assert dict(model.named_modules()) == before
    assert all(torch.equal(value, values[name]) for name, value in model.state_dict().items())


def test_it_computes_as_the_saved_network(trained):
    path, model = trained
    loaded, images = load_quantized(path, small_network()), torch.rand(3, 1, 8, 8)
    for bits in (*BITS, 32):
        for network in (model, loaded):
            set_bits(network, bits)
        assert torch.equal(model(images), loaded(images))


@pytest.mark.parametrize("keys, value", [
    ([], []), ([], "text"), ([], {}), (["bits"], "842"), (["bits"], ["8", "4", "2"]), (["bits"], []),
    (["bits"], [2, 4, 8]), (["bits"], [9, 4]), (["bits"], [8, 4, 1]), (["bits"], [True]), (["bits"], [float("inf")]),
    (["bits"], [8, 6, 4]), (["bits"], None), (["layers"], ["3"]), (["layers"], {}), (["layers", "3"], None),
    (["layers", "none"], LEARNED), (["layers", ""], LEARNED), (["layers", "1"], LEARNED), (["layers", "3"], LEARNED),
    (["layers", "3", "weights"], "learned"), (["layers", "3", "weights"], {"name": "learned", "bits": 3}),
    (["layers", "3", "weights", "name"], ["learned"]), (["layers", "3", "weights", "name"], "float"),
    (["layers", "3", "weights", "younger"], 1), (["layers", "3", "weights", "scale_chain"], 1),
    (["layers", "3", "activations", "bits"], "8"), (["layers", "3", "activations", "correction"], True),
    (["batch_norms"], None), (["batch_norms"], ["0"]), (["batch_norms"], [["1"]]), (["batch_norms"], [""]),
    (["batch_norms"], ["1", "4", "2"]), (["batch_norms"], ["1"]),
], ids=str)
def test_a_damaged_description_is_one_error(trained, tmp_path, keys, value):
    path, _ = trained
    with safetensors.safe_open(path, "pt") as file:
        header = json.loads(file.metadata()["mbq"])
        tensors = {name: file.get_tensor(name) for name in file.keys()}
    inner = header
    *outer, last = ["conversion", *keys]
    for key in outer:
        inner = inner[key]
    inner[last] = value
    damaged = tmp_path / "damaged.safetensors"
    safetensors.torch.save_file(tensors, damaged, {"mbq": json.dumps(header)})
    refused(damaged, small_network(), "^load_quantized: path must ")


def changed(index, make):
    model = small_network()
    model[index] = make(model[index])
    return model


@pytest.mark.parametrize("make, match", [
    (lambda: changed(9, lambda _: nn.Linear(5, 4)), r"9\.bias must have shape \(4,\), got \(3,\)"),
    (lambda: changed(7, lambda _: nn.Linear(96, 5, bias=False)), r"has unknown 7\.bias"),
    (lambda: changed(3, lambda _: nn.Identity()), "must have a layer to convert at '3', got Identity"),
    (lambda: changed(7, parametrizations.weight_norm), "at '7', got ParametrizedLinear: weight is parametrized"),
    (lambda: changed(9, lambda _: nn.LazyLinear(3)), "lazy modules have no weights before"),
    (lambda: convert(small_network(), (8, 4), example=torch.rand(8, 1, 8, 8)), "must not be converted already"),
    (lambda: nn.Linear(3, 3), "got a bare Linear"),
], ids=["wider", "without bias", "another layer", "parametrized", "lazy", "converted", "bare"])
def test_another_network_stays_as_it_is(trained, make, match):
    model = make()
    lazy = any(isinstance(module, nn.LazyLinear) for module in model.modules())
    if lazy:
        with pytest.raises(CheckpointError, match=match):
            load_quantized(trained[0], model)
        assert type(model[3]) is nn.Conv2d
    else:
        refused(trained[0], model, match)


@pytest.mark.parametrize("make", [small_network, lambda: deploy(convert(
    small_network(), BITS, weights=DoubleRounding(), example=torch.rand(8, 1, 8, 8)))], ids=["float", "deployed"])
def test_a_network_that_convert_did_not_leave_has_no_description(tmp_path, make):
    save_checkpoint(tmp_path / "other.safetensors", make())
    refused(tmp_path / "other.safetensors", small_network(), "path must say how its network was converted")


def test_wrong_arguments_are_named(trained, tmp_path):
    path, model = trained
    for call in (lambda: load_quantized(small_network(), path), lambda: save_checkpoint(model, path)):
        with pytest.raises(TypeError, match="model must be an nn.Module, got "):
            call()
    with pytest.raises(TypeError, match="load_quantized: path must be a str or a Path, got int"):
        load_quantized(3, small_network())
    file = tmp_path / "model.safetensors"
    for key in ("version", "conversion"):
        with pytest.raises(ValueError, match=f"metadata must leave {key} to the checkpoint"):
            save_checkpoint(file, model, metadata={key: None})
    with pytest.raises(TypeError, match="metadata must be a JSON object, got .*tensor"):
        save_checkpoint(file, model, metadata={"loss": torch.ones(1)})
    with pytest.raises(ValueError, match="save_checkpoint: step must be a tensor, got int"):
        save_checkpoint(file, model, state={"step": 3})
    assert not file.exists()
