"""Bad pickles, folders, names and arguments: an error that names the file, and the row, the line or the class."""

import shutil

import image_sets as sets
import numpy as np
import pytest
import torch
from image_sets import refuses
from PIL import Image


@pytest.mark.parametrize("value, match", [
    ({"data": sets.cifar_rows(4), "labels": [0, 1, 2, 0], "extra": sets.Opens()}, r"it holds (posix|os|nt)\.system"),
    ({"data": sets.cifar_rows(4).astype(np.int64), "labels": [0, 1, 2, 0]}, "arrays must be uint8, got i8"),
    ({"data": np.asfortranarray(sets.cifar_rows(4)), "labels": [0, 1, 2, 0]}, "arrays must be uint8, row by row"),
    ({"data": np.array([object()] * 4), "labels": [0] * 4}, "it holds|arrays must be uint8, got O"),
    ({"data": torch.zeros(4, 3072), "labels": [0] * 4}, "it holds torch"),
    ({"data": sets.cifar_rows(4)[:, :100].copy(), "labels": [0] * 4}, r"must be an array \(N, 3072\), got \(4, 100\)"),
    ({"data": [1, 2], "labels": [0, 1]}, r"data must be an array \(N, 3072\), got \[1, 2\]"),
    ({"labels": [0, 1]}, r"data must be an array \(N, 3072\), got None"),
    ({"data": sets.cifar_rows(4), "labels": [0, 1]}, "labels must be a list of 4 labels, got 2"),
    ({"data": sets.cifar_rows(4)}, "labels must be a list of 4 labels, got NoneType"),
    ({"data": sets.cifar_rows(4), "labels": [0, 1, 3, 0]}, r"label must be in 0..2, got 3 in row 2"),
    ({"data": sets.cifar_rows(4), "labels": [0, -1, 2, 0]}, r"label must be in 0..2, got -1 in row 1"),
    ({"data": sets.cifar_rows(4), "labels": [0, 1.5, 2, 0]}, r"label must be in 0..2, got 1.5 in row 1"),
    ([1, 2], "file must hold a dict, got list"),
    (b"not a pickle", "file must be a pickle of CIFAR"),
    (b"", "file must be a pickle of CIFAR"),
], ids=["foreign", "int64", "column major", "objects", "torch", "narrow", "list", "no data", "few labels", "no labels",
        "high label", "low label", "float label", "no dict", "text", "empty"])
def test_cifar_with_a_bad_file(tmp_path, value, match):
    sets.cifar10(tmp_path)
    sets.dump(tmp_path / "data_batch_3", value)
    refuses(tmp_path, f"(?s)read_cifar: .*{match}.*" if "holds" in match else match)
    refuses(tmp_path, "data_batch_3")


def test_a_pickle_whose_array_lies_about_its_shape(tmp_path):
    rows, _ = sets.cifar10(tmp_path)
    written = sets.python2_pickle(rows[:4], [0, 1, 2, 0])
    assert written.count(b"(K\x04M\x00\x0ct") == 1
    sets.dump(tmp_path / "data_batch_3", written.replace(b"(K\x04M\x00\x0ct", b"(K\x05M\x00\x0ct"))
    refuses(tmp_path, r"data_batch_3 \(an array has not the values of its shape \(5, 3072\)\)")


def test_cifar_without_a_file(tmp_path):
    sets.cifar10(tmp_path / "cifar-10-batches-py")
    (tmp_path / "cifar-10-batches-py" / "test_batch").unlink()
    refuses(tmp_path, "read_cifar: file must be a pickle of CIFAR, got .*test_batch .*No such file")
    (tmp_path / "cifar-10-batches-py" / "batches.meta").unlink()
    refuses(tmp_path, "got .*batches.meta .*No such file")
    sets.dump(tmp_path / "cifar-10-batches-py" / "batches.meta", {"label_names": 10})
    refuses(tmp_path, "label_names must be a list of names, got int in .*batches.meta")


def test_a_folder_with_both_cifars(tmp_path):
    sets.cifar10(tmp_path / "cifar-10-batches-py")
    sets.cifar100(tmp_path / "cifar-100-python")
    refuses(tmp_path, "folder must hold one data set, got cifar-10-batches-py and cifar-100-python")


@pytest.mark.parametrize("old, new, match", [
    ("val_1.JPEG\tn01", "val_1.JPEG\tn09", "class must be in wnids.txt, got 'n09' in line 2 of .*val_annotations.txt"),
    ("val_1.JPEG", "val_7.JPEG", "of an image of its own in .*images, got 'val_7.JPEG' in line 2 of .*val_annotations"),
    ("val_1.JPEG\tn01", "val_0.JPEG\tn01", "of an image of its own in .*images, got 'val_0.JPEG' in line 2"),
    ("val_2.JPEG\tn02\t0\t0\t62\t62\n", "", "image must have a line in .*val_annotations.txt, got .*val_2.JPEG"),
    ("\tn01", " n01", "class must be in wnids.txt, got '0' in line 2 of .*val_annotations.txt"),
], ids=["unknown id", "no image", "twice", "no line", "no tab"])
def test_tiny_imagenet_with_bad_annotations(tmp_path, old, new, match):
    sets.tiny_imagenet(tmp_path)
    path = tmp_path / "val" / "val_annotations.txt"
    assert path.read_text().count(old) == 1
    path.write_text(path.read_text().replace(old, new))
    refuses(tmp_path, match)


