"""Bad parquet files: an error that names the file and the row, the column or the label."""

import json

import image_sets as sets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from image_sets import refuses

from mbq_lab.data import load_data


def raws(count=9):
    return [sets.encode(image) for image in sets.make_pixels(count)]


def rewrite_train(folder, images=None, labels=None, **options):
    """A good set of three classes whose train.parquet is then written with these."""
    sets.parquet_set(folder)
    sets.write_parquet(folder / "train.parquet", images or raws(), labels or [0, 1, 2] * 3, **options)


@pytest.mark.parametrize("part, present", [("train", "test.parquet"), ("test", "train.parquet")])
def test_parquet_without_a_part(tmp_path, part, present):
    sets.parquet_set(tmp_path)
    (tmp_path / f"{part}.parquet").unlink()
    assert [path.name for path in tmp_path.iterdir()] == [present]
    refuses(tmp_path, rf"read_parquet: folder must hold {part}\*.parquet, got none in .*{tmp_path.name}")


@pytest.mark.parametrize("cut", [0, 30, 200])
def test_a_parquet_file_cut_short(tmp_path, cut):
    sets.parquet_set(tmp_path)
    path = tmp_path / "test.parquet"
    path.write_bytes(path.read_bytes()[:-cut] if cut else b"")
    refuses(tmp_path, "read_parquet: file must be a whole parquet file, got .*test.parquet")


def test_a_parquet_file_with_a_broken_page(tmp_path):
    sets.parquet_set(tmp_path)
    path = tmp_path / "train.parquet"
    whole = bytearray(path.read_bytes())
    whole[4:44] = b"\xff" * 40  # the head of the first page, of the images
    path.write_bytes(whole)
    refuses(tmp_path, "read: row group must be readable, got row group 0 of .*train.parquet")


@pytest.mark.parametrize("raw, match", [
    (b"no image", r"decode_image: image must be one that Pillow can read, got row 4 of .*train.parquet"),
    (b"", r"decode_image: image must be one that Pillow can read, got row 4 of .*train.parquet"),
    (sets.encode(sets.make_pixels(1, size=(64, 64))[0], "JPEG")[:700], r"got row 4 of .*train.parquet .*truncated"),
    (None, r"read: image must not be null, got row 4 of .*train.parquet"),
], ids=["text", "empty", "truncated", "null"])
@pytest.mark.parametrize("struct", [True, False])
def test_parquet_with_an_image_that_is_none(tmp_path, raw, match, struct):
    images = raws()
    images[4] = raw
    sets.parquet_set(tmp_path, struct=struct)
    sets.write_parquet(tmp_path / "train.parquet", images, [0, 1, 2] * 3, struct=struct, group=3)
    refuses(tmp_path, match)


@pytest.mark.parametrize("labels, options, match", [
    ([0, 1, None] * 3, {}, "read_parquet: label must not be null, got null in row 2 of .*train.parquet"),
    ([0, 1, 2, -1] * 2 + [0], {}, r"training label must be in 0..2, got -1 in row 3 of .*train.parquet"),
    ([0, 1, 3] * 3, {}, "training images must have labels 0..3 without a gap, got none of label 2"),
    ([0, 1, 10**12] * 3, {}, "without a gap, got none of label 2"),
    ([0, 1, 1] * 3, {}, r"test label must be in 0..1, got 2 in row 2 of .*test.parquet"),
    ([0, 1, 2, 3] * 2 + [0], {}, r"test images must have labels 0..3 without a gap, got none of label 3"),
    (["a", "b", "c"] * 3, {"label_type": pa.string()}, "column label must be integer, got string in .*train.parquet"),
    ([0.0, 1.0, 2.0] * 3, {"label_type": pa.float32()}, "column label must be integer, got float in .*train.parquet"),
], ids=["null", "negative", "gap", "far", "only in test", "only in train", "string", "float"])
def test_parquet_with_bad_labels(tmp_path, labels, options, match):
    rewrite_train(tmp_path, labels=labels, **options)
    refuses(tmp_path, match)


