"""Checkpoints and configurations on disk."""

import pytest
import torch
from networks import tiny_model
from torch import nn

from mbq_train import CheckpointError, convert, load_checkpoint, save_checkpoint, set_bits
from mbq_train.checkpoint import load_json
from mbq_train.files import atomic_path

BITS = (8, 4, 2)


def outputs(model, images):
    result = []
    for bits in (32, *BITS):
        set_bits(model, bits)
        result.append(model(images).detach())
    return result


@pytest.mark.parametrize("batch_norm", ["per_bit", "shared"])
def test_checkpoint_round_trip(tmp_path, batch_norm):
    images = torch.randn(9, 1, 8, 8)
    model = convert(tiny_model(), BITS, batch_norm=batch_norm)
    outputs(model, images)  # in training mode: gives the scales their first values
    save_checkpoint(tmp_path / "model.safetensors", model)
    loaded = convert(tiny_model(seed=1), BITS, batch_norm=batch_norm)
    load_checkpoint(tmp_path / "model.safetensors", loaded)
    expected = outputs(model.eval(), images)
    assert len({out.sum().item() for out in expected}) == 4  # the bit-widths differ
    assert all(torch.equal(a, b) for a, b in zip(outputs(loaded.eval(), images), expected, strict=True))
    assert [path.name for path in tmp_path.iterdir()] == ["model.safetensors"]


@pytest.fixture
def checkpoint(tmp_path):
    path = tmp_path / "checkpoint.safetensors"
    save_checkpoint(path, convert(tiny_model(), BITS))
    return path


def test_truncated_checkpoints_are_named_and_change_nothing(checkpoint):
    whole = checkpoint.read_bytes()
    model = convert(tiny_model(seed=1), BITS)
    before = model[0].weight.detach().clone()
    for size in (0, 4, 100, len(whole) // 2, len(whole) - 1):
        checkpoint.write_bytes(whole[:size])
        with pytest.raises(CheckpointError, match="path must be a whole safetensors file, got .*checkpoint"):
            load_checkpoint(checkpoint, model)
    assert torch.equal(model[0].weight, before)
    checkpoint.write_bytes(whole)
    load_checkpoint(checkpoint, model)
    assert not torch.equal(model[0].weight, before)


def test_checkpoints_of_other_models_say_what_differs(checkpoint):
    cases = [(convert(tiny_model(), (8, 4, 2, 1)), r"which lacks 1\.by_bits\.1\.bias, .* and \d+ more"),
             (convert(tiny_model(), (8, 4)), r"which has unknown 1\.by_bits\.2\.bias, "),
             (convert(nn.Sequential(nn.Conv2d(1, 5, 3), *tiny_model()[1:]), BITS),
              r"0\.bias must have shape \(5,\), got \(4,\) in .*checkpoint\.safetensors")]
    for model, match in cases:
        with pytest.raises(CheckpointError, match=match):
            load_checkpoint(checkpoint, model)


def test_missing_checkpoint_and_broken_json_are_named(tmp_path):
    with pytest.raises(CheckpointError, match=r"nothing\.safetensors \(no such file\)"):
        load_checkpoint(tmp_path / "nothing.safetensors", tiny_model())
    for text, match in (("{", "must be a JSON file, got .*config.json"), ("[1]", "must hold a JSON object, got list")):
        (tmp_path / "config.json").write_text(text)
        with pytest.raises(CheckpointError, match=match):
            load_json(tmp_path / "config.json")


def test_tied_weights_are_saved_and_loaded(tmp_path):
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    model[1].weight = model[0].weight
    save_checkpoint(tmp_path / "tied", model)
    other = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    load_checkpoint(tmp_path / "tied", other)
    assert torch.equal(other[1].weight, model[0].weight) and torch.equal(other[0].weight, model[0].weight)


def test_an_interrupted_write_leaves_the_old_file_and_no_other(tmp_path):
    path = tmp_path / "file"
    path.write_text("old")
    with pytest.raises(KeyboardInterrupt, match="now"), atomic_path(path) as temporary:
        temporary.write_text("half")
        raise KeyboardInterrupt("now")
    assert [(entry.name, entry.read_text()) for entry in tmp_path.iterdir()] == [("file", "old")]
