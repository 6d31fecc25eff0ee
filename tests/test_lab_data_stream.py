"""Streamed data: workers, windows of row groups, and what is done to an image."""

import os
import pickle
import signal

import image_sets as sets
import numpy as np
import pytest
import torch
from PIL import Image

from mbq_lab.data import DataError, load_data, row_groups
from mbq_lab.data.row_groups import RowGroups
from mbq_lab.data.splits import FileSplit

STREAMED = {"image_size": 16, "memory_limit": 0}


@pytest.fixture(params=["files", "parquet"])
def folder(request, tmp_path):
    """14 training images of 40 x 20, in files or in row groups of four."""
    if request.param == "files":
        sets.image_folder(tmp_path, train=7, classes=("ant", "bee"), size=(40, 20))
    else:
        sets.parquet_set(tmp_path, train=14, test=4, classes=2, size=(40, 20), group=4)
    return tmp_path


def test_the_number_of_workers_changes_no_bit(folder):
    alone, helped = (load_data(folder, workers=workers, **STREAMED) for workers in (0, 2))
    for first, second in zip([*alone.train_batches(4, seed=0, epoch=0, start=1), *alone.test_batches(3)],
                             [*helped.train_batches(4, seed=0, epoch=0, start=1), *helped.test_batches(3)],
                             strict=True):
        assert first.total == second.total and all(map(torch.equal, first[:3], second[:3]))


def test_an_image_is_augmented_alike_in_any_batch(folder):
    data = load_data(folder, **STREAMED)

    def by_row(batch_size):
        batches = list(data.train_batches(batch_size, seed=0, epoch=0))
        return torch.cat([b.images for b in batches])[torch.cat([b.rows for b in batches]).argsort()]

    assert torch.equal(by_row(3), by_row(14))


def test_test_images_are_the_centre_of_the_resized_image(folder):
    batch = next(load_data(folder, **STREAMED).test_batches(1))
    files = (folder / "val").is_dir()
    image = Image.fromarray(sets.make_pixels(18, size=(40, 20))[7 if files else 14])  # the first for testing
    resized = np.array(image.resize((18, 37), Image.Resampling.BILINEAR))  # 16 * 256 / 224 = 18.3 wide
    expected = torch.tensor(resized[10:26, 1:17]).permute(2, 0, 1) / 255
    expected = (expected - torch.tensor([0.485, 0.456, 0.406])[:, None, None]) / \
        torch.tensor([0.229, 0.224, 0.225])[:, None, None]
    torch.testing.assert_close(batch.images[0], expected, atol=1e-5, rtol=1e-5)


def test_still_batches_are_the_centres_of_the_training_images(folder):
    data = load_data(folder, **STREAMED)
    batches = list(data.still_batches(5))
    assert torch.cat([batch.rows for batch in batches]).tolist() == list(range(14))
    assert torch.equal(torch.cat([batch.labels for batch in batches]), data.train_labels)
    assert all(map(torch.equal, batches[0][:3], next(data.still_batches(5))[:3]))


def test_without_a_resized_crop_training_images_are_the_centre_too(tmp_path):
    sets.image_folder(tmp_path, train=2, test=2, size=(40, 20))
    for part in ("train", "val"):
        for path in sorted((tmp_path / part).rglob("*.png")):
            sets.write_image(path, sets.make_pixels(1, size=(40, 20), seed=ord(path.parent.name[0]))[0])
    data = load_data(tmp_path, augment="none", **STREAMED)
    batch, test = next(data.train_batches(6, seed=0, epoch=0)), next(data.test_batches(6))
    assert torch.equal(batch.images[batch.rows.argsort()], test.images)


