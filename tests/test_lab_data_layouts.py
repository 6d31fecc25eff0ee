"""Every layout gives the pixels, labels and class names that were written."""

import os
import pickle
from pathlib import Path

import image_sets as sets
import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image

from mbq_lab.data import load_data


def in_order(data, part="train"):
    """All images of a part in the order of their rows, as the uint8 they were; and the labels."""
    options = {"seed": 0, "epoch": 0}
    batches = list(data.train_batches(7, **options) if part == "train" else data.test_batches(7))
    images, labels, rows = (torch.cat(values) for values in list(zip(*batches, strict=True))[:3])
    images, labels = images[rows.argsort()], labels[rows.argsort()]
    return (images * data._deviation + data._mean).round().to(torch.uint8), labels.tolist()


def assert_holds(data, pixels, labels, part="train"):
    images, found = in_order(data, part)
    assert torch.equal(images, pixels) and found == labels


def test_digits_are_the_split_of_scikit_learn_in_8_bits():
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    data = load_data("digits")
    assert (data.name, data.classes, data.in_channels, data.image_size) == ("digits", 10, 1, (8, 8))
    assert (data.train_size, data.test_size, data.augment) == (1347, 450, ())
    images, labels = load_digits(return_X_y=True)
    train, test, train_labels, test_labels = train_test_split(images, labels, test_size=0.25, stratify=labels,
                                                              random_state=0)
    for part, values, expected in (("train", train, train_labels), ("test", test, test_labels)):
        assert_holds(data, torch.tensor(values).reshape(-1, 1, 8, 8).to(torch.uint8), expected.tolist(), part)
    batch = next(data.train_batches(1347, seed=0, epoch=0))
    values = torch.tensor(train, dtype=torch.float32).reshape(-1, 1, 8, 8)
    torch.testing.assert_close(batch.images, ((values - values.mean()) / values.std())[batch.rows])


@pytest.mark.parametrize("options", [
    {}, {"struct": False, "image": "image", "label": "fine_label"}, {"image": "picture", "label": "kind"},
    {"label": "labels", "label_type": pa.uint8()}, {"group": 5},
    {"extra": {"coarse_label": [0] * 24}, "label": "fine_label", "test": 24},
], ids=["img label", "binary image fine_label", "other names", "labels uint8", "row groups", "coarse labels too"])
def test_parquet(tmp_path, options):
    (train, labels), (test, test_labels) = sets.parquet_set(tmp_path / "birds", **options)
    data = load_data(tmp_path / "birds", augment="none")
    assert (data.name, data.classes, data.class_names, data.in_channels) == ("birds", 3, None, 3)
    assert_holds(data, sets.tensor_of(train), labels)
    assert_holds(data, sets.tensor_of(test), test_labels, "test")


def test_parquet_in_shards_with_validation_and_class_names(tmp_path):
    pixels, names = sets.make_pixels(12), ["ant", "bee"]
    raws = [sets.encode(image) for image in pixels]
    for shard in (2, 0, 1):  # read in the order of their names
        part = slice(3 * shard, 3 * shard + 3)
        sets.write_parquet(tmp_path / f"train-0000{shard}-of-00003.parquet", raws[part], [0, 1, shard % 2],
                           class_names=names, group=2)
    sets.write_parquet(tmp_path / "validation.parquet", raws[9:], [1, 0, 1], class_names=names)
    data = load_data(str(tmp_path), augment="none")
    assert data.class_names == ("ant", "bee") and data.classes == 2
    assert_holds(data, sets.tensor_of(pixels[:9]), [0, 1, 0, 0, 1, 1, 0, 1, 0])
    assert_holds(data, sets.tensor_of(pixels[9:]), [1, 0, 1], "test")


@pytest.mark.parametrize("protocol", [2, 4, 5])
@pytest.mark.parametrize("parent", [True, False], ids=["parent", "itself"])
def test_cifar10(tmp_path, protocol, parent):
    rows, labels = sets.cifar10(tmp_path / "cifar-10-batches-py", protocol=protocol)
    data = load_data(tmp_path if parent else tmp_path / "cifar-10-batches-py", augment="none")
    assert data.class_names == ("ant", "bee", "cat") and data.image_size == (32, 32)
    assert_holds(data, torch.tensor(rows).reshape(-1, 3, 32, 32), labels)
    assert_holds(data, torch.tensor(sets.cifar_rows(3, seed=1)).reshape(-1, 3, 32, 32), [2, 0, 1], "test")


def test_cifar10_as_python_2_wrote_it(tmp_path):
    rows, _ = sets.cifar10(tmp_path)
    written = sets.python2_pickle(rows[:4], [2, 1, 0, 2])
    assert np.array_equal(pickle.loads(written, encoding="bytes")[b"data"], rows[:4])  # numpy's own reading
    sets.dump(tmp_path / "data_batch_1", written)
    assert_holds(load_data(tmp_path, augment="none"), torch.tensor(rows).reshape(-1, 3, 32, 32),
                 [2, 1, 0, 2] + [i % 3 for i in range(4, 20)])


