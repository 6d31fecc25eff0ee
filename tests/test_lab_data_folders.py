"""Folders of images as people have them: what is passed over at every depth, links, names, orientation, splits."""

import os

import image_sets as sets
import numpy as np
import pytest
import torch
from image_sets import refuses
from PIL import Image
from test_lab_data_layouts import assert_holds, in_order

from mbq_lab.data import load_data
from mbq_lab.data.splits import FileSplit

LEFT = [".hidden", ".DS_Store", "._0.png", "Thumbs.db", "desktop.ini", ".ipynb_checkpoints/0-checkpoint.png",
        "__MACOSX/._0.png", "deep/.git/x.png", "deep/__MACOSX/0.png", "@eaDir/0.png"]


def labels():
    return [0] * 4 + [1] * 4 + [2] * 4


@pytest.mark.parametrize("place", ["train/ant", "train", "val/bee", "val", "."])
def test_hidden_names_and_what_systems_leave_are_passed_over_at_any_depth(tmp_path, place):
    pixels = sets.image_folder(tmp_path)
    for name in LEFT:
        if "deep" in name and place in ("train", "val"):
            continue  # there it would be a class
        path = tmp_path / place / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(sets.encode(pixels[0]))
    data = load_data(tmp_path, augment="none")
    assert data.class_names == ("ant", "bee", "cat") and data.test_size == 6
    assert_holds(data, sets.tensor_of(pixels), labels())


def test_tiny_imagenet_passes_them_over_too(tmp_path):
    sets.tiny_imagenet(tmp_path)
    expected = in_order(load_data(tmp_path, augment="none"))
    for place in ("train", "train/n01/images", "val/images"):
        for name in ("Thumbs.db", "__MACOSX/x.JPEG", ".cache/x.JPEG"):
            (tmp_path / place / name).parent.mkdir(exist_ok=True)
            (tmp_path / place / name).write_text("no image")
    images, found = in_order(load_data(tmp_path, augment="none"))
    assert torch.equal(images, expected[0]) and found == expected[1]


def test_links_to_files_and_folders_are_followed(tmp_path):
    pixels = sets.image_folder(tmp_path / "real")
    here = tmp_path / "linked"
    (here / "train").mkdir(parents=True)
    (here / "val").symlink_to(tmp_path / "real" / "val")
    for name in ("ant", "bee"):
        (here / "train" / name).symlink_to(tmp_path / "real" / "train" / name)
    (here / "train" / "cat" / "inner").mkdir(parents=True)
    for i in range(4):
        (here / "train" / "cat" / "inner" / f"{i}.png").symlink_to(tmp_path / "real" / "train" / "cat" / f"{i}.png")
    assert_holds(load_data(here, augment="none"), sets.tensor_of(pixels), labels())


@pytest.mark.parametrize("name, target, match", [
    ("loop", ".", "links must not lead to a folder they lie in, got .*train/ant/loop"),
    ("loop", "../..", "links must not lead to a folder they lie in, got .*train/ant/loop/train/ant"),
    ("0.png", "gone.png", "image must be a file that can be read, got .*train/ant/0.png, a link that leads to nothing"),
    ("self", "self", "folder must be one that can be read, got .*train/ant .*self"),
], ids=["folder", "above", "nothing", "itself"])
def test_links_that_lead_nowhere_are_an_error(tmp_path, name, target, match):
    sets.image_folder(tmp_path)
    (tmp_path / "train" / "ant" / name).unlink(missing_ok=True)
    (tmp_path / "train" / "ant" / name).symlink_to(target)
    refuses(tmp_path, match)


def test_a_pipe_is_an_error_and_is_not_read(tmp_path):
    sets.image_folder(tmp_path)
    os.mkfifo(tmp_path / "train" / "ant" / "9.png")
    refuses(tmp_path, "image must be a file that can be read, got .*9.png, neither a file nor a folder")