def test_an_epoch_reads_each_row_group_once(tmp_path, monkeypatch):
    sets.parquet_set(tmp_path, train=120, test=6, group=5)
    data, loads = load_data(tmp_path, **STREAMED), []
    size = data._source.train.groups[0].size
    monkeypatch.setattr(row_groups, "WINDOW_BYTES", 4 * size + size // 2)  # four or five groups
    load = RowGroups._load
    monkeypatch.setattr(RowGroups, "_load", lambda self, group: loads.append(group.number) or load(self, group))
    rows = torch.cat([batch.rows for batch in data.train_batches(8, seed=0, epoch=0)])
    assert sorted(rows.tolist()) == list(range(120))
    assert sorted(loads) == list(range(24)) and len(data._source.train.groups._kept) <= 9
    first = (rows[:20] // 5).unique()
    assert 3 <= len(first) <= 6 and (rows[:19] // 5).diff().count_nonzero() > 8  # mixed within a window
    other = torch.cat([batch.rows for batch in data.train_batches(8, seed=0, epoch=1)])
    assert (other[:20] // 5).unique().tolist() != first.tolist()  # windows are of other groups in the next epoch


def test_row_groups_do_not_travel_to_another_process(tmp_path):
    sets.parquet_set(tmp_path)
    split = load_data(tmp_path, **STREAMED)._source.train
    raw = split.read(3)
    copy = pickle.loads(pickle.dumps(split))
    assert split.groups._kept and not copy.groups._kept and copy.read(3) == raw


def test_a_row_group_larger_than_a_window_and_the_memory_is_an_error(tmp_path, monkeypatch):
    sets.parquet_set(tmp_path, group=6)
    monkeypatch.setattr(row_groups, "WINDOW_BYTES", 900)
    with pytest.raises(DataError, match=r"row groups must have at most 950 bytes of images to be streamed, got \d+ in "
                                        r"row group 0 of .*train.parquet"):
        load_data(tmp_path, memory_limit=950)
    assert load_data(tmp_path).train_size == 24  # in memory any size will do


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("kind", ["files", "parquet"])
def test_a_broken_image_reaches_the_caller_with_its_place(tmp_path, workers, kind):
    if kind == "files":
        sets.image_folder(tmp_path, train=7)
        path = tmp_path / "train" / "bee" / "3.png"
        path.write_bytes(path.read_bytes()[:60])
        place = "bee/3.png"
    else:
        raws = [sets.encode(image) for image in sets.make_pixels(9)]
        sets.write_parquet(tmp_path / "train-0.parquet", raws, [0, 1, 2] * 3, group=2)
        sets.write_parquet(tmp_path / "train-1.parquet", [*raws[:5], raws[5][:60], *raws[6:]], [0, 1, 2] * 3, group=2)
        sets.write_parquet(tmp_path / "test.parquet", raws, [0, 1, 2] * 3)
        place = "row 5 of .*train-1.parquet"
    data = load_data(tmp_path, workers=workers, **STREAMED)
    with pytest.raises(DataError, match=f"^decode_image: image must be one that Pillow can read, got .*{place}"):
        list(data.train_batches(2, seed=0, epoch=0))


def test_a_file_that_went_away_is_an_error_with_its_name(tmp_path):
    sets.image_folder(tmp_path)
    data = load_data(tmp_path, **STREAMED)
    (tmp_path / "train" / "cat" / "2.png").unlink()
    with pytest.raises(DataError, match=r"read: image must be a file that can be read, got .*cat/2.png"):
        list(data.train_batches(4, seed=0, epoch=0))


def test_a_worker_that_dies_is_an_error(tmp_path, monkeypatch):
    sets.image_folder(tmp_path)
    data = load_data(tmp_path, workers=2, **STREAMED)

    def die(self, row):
        assert torch.utils.data.get_worker_info() is not None
        os.kill(os.getpid(), signal.SIGKILL)

    monkeypatch.setattr(FileSplit, "read", die)
    with pytest.raises(RuntimeError, match="DataLoader worker"):
        list(data.train_batches(4, seed=0, epoch=0))


def test_images_of_one_channel_are_not_streamed():
    with pytest.raises(ValueError, match="only images of three channels can be streamed, got digits; .* 115008 or"):
        load_data("digits", augment="resized-crop")
