"""A run needs its data set to train and to be measured, and for nothing that comes after."""

import copy
import json
import shutil

import onnxruntime
import pytest
import safetensors.torch
import torch
from cli import mbq
from image_sets import image_folder
from networks import one_thread  # noqa: F401

import mbq_store
from mbq_lab import load_quantized
from mbq_lab.models import build_model
from mbq_lab.runs.networks import input_shape
from mbq_train import CheckpointError, deploy, set_bits


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of double rounding whose images are gone."""
    folder = tmp_path_factory.mktemp("lab")
    image_folder(folder / "images", train=8, test=4)
    result = mbq("train", "--data", folder / "images", "--epochs", 1, "--float-epochs", 1, "--batch-size", 8,
                 "--bits", "8,4", "--quantizer", "double-rounding", "--out", folder / "run")
    assert result.exit_code == 0, result.output
    shutil.rmtree(folder / "images")
    return folder / "run"


def test_stores_onnx_and_deployment_need_no_data(run, tmp_path):
    result = mbq("export", run, "--store", tmp_path / "store", "--onnx", tmp_path / "file.onnx", "--bits", 4)
    assert result.exit_code == 0, result.output
    model, images = load_quantized(run), torch.randn(2, 3, 8, 8)
    set_bits(model, 4)
    with torch.no_grad():
        expected = model(images)
        session = onnxruntime.InferenceSession(tmp_path / "file.onnx")
        logits, = session.run(None, {session.get_inputs()[0].name: images.numpy()})
        torch.testing.assert_close(torch.from_numpy(logits), expected, rtol=1e-4, atol=1e-5)
        deployed = deploy(copy.deepcopy(model))
        set_bits(deployed, 4)
        torch.testing.assert_close(deployed(images), expected, rtol=1e-4, atol=1e-5)
    with mbq_store.open(tmp_path / "store") as store:
        assert store.layers


def test_a_network_of_the_users_own_takes_the_checkpoint(run):
    built = build_model("resnet8", classes=3, in_channels=3, image_size=(8, 8))
    model, images = load_quantized(run, built), torch.randn(2, 3, 8, 8)
    assert torch.equal(model(images), load_quantized(run / "checkpoint.safetensors")(images))


def test_measuring_names_the_data_that_it_lacks(run):
    result = mbq("eval", run)
    assert result.exit_code == 2 and str(run.parent / "images") in result.stderr


@pytest.mark.parametrize("key, value", [
    ("phase", "paused"), ("phase", 3), ("state", None), ("options", None), ("options", []),
    ("options", {"model": 3}), ("options", {"unknown": 3}), ("data", None), ("data", [1]), ("data", {}),
    ("data", {"classes": "3", "in_channels": 3, "image_size": [8, 8]}),
    ("data", {"classes": 3, "in_channels": 3, "image_size": 8}),
    ("data", {"classes": 3, "in_channels": 3, "image_size": [8, 0]}),
], ids=str)
def test_a_damaged_header_is_one_error(run, tmp_path, key, value):
    with safetensors.safe_open(run / "checkpoint.safetensors", "pt") as file:
        header = json.loads(file.metadata()["mbq"])
        tensors = {name: file.get_tensor(name) for name in file.keys()}
    header = {name: held for name, held in {**header, key: value}.items() if held is not None}  # None: left out
    damaged = tmp_path / "damaged.safetensors"
    safetensors.torch.save_file(tensors, damaged, {"mbq": json.dumps(header)})
    for read in (load_quantized, input_shape):
        with pytest.raises(CheckpointError, match="path must be the checkpoint of a run, got .*damaged.safetensors"):
            read(damaged)


def test_a_path_is_text_or_a_path():
    with pytest.raises(TypeError, match="load_quantized: path must be a str or a Path, got int"):
        load_quantized(3)
