"""A checkpoint says how its network was converted: another float network becomes the same, without an example."""

import copy
import json

import pytest
import torch
from networks import (  # noqa: F401
    encoder_network,
    llama_network,
    one_thread,
    small_network,
    specs,
    vision_transformer,
)
from torch import nn

from mbq_train import (
    CheckpointError,
    DoubleRounding,
    Float,
    Learned,
    RoundClamp,
    add_bits,
    convert,
    deploy,
    load_checkpoint,
    load_quantized,
    save_checkpoint,
    set_bits,
    set_layer_bits,
)
from mbq_train.conversion.description import describe, described_conversion

IMAGES = torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(1))
TOKENS = torch.randint(0, 7, (2, 6), generator=torch.Generator().manual_seed(1))


class Shared(nn.Module):
    """A layer under two names, and one whose weight another has too."""

    def __init__(self):
        super().__init__()
        self.a, self.norm = nn.Linear(64, 64), nn.BatchNorm1d(64)
        self.b, self.c, self.head = self.a, nn.Linear(64, 64), nn.Linear(64, 3)
        self.c.weight = self.a.weight

    def forward(self, x):
        return self.head(self.norm(self.c(self.b(torch.relu(self.a(x.flatten(1)))))))


CASES = {
    "learned": (small_network, IMAGES, {}),
    "rules": (small_network, IMAGES, {"rules": [
        ("3", {"weights": RoundClamp(normalise="tanh"), "activations": Float()}),
        ("7", {"activations": Learned(bits=5, offset=True)})], "weights": DoubleRounding(rounding="half_up")}),
    "any-precision": (small_network, IMAGES, {**specs(quantizer="any-precision", weight_correction=True),
                                              "batch_norm": "shared"}),
    "attention": (encoder_network, torch.randn(3, 5, 8, generator=torch.Generator().manual_seed(2)), {}),
    "transformer": (vision_transformer, IMAGES, {"weights": DoubleRounding(scale_chain=True)}),
    "tied": (llama_network, TOKENS, {"keep_float": ()}),
    "shared": (Shared, IMAGES, {"keep_float": ("head",)}),
}


def outputs(model, x):
    found = []
    for bits in (8, 3, 32):
        set_bits(model, bits)
        with torch.no_grad():
            found.append(model.eval()(x))
    return found


@pytest.mark.filterwarnings("ignore:.*inputs are negative")
@pytest.mark.parametrize("case", CASES)
def test_another_network_becomes_the_same_without_an_example(case, tmp_path):
    make, x, options = CASES[case]
    torch.manual_seed(0)
    model = convert(make(), (8, 3), example=x, **options)
    save_checkpoint(tmp_path / "file", model)
    torch.manual_seed(5)
    again = load_quantized(tmp_path / "file", make())
    assert describe(again) == describe(model) == json.loads(json.dumps(describe(model)))
    assert all(map(torch.equal, outputs(again, x), outputs(model, x))) and not again.training


def test_bit_widths_of_layers_and_those_that_were_added_are_there_too(tmp_path):
    model = convert(small_network(), (8, 3), example=IMAGES, weights=RoundClamp())
    set_layer_bits(model, {"3": 5})
    save_checkpoint(tmp_path / "own", model)
    assert all(map(torch.equal, outputs(load_quantized(tmp_path / "own", small_network()), IMAGES),
                   outputs(model, IMAGES)))
    wider = add_bits(convert(small_network(), (8, 3), example=IMAGES), (5,), [IMAGES])
    save_checkpoint(tmp_path / "wider", wider)
    again = load_quantized(tmp_path / "wider", small_network())
    for each in (wider, again):
        set_bits(each.eval(), 5)
    assert torch.equal(again(IMAGES), wider(IMAGES))


def test_networks_that_cannot_be_described_have_no_description(tmp_path):
    assert describe(small_network()) is None
    assert describe(deploy(convert(small_network(), example=IMAGES, weights=DoubleRounding()))) is None
    parts = nn.Sequential(convert(small_network(), example=IMAGES), convert(small_network(), example=IMAGES))
    assert describe(parts) is None
    for model in (small_network(), parts):
        save_checkpoint(tmp_path / "file", model)
        load_checkpoint(tmp_path / "file", copy.deepcopy(model))
        with pytest.raises(CheckpointError, match="path must say how its network was converted, got .*file"):
            load_quantized(tmp_path / "file", small_network())


@pytest.mark.parametrize("other, match", [
    (lambda: nn.Sequential(nn.Linear(2, 2), nn.ReLU()), "model must have a layer to convert at .3., got none"),
    (lambda: nn.Sequential(*(nn.ReLU() for _ in range(10))), "model must have a layer to convert at '3', got ReLU"),
    (lambda: convert(small_network()), "must not be converted already"),
])
def test_another_network_is_named(other, match, tmp_path):
    save_checkpoint(tmp_path / "file", convert(small_network(), example=IMAGES))
    with pytest.raises(CheckpointError, match=f"path must hold a network that is built as model, got .*{match}"):
        load_quantized(tmp_path / "file", other())


@pytest.mark.parametrize("change", [
    {"layers": None}, {"bits": None}, {"bits": "x"}, {"layers": {"3": {}}}, {"batch_norms": ["9"]}, {"batch_norms": 3},
    {"layers": {"3": {"weights": {"name": "nothing"}, "activations": {"name": "learned"}}}},
    {"layers": {"3": {"weights": {"name": "float"}, "activations": {"name": "learned"}}}},
    {"layers": {"3": {"weights": {"name": "learned", "other": 1}, "activations": {"name": "learned"}}}},
    {"bits": [8, 8]}, {"bits": [9]}, {"bits": []},
], ids=str)
def test_a_description_that_is_none_converts_nothing(change):
    description, model = describe(convert(small_network(), example=IMAGES)), small_network()
    before = dict(model.named_modules())
    with pytest.raises(ValueError):
        described_conversion(model, description | change).apply()
    assert dict(model.named_modules()) == before