def test_cifar100_has_its_fine_labels(tmp_path):
    rows = sets.cifar100(tmp_path / "cifar-100-python")
    data = load_data(tmp_path, augment="none")
    assert data.class_names == ("ant", "bee", "cat")
    assert_holds(data, torch.tensor(rows).reshape(-1, 3, 32, 32), [0, 1, 2, 0, 1, 2])


@pytest.mark.parametrize("words", [True, False])
def test_tiny_imagenet_sorts_its_classes_and_reads_the_annotations(tmp_path, words):
    sets.tiny_imagenet(tmp_path, words=words)
    data = load_data(tmp_path, augment="none")
    assert data.class_names == (("fish, big one", "frog", "fox") if words else ("n01", "n02", "n03"))
    paths = [tmp_path / "train" / wnid / "images" / f"{wnid}_{i}.JPEG" for wnid in ("n01", "n02", "n03")
             for i in range(2)]
    assert_holds(data, read(paths), [0, 0, 1, 1, 2, 2])
    assert_holds(data, read([tmp_path / "val" / "images" / f"val_{i}.JPEG" for i in range(3)]), [2, 0, 1], "test")


@pytest.mark.parametrize("test_name", ["val", "test", "validation"])
def test_image_folder(tmp_path, test_name):
    pixels = sets.image_folder(tmp_path, test_name=test_name)
    (tmp_path / "train" / "ant" / ".hidden").write_text("not an image")
    data = load_data(tmp_path, augment="none")
    assert (data.class_names, data.train_size, data.test_size) == (("ant", "bee", "cat"), 12, 6)
    assert_holds(data, sets.tensor_of(pixels), [0] * 4 + [1] * 4 + [2] * 4)


@pytest.mark.filterwarnings("error")
def test_images_below_a_class_and_of_every_mode_become_rgb(tmp_path):
    sets.image_folder(tmp_path, train=1)
    image = Image.fromarray(sets.make_pixels(1, seed=5)[0])
    deep = tmp_path / "train" / "ant" / "x" / "y"
    deep.mkdir(parents=True)
    transparent = image.convert("P")
    transparent.info["transparency"] = bytes(range(256))
    kept = {"gray.png": image.convert("L"), "one.png": image.convert("1"), "palette.png": transparent,
            "alpha.png": image.convert("RGBA"), "ink.tif": image.convert("CMYK")}
    for name, picture in kept.items():
        picture.save(deep / name)
    images, labels = in_order(load_data(tmp_path, augment="none"))
    assert labels == [0] * 6 + [1, 2]
    for found, name in zip(images[1:6], sorted(kept), strict=True):
        expected = kept[name].convert("RGBA").convert("RGB") if name == "palette.png" else kept[name].convert("RGB")
        assert torch.equal(found.permute(1, 2, 0), torch.tensor(np.array(expected))), name


def test_images_of_many_sizes_are_made_to_fit(tmp_path):
    sets.image_folder(tmp_path, size=(8, 8))
    wide = np.zeros((16, 64, 3), dtype=np.uint8)
    wide[:, 24:40] = 200  # its centre
    sets.write_image(tmp_path / "train" / "ant" / "0.png", wide)
    data = load_data(tmp_path, augment="none", image_size=8)
    images, _ = in_order(data)
    assert data.image_size == (8, 8) and images.shape == (12, 3, 8, 8)
    assert (images[0, :, :, 1:-1] == 200).all() and (images[0] > 100).all()
    assert load_data(tmp_path, augment="none", image_size=(4, 6)).image_size == (4, 6)


def test_a_name_is_a_folder_or_one_under_the_environment_variable(tmp_path, monkeypatch):
    sets.parquet_set(tmp_path / "data" / "birds", train=3, test=3)
    sets.parquet_set(tmp_path / "here" / "birds", train=6, test=3)
    monkeypatch.setenv("MBQ_DATA", str(tmp_path / "data"))
    assert load_data("birds").train_size == 3
    monkeypatch.chdir(tmp_path / "here")
    assert load_data("birds").train_size == 6
    monkeypatch.chdir("birds")
    assert load_data(".").name == "birds"


def test_cifar10_in_parquet_files_of_ones_own():
    root = os.environ.get("MBQ_DATA")
    if not root or not (Path(root) / "cifar10" / "train.parquet").is_file():
        pytest.skip("MBQ_DATA names no folder with cifar10/train.parquet")
    data = load_data("cifar10", train_limit=500, test_limit=100)
    assert (data.classes, data.train_size, data.test_size, data.image_size) == (10, 500, 100, (32, 32))
    batch = next(data.train_batches(500, seed=0, epoch=0))
    assert batch.labels.bincount().tolist() == [50] * 10
    assert data.augment == ("crop", "flip") and 0.5 < batch.images.std() < 1.5


def read(paths):
    return sets.tensor_of(np.stack([np.array(Image.open(path)) for path in paths]))
