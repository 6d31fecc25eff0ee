"""Runs on the user's own data sets, DataLoaders and networks."""

import json
import os
import random
import signal

import numpy as np
import pytest
import torch
from cli import mbq
from networks import interruptible, one_thread, tiny_model  # noqa: F401
from small_data import Told
from torch.utils.data import DataLoader, Dataset, IterableDataset, Subset, TensorDataset

from mbq_lab import Interrupted, Options, data_of, evaluate, evaluate_run, load_quantized, resume_run, train_run
from mbq_train import get_bits

OPTIONS = Options(bits=(4, 2), epochs=2, float_epochs=1, batch_size=12, learning_rate=1e-2)


class Halves(Dataset):
    """Two classes that a bright half tells apart; noise from every source of random numbers, where it is wanted."""

    def __init__(self, count, noise=0.0):
        self.count, self.noise = count, noise

    def __len__(self):
        return self.count

    def __getitem__(self, row):
        image = torch.zeros(1, 8, 8)
        image[..., 4 * (row % 2):4 * (row % 2) + 4] = 1.0
        noise = torch.rand(1).item() + np.random.rand() + random.random()
        return image + self.noise * noise, row % 2


def pair(noise=0.5, **loader):
    return DataLoader(Halves(60, noise), shuffle=True, **loader), Halves(20)


def same(a, b):
    return all(torch.equal(x.images, y.images) and torch.equal(x.labels, y.labels) and torch.equal(x.rows, y.rows)
               and x.total == y.total for x, y in zip(a, b, strict=True))


def test_batches_are_a_function_of_seed_and_epoch_in_any_number_of_workers_and_processes():
    data, helped = data_of(*pair()), data_of(*pair(num_workers=2))
    assert (data.name, data.classes, data.in_channels, data.image_size) == ("Halves", 2, 1, (8, 8))
    whole = list(data.train_batches(12, seed=1, epoch=3))
    state = torch.get_rng_state(), random.getstate()
    assert same(whole, helped.train_batches(12, seed=1, epoch=3))
    assert same(whole[3:], data.train_batches(12, seed=1, epoch=3, start=3))
    assert torch.equal(torch.get_rng_state(), state[0]) and random.getstate() == state[1]
    assert not torch.equal(whole[0].rows, next(data.train_batches(12, seed=1, epoch=4)).rows)
    assert sorted(torch.cat([batch.rows for batch in whole]).tolist()) == list(range(60))
    assert whole[0].images.unique().numel() > 12  # noise of its own in every image
    parts = [list(data.train_batches(12, seed=1, epoch=3, rank=rank, world=2)) for rank in (0, 1)]
    assert all(torch.equal(batch.images[rank::2], part.images) and part.total == 12
               for rank in (0, 1) for batch, part in zip(whole, parts[rank], strict=True))


def test_labels_are_found_where_pytorch_keeps_them_or_by_reading():
    images, labels = torch.randn(6, 1, 4, 4), torch.tensor([0, 2, 1, 2, 0, 1])
    tensors = TensorDataset(images, labels)
    for train in (tensors, Subset(tensors, range(6))):
        data = data_of(train, tensors)
        assert data.classes == 3 and torch.equal(data.train_labels, labels)
    assert data_of(tensors, tensors, classes=5).classes == 5
    still = list(data.still_batches(4))
    assert torch.equal(torch.cat([batch.images for batch in still]), images) and len(list(data.test_batches(2))) == 3


