"""What lies in memory and what is streamed; limits; normalisation."""

import ast
from pathlib import Path

import image_sets as sets
import pytest
import torch

from mbq_lab import data as package
from mbq_lab.data import load_data, memory
from mbq_lab.data.load import stratified
from mbq_lab.data.memory import channel_statistics


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("birds")
    sets.parquet_set(folder, train=46, test=9)
    return folder


def test_images_in_memory_have_no_mean_and_unit_deviation_in_every_channel(folder):
    images = torch.cat([batch.images for batch in load_data(folder, augment="none").train_batches(50, seed=0, epoch=0)])
    values = images.double().transpose(0, 1).flatten(1)
    torch.testing.assert_close(values.mean(1), torch.zeros(3, dtype=torch.float64), atol=1e-6, rtol=0)
    torch.testing.assert_close(values.std(1), torch.ones(3, dtype=torch.float64), atol=1e-6, rtol=0)


def test_statistics_are_those_of_float64_and_of_the_images_kept(folder):
    images = torch.randint(0, 256, (20, 3, 5, 7), dtype=torch.uint8)
    images[:, 2] = 9
    mean, deviation = channel_statistics(images)
    values = images.double().transpose(0, 1).flatten(1)
    torch.testing.assert_close(mean, values.mean(1), rtol=1e-14, atol=0)
    torch.testing.assert_close(deviation, torch.stack([values[0].std(), values[1].std(), torch.tensor(1.0).double()]),
                               rtol=1e-13, atol=0)
    limited, whole = load_data(folder, train_limit=6), load_data(folder)
    assert not torch.equal(limited._mean, whole._mean)


@pytest.mark.parametrize("options, kind, size, names", [
    ({}, "MemoryData", (8, 8), ("crop", "flip")),
    ({"memory_limit": 55 * 3 * 64}, "MemoryData", (8, 8), ("crop", "flip")),
    ({"memory_limit": 55 * 3 * 64 - 1}, "StreamData", (224, 224), ("resized-crop", "flip")),
    ({"memory_limit": 0, "image_size": 16, "augment": "none"}, "StreamData", (16, 16), ()),
    ({"augment": "flip, resized-crop", "image_size": (12, 16)}, "StreamData", (12, 16), ("flip", "resized-crop")),
    ({"augment": "cutout"}, "MemoryData", (8, 8), ("cutout",)),
    ({"image_size": 1000}, "MemoryData", (1000, 1000), ("crop", "flip")),
    ({"image_size": 1000, "memory_limit": 55 * 3 * 10**6 - 1}, "StreamData", (1000, 1000), ("resized-crop", "flip")),
], ids=str)
def test_what_fits_is_in_memory_and_auto_follows(folder, monkeypatch, options, kind, size, names):
    monkeypatch.setattr(memory, "decode_all", lambda split, size, resize: torch.zeros(len(split), 3, 2, 2).byte())
    data = load_data(folder, **options)
    assert (type(data).__name__, data.image_size, data.augment) == (kind, size, names)


def test_limits_keep_every_class_by_its_share_and_always_the_same_rows(folder):
    data = load_data(folder, train_limit=9, test_limit=3, augment="none")
    assert (data.train_size, data.test_size) == (9, 3)
    batch = next(data.train_batches(9, seed=0, epoch=0))
    assert batch.labels.bincount().tolist() == [3, 3, 3]
    again = next(load_data(folder, train_limit=9, augment="none").train_batches(9, seed=0, epoch=0))
    assert torch.equal(batch.images, again.images)
    assert next(data.test_batches(3)).labels.bincount().tolist() == [1, 1, 1]


def test_stratified_rows_are_nested_and_proportional():
    labels = torch.tensor([0] * 60 + [1] * 30 + [2] * 10)[torch.randperm(100)]
    for limit in range(3, 101):
        rows = stratified(labels, limit)
        assert len(set(rows.tolist())) == limit and rows.tolist() == sorted(rows.tolist())
        counts = labels[rows].bincount(minlength=3)
        assert all(abs(counts[c] - limit * share) <= 1 for c, share in enumerate((0.6, 0.3, 0.1)))
        assert set(rows.tolist()) <= set(stratified(labels, min(limit + 1, 100)).tolist())
    rare = stratified(torch.tensor([0] * 98 + [1, 2]), 3)
    assert rare.tolist()[1:] == [98, 99]


def test_importing_the_data_part_imports_no_reader_of_files():
    paths = sorted(Path(package.__file__).parent.glob("*.py"))
    assert len(paths) > 10
    for path in paths:
        for node in ast.parse(path.read_text()).body:
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else \
                [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not {name.split(".")[0] for name in names} & {"PIL", "pyarrow", "sklearn"}, path
