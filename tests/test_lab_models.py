"""What every network by name can do."""

import copy

import pytest
import torch
from networks import one_thread  # noqa: F401
from torch import nn

from mbq_lab.models import build_model
from mbq_lab.models.build import MODELS
from mbq_lab.models.cifar_resnet import CifarResNet
from mbq_lab.models.mobilenet import MobileNetV2
from mbq_lab.models.preactivation_resnet import PreActivationResNet20
from mbq_lab.models.resnet import Bottleneck, ResidualBlock, ResNet
from mbq_lab.models.vision_transformer import VisionTransformer

SMALL = {"classes": 5, "in_channels": 3, "image_size": (16, 16)}
LAYERS = (nn.Conv2d, nn.Linear)


@pytest.fixture
def images():
    return torch.randn(2, 3, 16, 16)


def build(name, seed=0, **options):
    torch.manual_seed(seed)
    return build_model(name, **{**SMALL, **options})


def layers(model):
    return {name: layer for name, layer in model.named_modules() if isinstance(layer, LAYERS)}


def count(model):
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize("name", MODELS)
def test_every_parameter_is_finite_and_gets_a_gradient(name, images):
    model = build(name)
    assert model.training and all(torch.isfinite(tensor).all() for tensor in model.state_dict().values())
    out = model(images)
    assert out.shape == (2, 5) and out.dtype == torch.float32
    nn.functional.cross_entropy(out, torch.tensor([0, 1])).backward()
    for key, parameter in model.named_parameters():
        assert parameter.grad is not None and torch.isfinite(parameter.grad).all(), key


@pytest.mark.parametrize("name, classes, side, expected", [
    ("resnet8", 10, 32, 78_042), ("resnet20", 10, 32, 269_722), ("resnet32", 10, 32, 464_154),
    ("resnet44", 10, 32, 658_586), ("resnet56", 10, 32, 853_018), ("preresnet20x5", 10, 32, 6_758_810),
    ("resnet18", 1000, 224, 11_689_512), ("resnet50", 1000, 224, 25_557_032), ("mobilenetv2", 1000, 224, 3_504_872),
    ("vit_t", 10, 32, 5_362_762), ("vit_s", 1000, 224, 22_050_664),
])
def test_parameter_counts_are_the_published_ones(name, classes, side, expected):
    with torch.device("meta"):
        assert count(build(name, classes=classes, image_size=(side, side))) == expected


class Recorder(nn.Module):
    """A layer that can only be called: no weight to reach for."""

    def __init__(self, layer):
        super().__init__()
        self.call, self.inputs = [layer], []

    def forward(self, x):
        self.inputs.append(x)
        return self.call[0](x)


@pytest.mark.parametrize("name", MODELS)
def test_every_layer_is_called_once_and_only_called(name, images):
    model = build(name).eval()
    expected = model(images)
    recorders = {key: Recorder(layer) for key, layer in layers(model).items()}
    for key, recorder in recorders.items():
        model.set_submodule(key, recorder)
    assert torch.equal(model(images), expected)
    assert len(recorders) > 5 and all(len(recorder.inputs) == 1 for recorder in recorders.values())


@pytest.mark.parametrize("name", ["resnet20", "mobilenetv2", "vit_t"])
def test_the_seed_decides_the_weights(name):
    first, again = build(name).state_dict(), build(name).state_dict()
    assert all(torch.equal(again[key], first[key]) for key in first)
    other = layers(build(name, seed=1))
    assert not any(torch.equal(layer.weight, first[f"{key}.weight"]) for key, layer in other.items())


@pytest.mark.parametrize("name", MODELS)
def test_a_deep_copy_computes_the_same_and_is_independent(name, images):
    model = build(name).eval()
    twin = copy.deepcopy(model)
    expected = model(images)
    assert torch.equal(twin(images), expected)
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.zero_()
    assert torch.equal(model(images), expected)


@pytest.mark.parametrize("name", MODELS)
def test_channels_last_goes_through_the_whole_network(name, images):
    model = build(name).eval()
    expected, formats = model(images), []
    model.to(memory_format=torch.channels_last)
    for layer in model.modules():
        if isinstance(layer, nn.Conv2d):
            layer.register_forward_hook(lambda layer, inputs, out: formats.extend((inputs[0], out)))
    torch.testing.assert_close(model(images.to(memory_format=torch.channels_last)), expected, rtol=1e-4, atol=1e-4)
    assert formats and all(x.is_contiguous(memory_format=torch.channels_last) for x in formats)


@pytest.mark.parametrize("network, options", [
    (CifarResNet, {"blocks": 1}), (CifarResNet, {"blocks": 1, "projection": True}),
    (PreActivationResNet20, {"widen": 1}), (ResNet, {"block": ResidualBlock, "depths": (1, 1, 1, 1)}),
    (ResNet, {"block": Bottleneck, "depths": (1, 1, 1, 1)}), (MobileNetV2, {}),
    (VisionTransformer, {"patch": 4, "width": 8, "depth": 1, "heads": 2}),
])
def test_compiles_as_one_graph(network, options, images):
    model = network(**options, **SMALL).eval()
    torch.testing.assert_close(torch.compile(model, fullgraph=True, backend="eager")(images), model(images))


@pytest.mark.parametrize("name", ["resnet8", "resnet50", "mobilenetv2", "vit_t"])
def test_images_may_be_grey_and_oblong(name):
    model = build(name, in_channels=1, image_size=(8, 24))
    assert model(torch.randn(2, 1, 8, 24)).shape == (2, 5)


@pytest.mark.parametrize("name, options, error, match", [
    ("resnet9", {}, ValueError, r"build_model: name must be one of .*, got 'resnet9' \(did you mean 'resnet8'\?\)"),
    (18, {}, TypeError, "build_model: name must be a string, got 18"),
    ("resnet20", {"image_size": (3, 8)}, ValueError, "CifarResNet: image_size must be at least 4 x 4, .* got 3 x 8"),
    ("preresnet20x5", {"image_size": (8, 3)}, ValueError, "PreActivationResNet20: image_size must be at least 4 x 4"),
    ("resnet18", {"image_size": (7, 64)}, ValueError, "ResNet: image_size must be at least 8 x 8, .* got 7 x 64"),
    ("resnet18", {"image_size": (31, 65)}, ValueError, "ResNet: image_size must be at least 32 x 32, .* got 31 x 65"),
    ("mobilenetv2", {"image_size": (4, 4)}, ValueError, "MobileNetV2: image_size must be at least 8 x 8"),
    ("vit_t", {"image_size": (32, 30)}, ValueError,
     "VisionTransformer: image_size must be a multiple of the patch, 4 x 4, got 32 x 30"),
    ("resnet8", {"image_size": 32}, TypeError, r"build_model: image_size must be \(height, width\), got 32"),
    ("resnet8", {"image_size": (8, 8.0)}, TypeError, "build_model: width must be an integer, got 8.0"),
    ("resnet8", {"image_size": (0, 8)}, ValueError, "build_model: height must be at least 1, got 0"),
    ("resnet8", {"classes": True}, TypeError, "build_model: classes must be an integer, got True"),
    ("resnet8", {"classes": 0}, ValueError, "build_model: classes must be at least 1, got 0"),
    ("resnet8", {"in_channels": "3"}, TypeError, "build_model: in_channels must be an integer, got '3'"),
])
def test_build_model_refuses_arguments(name, options, error, match):
    with pytest.raises(error, match=match):
        build(name, **options)