@pytest.mark.parametrize("train_names, test_names, labels, match", [
    (["a", "b"], ["a", "b"], [0, 1, 2], r"training label must be in 0..1, got 2 in row 2 of .*train.parquet"),
    (["a", "b", "c", "d"], ["a", "b", "c", "d"], [0, 1, 2], "training images must have labels 0..3 without a gap"),
    (["a", "b", "c"], ["a", "b", "d"], [0, 1, 2], "columns and classes must be the same in all files, got .*test.parq"),
    (["a", "b", "c"], None, [0, 1, 2], "columns and classes must be the same in all files, got .*test.parquet"),
], ids=["too few", "too many", "others", "only in train"])
def test_parquet_whose_labels_are_not_the_classes_it_declares(tmp_path, train_names, test_names, labels, match):
    sets.write_parquet(tmp_path / "train.parquet", raws(3), labels, class_names=train_names)
    sets.write_parquet(tmp_path / "test.parquet", raws(3), labels, class_names=test_names)
    refuses(tmp_path, match)


@pytest.mark.parametrize("columns, match", [
    ({"label": [0]}, "column img or image of type binary, .* got none in .*train.parquet with label"),
    ({"img": [b"x"], "name": ["a"]}, "column label or fine_label or labels of type integer, .* got none in"),
    ({"a": [b"x"], "b": [b"y"], "label": [0]}, "column img or image of type binary, .* got a, b in .*train.parquet"),
    ({"img": [b"x"], "a": [1], "b": [2]}, "column label .* of type integer, .* got a, b in .*train.parquet"),
    ({"img": ["text"], "raw": [b"x"], "label": [0]}, "column img must be binary, got string in .*train.parquet"),
], ids=["no image", "no label", "two images", "two labels", "text for image"])
def test_parquet_without_its_columns(tmp_path, columns, match):
    pq.write_table(pa.table(columns), tmp_path / "train.parquet")
    refuses(tmp_path, match)


def test_parquet_shards_of_other_columns_and_without_rows(tmp_path):
    sets.parquet_set(tmp_path)
    sets.write_parquet(tmp_path / "train2.parquet", raws(), [0, 1, 2] * 3, image="image")
    refuses(tmp_path, "columns and classes must be the same in all files, got .*train2.parquet after .*img")
    (tmp_path / "train2.parquet").unlink()
    sets.write_parquet(tmp_path / "train.parquet", [], [])
    refuses(tmp_path, "files must hold at least one image, got none in .*train.parquet")


@pytest.mark.parametrize("text", ["{", "[]", json.dumps({"info": {"features": {}}})])
def test_parquet_with_metadata_that_say_nothing(tmp_path, text):
    sets.parquet_set(tmp_path)
    table = pq.read_table(tmp_path / "train.parquet").replace_schema_metadata({"huggingface": text})
    pq.write_table(table, tmp_path / "train.parquet")
    refuses(tmp_path, "metadata huggingface must describe column label, got .*train.parquet")


@pytest.mark.parametrize("layout", ["parquet", "folder"])
def test_images_of_different_sizes_without_image_size(tmp_path, layout):
    odd = sets.make_pixels(1, size=(8, 9))[0]
    if layout == "parquet":
        rewrite_train(tmp_path, [*raws()[:7], sets.encode(odd), raws()[8]])
    else:
        sets.image_folder(tmp_path)
        sets.write_image(tmp_path / "val" / "bee" / "4.png", odd)
    refuses(tmp_path, r"images must all be 8 x 8 like the first, or image_size be given, got 8 x 9 in .*"
            + ("row 7 of .*train.parquet" if layout == "parquet" else "val/bee/4.png"))
    assert load_data(tmp_path, image_size=8).image_size == (8, 8)
