"""Small data sets of images, written in every layout that load_data knows, good or bad."""

import io
import json
import os
import pickle

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from mbq_lab.data import DataError, load_data


def make_pixels(count, *, size=(8, 8), seed=0):
    """(count, H, W, 3) uint8 of noise."""
    return np.random.default_rng(seed).integers(0, 256, (count, *size, 3), dtype=np.uint8)


def encode(array, kind="PNG"):
    """The bytes of an image file; PNG loses nothing."""
    file = io.BytesIO()
    Image.fromarray(array).save(file, kind)
    return file.getvalue()


def tensor_of(pixels):
    """(N, C, H, W) uint8 of (N, H, W, C)."""
    return torch.from_numpy(pixels).permute(0, 3, 1, 2)


def write_parquet(path, raws, labels, *, image="img", label="label", struct=True, class_names=None, group=None,
                  label_type=None, extra=None):
    """One file of encoded images; group: rows of a row group; extra: more columns."""
    if struct:
        raws = pa.array([raw if raw is None else {"bytes": raw, "path": None} for raw in raws],
                        type=pa.struct([("bytes", pa.binary()), ("path", pa.string())]))
    else:
        raws = pa.array(raws, type=pa.binary())
    table = pa.table({image: raws, label: pa.array(labels, type=label_type or pa.int64()), **(extra or {})})
    if class_names is not None:
        features = {label: {"names": list(class_names), "_type": "ClassLabel"}, image: {"_type": "Image"}}
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path, row_group_size=group)


def parquet_set(folder, *, train=24, test=9, classes=3, size=(8, 8), **options):
    """train.parquet and test.parquet; the pixels (N, H, W, 3) and labels of both."""
    pixels, labels = make_pixels(train + test, size=size), [i % classes for i in range(train + test)]
    raws = [encode(image) for image in pixels]
    write_parquet(folder / "train.parquet", raws[:train], labels[:train], **options)
    write_parquet(folder / "test.parquet", raws[train:], labels[train:], **options)
    return (pixels[:train], labels[:train]), (pixels[train:], labels[train:])


def write_image(path, array, kind=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path, kind)


def image_folder(folder, *, train=4, test=2, classes=("ant", "bee", "cat"), size=(8, 8), test_name="val"):
    """train/<class>/<i>.png and val/<class>/<i>.png; the pixels of train, class after class."""
    pixels = make_pixels(len(classes) * (train + test), size=size)
    for number, name in enumerate(classes):
        for i in range(train + test):
            part = "train" if i < train else test_name
            write_image(folder / part / name / f"{i}.png", pixels[number * (train + test) + i])
    return pixels.reshape(len(classes), train + test, *size, 3)[:, :train].reshape(-1, *size, 3)


def tiny_imagenet(folder, *, words=True):
    """Three classes of two training images and one for validation; wnids.txt is not sorted."""
    wnids = ["n03", "n01", "n02"]
    (folder / "val").mkdir(parents=True)
    (folder / "wnids.txt").write_text("".join(f"{wnid}\n" for wnid in wnids))
    if words:
        (folder / "words.txt").write_text("n01\tfish, big one\nn02\tfrog\nn03\tfox\nn04\tnot here\n")
    pixels, lines = make_pixels(9, size=(64, 64)), []
    for number, wnid in enumerate(wnids):
        for i in range(2):
            write_image(folder / "train" / wnid / "images" / f"{wnid}_{i}.JPEG", pixels[3 * number + i])
        write_image(folder / "val" / "images" / f"val_{number}.JPEG", pixels[3 * number + 2])
        lines.append(f"val_{number}.JPEG\t{wnid}\t0\t0\t62\t62\n")
    (folder / "val" / "val_annotations.txt").write_text("".join(lines))


def cifar_rows(count, seed=0):
    """(count, 3072) uint8: rows of CIFAR."""
    return np.random.default_rng(seed).integers(0, 256, (count, 3072), dtype=np.uint8)


def dump(path, value, protocol=2):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(value if isinstance(value, bytes) else pickle.dumps(value, protocol=protocol))


def cifar10(folder, *, protocol=2):
    """Five batches of four images and a test batch of three, of three classes; rows and labels of the training set."""
    rows, labels = cifar_rows(20), [i % 3 for i in range(20)]
    for i in range(5):
        part = slice(4 * i, 4 * i + 4)
        dump(folder / f"data_batch_{i + 1}", {b"data": rows[part].copy(), b"labels": labels[part]}, protocol)
    dump(folder / "test_batch", {"data": cifar_rows(3, seed=1), "labels": [2, 0, 1]}, protocol)
    dump(folder / "batches.meta", {b"label_names": [b"ant", b"bee", b"cat"], b"num_cases_per_batch": 4}, protocol)
    return rows, labels


def cifar100(folder):
    """Six training images and three for testing; fine and coarse labels."""
    rows = cifar_rows(9)
    for name, part in (("train", slice(0, 6)), ("test", slice(6, 9))):
        labels = [i % 3 for i in range(9)][part]
        dump(folder / name, {"data": rows[part].copy(), "fine_labels": labels, "coarse_labels": [0] * len(labels),
                             "filenames": ["x.png"] * len(labels)})
    dump(folder / "meta", {"fine_label_names": ["ant", "bee", "cat"], "coarse_label_names": ["animal"]})
    return rows[:6]


def python2_pickle(rows, labels):
    """The opcodes that Python 2 and numpy 1 wrote CIFAR with: byte strings, numpy.core, a dtype with its state."""
    def string(raw):
        return b"T" + len(raw).to_bytes(4, "little") + raw

    dtype = b"cnumpy\ndtype\n(" + string(b"u1") + b"K\x00K\x01tR(K\x03" + string(b"|") + b"NNN" + \
        b"J\xff\xff\xff\xff" * 2 + b"K\x00tb"
    shape = b"(K" + bytes([len(rows)]) + b"M\x00\x0ct"
    array = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(K\x00t" + string(b"b") + b"tR(K\x01" + \
        shape + dtype + b"\x89" + string(rows.tobytes()) + b"tb"
    numbers = b"](" + b"".join(b"K" + bytes([label]) for label in labels) + b"e"
    return b"\x80\x02}(" + string(b"data") + array + string(b"labels") + numbers + b"u."


class Opens:
    """What pickle calls when it is read: os.system."""

    def __reduce__(self):
        return os.system, ("true",)


def refuses(folder, match, error=DataError, **options):
    """Assert that load_data raises `error`, with a message that matches."""
    with pytest.raises(error, match=match):
        load_data(folder, **options)