def test_names_that_are_not_utf_8(tmp_path):
    pixels = sets.image_folder(tmp_path, classes=("ant", "bee", "caf\udce9"))
    os.rename(tmp_path / "train" / "ant" / "3.png", os.fsencode(tmp_path / "train" / "ant") + b"/3\xff.png")
    data = load_data(tmp_path, augment="none")
    assert data.class_names == ("ant", "bee", "caf\\udce9")
    assert_holds(data, sets.tensor_of(pixels), labels())
    with open(os.fsencode(tmp_path) + b"/train/caf\xe9/1.png", "wb") as file:
        file.write(b"no image")
    refuses(tmp_path, r"got .*caf\\udce9/1.png")


TURNED = {1: lambda a: a, 2: np.fliplr, 3: lambda a: np.rot90(a, 2), 4: np.flipud, 5: lambda a: a.swapaxes(0, 1),
          6: lambda a: np.rot90(a, -1), 7: lambda a: np.rot90(a, 2).swapaxes(0, 1), 8: np.rot90}


@pytest.mark.parametrize("suffix", ["jpg", "png", "tif", "webp"])
@pytest.mark.parametrize("orientation", TURNED)
def test_images_are_turned_as_their_exif_says(tmp_path, orientation, suffix):
    sets.image_folder(tmp_path, size=(8, 8))
    corner = np.zeros((8, 8, 3), dtype=np.uint8)
    corner[:4, :2] = 200
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / "train" / "ant" / f"-.{suffix}"
    Image.fromarray(corner).save(path, exif=exif, quality=100, **({"lossless": True} if suffix == "webp" else {}))
    images, _ = in_order(load_data(tmp_path, augment="none"))
    found = images[0].permute(1, 2, 0).numpy().astype(int)
    assert np.abs(found - TURNED[orientation](corner)).max() < 60  # of JPEG, whose colours are coarser


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_broken_exif_is_no_broken_image(tmp_path):
    pixels = sets.image_folder(tmp_path)
    Image.fromarray(pixels[0]).save(tmp_path / "train" / "ant" / "0.png", exif=b"Exif\0\0II*\0\xff\xff\xff\xff junk")
    assert_holds(load_data(tmp_path, augment="none"), sets.tensor_of(pixels), labels())


@pytest.mark.parametrize("train", ["train", "Train", "training"])
@pytest.mark.parametrize("test", ["val", "valid", "validation", "Test", "testing"])
def test_names_of_the_parts(tmp_path, train, test):
    pixels = sets.image_folder(tmp_path, test_name=test)
    (tmp_path / "train").rename(tmp_path / train)
    assert_holds(load_data(tmp_path, augment="none"), sets.tensor_of(pixels), labels())


def test_a_part_without_labels_is_left_for_one_with_them(tmp_path):
    pixels = sets.image_folder(tmp_path, test_name="validation")
    sets.write_image(tmp_path / "test" / "0.png", pixels[0])
    assert load_data(tmp_path, augment="none").test_size == 6
    (tmp_path / "validation").rename(tmp_path / "other")
    refuses(tmp_path, "images must lie in a folder of their class, got .*test/0.png")
    (tmp_path / "test").rename(tmp_path / "exam")
    refuses(tmp_path, "folder must hold val, test, validation, valid, testing, got none of them")


@pytest.mark.parametrize("part", ["train", "val"])
def test_a_class_without_images_is_an_error(tmp_path, part):
    sets.image_folder(tmp_path)
    for path in (tmp_path / part / "bee").iterdir():
        path.rename(path.with_name(f".{path.name}"))
    refuses(tmp_path, f"folder must hold images, got none in .*{part}/bee")


def test_suffixes_in_large_letters_and_the_order_of_paths(tmp_path):
    pixels = sets.image_folder(tmp_path)
    (tmp_path / "train" / "ant" / "0.png").rename(tmp_path / "train" / "ant" / "0.PNG")
    assert_holds(load_data(tmp_path, augment="none"), sets.tensor_of(pixels), labels())


def test_a_split_keeps_the_bytes_of_its_paths(tmp_path):
    path = os.fsencode(tmp_path) + b"/\xff.png"
    with open(path, "wb") as file:
        file.write(b"raw")
    assert FileSplit.of([os.fsdecode(path)], [0]).read(0) == b"raw"