@pytest.mark.parametrize("change, match", [
    (lambda folder: (folder / "wnids.txt").unlink(), "file must be readable text, got .*wnids.txt"),
    (lambda folder: (folder / "wnids.txt").write_text(""), "WordNet ids must be there and differ, got 0, 0 different"),
    (lambda folder: (folder / "wnids.txt").write_text("n01\nn01\n"), "must be there and differ, got 2, 1 different"),
    (lambda folder: (folder / "wnids.txt").write_text("n01\nn02\n"), "class must be in wnids.txt, got .*train/n03"),
    (lambda folder: shutil.rmtree(folder / "train" / "n02"), "folder must hold images, got none in .*train/n02/images"),
    (lambda folder: shutil.rmtree(folder / "val" / "images"), "folder must hold images, got none in .*val/images"),
    (lambda folder: (folder / "val" / "val_annotations.txt").unlink(), "readable text, got .*val_annotations.txt"),
], ids=["no wnids", "empty wnids", "twice", "unknown class", "no class", "no val", "no annotations"])
def test_tiny_imagenet_without_its_files(tmp_path, change, match):
    sets.tiny_imagenet(tmp_path)
    change(tmp_path)
    refuses(tmp_path, match)


@pytest.mark.parametrize("change, match", [
    (lambda folder: shutil.rmtree(folder / "val"),
     "folder must hold val, test, validation, valid, testing, got none of them in"),
    (lambda folder: shutil.rmtree(folder / "val" / "bee"), "must have the same classes, got 'bee' only in .*train"),
    (lambda folder: (folder / "val" / "eel").mkdir(), "must have the same classes, got 'eel' only in .*val"),
    (lambda folder: (folder / "train" / "x.png").write_bytes(b""), "lie in a folder of their class, got .*train/x.png"),
    (lambda folder: (folder / "val" / "cat" / "x.txt").write_text("x"), "a suffix that Pillow knows, got .*cat/x.txt"),
    (lambda folder: [path.unlink() for path in (folder / "train" / "cat").iterdir()],
     "folder must hold images, got none in .*train/cat"),
    (lambda folder: [shutil.rmtree(path) for path in (folder / "train").iterdir()],
     "folder must hold a folder for every class, got none in .*train"),
    (lambda folder: (folder / "train" / "cat" / "1.png").write_bytes(b"x"),
     "image must be one that Pillow can read, got .*train/cat/1.png"),
    (lambda folder: Image.fromarray(np.zeros((8, 8), np.uint16)).save(folder / "val" / "ant" / "5.png"),
     "image must have 8 bits a channel, got mode I;16 in .*val/ant/5.png"),
    (lambda folder: (folder / "train" / "cat" / "x.png").symlink_to("nowhere.png"), "file that can be read, got .*x"),
], ids=["no test", "class only in train", "class only in val", "no class", "text", "empty class", "no classes",
        "broken", "16 bits", "link to nothing"])
def test_an_image_folder_that_is_wrong(tmp_path, change, match):
    sets.image_folder(tmp_path)
    change(tmp_path)
    refuses(tmp_path, match)


def test_a_folder_of_no_layout(tmp_path):
    refuses(tmp_path, "load_data: folder must hold train.*, got .* with nothing")
    (tmp_path / "notes.txt").write_text("x")
    refuses(tmp_path, "with notes.txt")
    refuses(tmp_path / "notes.txt", "load_data: name must be a folder, got a file, .*notes.txt", ValueError)


def test_unknown_names_are_answered_with_the_nearest(tmp_path, monkeypatch):
    monkeypatch.delenv("MBQ_DATA", raising=False)
    refuses("digit", r"load_data: name must be one of digits, got 'digit' \(did you mean 'digits'\?\)", ValueError)
    (tmp_path / "cifar10").mkdir()
    monkeypatch.setenv("MBQ_DATA", str(tmp_path))
    refuses("cifar", r"name must be one of cifar10, digits, got 'cifar' \(did you mean 'cifar10'\?\)", ValueError)
    monkeypatch.setenv("MBQ_DATA", str(tmp_path / "missing"))
    refuses("cifar", "load_data: MBQ_DATA must be a folder, got .*missing", ValueError)


@pytest.mark.parametrize("options, match", [
    ({"train_limit": 25}, r"train_limit must be in 3 \(classes\)..24 \(images\), got 25"),
    ({"train_limit": 2}, r"train_limit must be in 3 \(classes\)..24 \(images\), got 2"),
    ({"test_limit": 10}, r"test_limit must be in 3 \(classes\)..9 \(images\), got 10"),
    ({"image_size": 0}, "image_size must be at least 1, got 0"),
    ({"image_size": (8, -1)}, r"image_size must be at least 1, got \(8, -1\)"),
    ({"workers": -1}, "workers must not be negative, got -1"),
    ({"memory_limit": -1}, "memory_limit must not be negative, got -1"),
    ({"augment": "crap"}, r"augment must be one of .*, got 'crap' \(did you mean 'crop'\?\)"),
], ids=str)
def test_arguments_out_of_range(tmp_path, options, match):
    sets.parquet_set(tmp_path)
    refuses(tmp_path, f"load_data: {match}", ValueError, **options)