def test_a_run_on_a_dataloader_and_a_module_goes_on_after_a_stop_as_if_it_had_not_been(tmp_path):
    network = tiny_model()
    result = train_run(OPTIONS, tmp_path / "whole", data=pair(), model=network)
    config = json.loads((tmp_path / "whole/config.json").read_text())
    assert (config["data"], config["model"]) == ("given:Halves", "given:Sequential")
    assert get_bits(network) in (4, 2) and evaluate(network, data_of(*pair()), 2) > 0.9

    def stop(phase, epoch, images, total):
        if (phase, epoch, images) == ("quantized", 1, 24):
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(Interrupted):
        train_run(OPTIONS, tmp_path / "part", data=pair(), model=tiny_model(), observer=Told(batch=stop))
    for missing, match in (({}, "data must be given again: .* a Halves"),
                           ({"data": pair()}, "model must be given again: .* a Sequential"),
                           ({"data": pair(), "model": torch.nn.Linear(2, 2)}, "began with, Sequential, got Linear")):
        with pytest.raises(ValueError, match=match):
            resume_run(tmp_path / "part", **missing)
    resume_run(tmp_path / "part", data=pair(), model=tiny_model())
    records = [[{key: value for key, value in json.loads(line).items() if key in ("loss", "accuracy")}
                for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()] for name in ("whole", "part")]
    assert records[0] == records[1] and len(records[0]) == 4
    again = load_quantized(tmp_path / "whole", tiny_model(seed=1))
    assert all(torch.equal(value, network.state_dict()[name]) for name, value in again.state_dict().items())
    with pytest.raises(ValueError, match="model must be given again: .* a Sequential"):
        load_quantized(tmp_path / "whole")
    floats = tiny_model()
    measured = evaluate_run(tmp_path / "whole", data=pair(), model=floats)
    assert measured.accuracy == result.accuracy and measured.float_accuracy == result.float_accuracy
    assert all(torch.equal(value, tiny_model().state_dict()[name]) for name, value in floats.state_dict().items())
    result = mbq("eval", tmp_path / "whole")
    assert result.exit_code == 2 and result.stderr.startswith("error: data must be given again: ")
    assert "this run began in Python with a Halves" in result.stderr and len(result.stderr.splitlines()) == 1


def test_what_names_data_and_what_gives_it_cannot_both_be(tmp_path):
    with pytest.raises(ValueError, match="train_limit must be left alone where data are given, got 20"):
        train_run(Options(train_limit=20), tmp_path / "run", data=pair())
    train_run(Options(bits=(4,), epochs=1, float_epochs=1, batch_size=16), tmp_path / "run", data=pair())
    assert json.loads((tmp_path / "run/config.json").read_text())["model"] == "resnet8"
    (tmp_path / "run/checkpoint.safetensors").unlink()
    with pytest.raises(ValueError, match="model must be what the run began with, resnet8, got Sequential"):
        resume_run(tmp_path / "run", data=pair(), model=tiny_model())


class Stream(IterableDataset):
    def __iter__(self):
        return iter([])


@pytest.mark.parametrize("train, match", [
    (Stream(), "train must be a map-style data set, .* got Stream"),
    (DataLoader(Stream()), "train must be a map-style data set, .* got Stream"),
    (5, "train must be a map-style data set, .* got int"),
    (Halves(0), "train must hold images, got none"),
    ([torch.zeros(1, 8, 8)], "train must give .image, label., got Tensor of a batch"),
    ([(torch.zeros(1, 8, 8, dtype=torch.uint8), 0)], r"float tensors \(C, H, W\), got torch.uint8 \(1, 1, 8, 8\)"),
    ([(torch.zeros(8), 0)], r"float tensors \(C, H, W\), got torch.float32 \(1, 8\)"),
], ids=["stream", "loader of a stream", "number", "empty", "no label", "bytes", "vectors"])
def test_data_sets_that_cannot_be_used_are_named(train, match):
    with pytest.raises((TypeError, ValueError), match=match):
        data_of(train, Halves(4))


@pytest.mark.parametrize("given, match", [
    ({"data": Halves(4)}, r"data must be a Data or a pair \(train, test\), got Halves"),
    ({"model": "resnet8"}, "model must be an nn.Module, got str"),
], ids=["data", "model"])
def test_what_is_neither_data_nor_a_network_is_an_error(given, match, tmp_path):
    with pytest.raises(TypeError, match=match):
        train_run(OPTIONS, tmp_path / "run", **given)
    assert not (tmp_path / "run").exists()
