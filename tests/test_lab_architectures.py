"""What each network is: its names, strides, shortcuts, inputs and first weights."""

import math

import pytest
import torch
from networks import one_thread  # noqa: F401
from torch import nn

from mbq_lab.models import build_model
from mbq_lab.models.build import MODELS

CONVOLUTIONAL = [name for name in MODELS if name not in ("vit_t", "vit_s")]


@pytest.fixture
def images():
    return torch.randn(2, 3, 16, 16)


def build(name, **options):
    torch.manual_seed(0)
    return build_model(name, **{"classes": 5, "in_channels": 3, "image_size": (16, 16), **options})


def layers(model):
    return {name: layer for name, layer in model.named_modules() if isinstance(layer, (nn.Conv2d, nn.Linear))}


@pytest.mark.parametrize("name, keys, absent", [
    ("resnet8", {"conv.weight", "bn.running_var", "blocks.0.conv1.weight", "blocks.1.shortcut.0.weight",
                 "blocks.2.shortcut.1.bias", "linear.weight"}, "blocks.0.shortcut.0.weight"),
    ("resnet20", {"conv.weight", "blocks.8.conv2.weight", "blocks.8.bn2.bias"}, "blocks.3.shortcut.0.weight"),
    ("resnet18", {"conv1.weight", "bn1.num_batches_tracked", "layer1.0.conv2.weight", "layer2.0.downsample.0.weight",
                  "layer2.0.downsample.1.running_mean", "layer4.1.bn2.bias", "fc.bias"}, "layer1.0.downsample.1.bias"),
    ("resnet50", {"layer1.0.downsample.0.weight", "layer3.5.conv3.weight", "layer4.2.bn3.bias"}, "layer3.6.bn1.bias"),
    ("mobilenetv2", {"features.0.0.weight", "features.1.conv.0.0.weight", "features.1.conv.1.weight",
                     "features.17.conv.3.bias", "features.18.1.bias", "classifier.1.weight"}, "features.1.conv.3.bias"),
    ("vit_s", {"cls_token", "pos_embed", "patch_embed.proj.weight", "blocks.11.attn.qkv.bias",
               "blocks.0.attn.proj.weight", "blocks.0.mlp.fc2.weight", "norm.bias", "head.weight"}, "fc_norm.weight"),
])
def test_parameters_have_the_names_of_published_checkpoints(name, keys, absent):
    found = build(name).state_dict().keys()
    assert keys <= found and absent not in found


@pytest.mark.parametrize("name, side, expected", [
    ("resnet8", 8, 2), ("resnet56", 32, 8), ("preresnet20x5", 32, 8), ("resnet18", 64, 8), ("resnet18", 65, 3),
    ("resnet18", 224, 7), ("resnet50", 32, 4), ("resnet50", 224, 7), ("mobilenetv2", 32, 4), ("mobilenetv2", 64, 8),
    ("mobilenetv2", 96, 3), ("mobilenetv2", 224, 7),
])
def test_strides_fit_the_image(name, side, expected):
    with torch.device("meta"):
        model, sides = build(name, image_size=(side, side)), []
        for layer in layers(model).values():
            layer.register_forward_hook(lambda _, inputs, out: sides.append(out.shape[2:]) if out.dim() == 4 else None)
        model(torch.empty(2, 3, side, side))
    assert sides[-1] == (expected, expected)


def test_mobilenet_keeps_the_size_of_small_images_up_to_24_channels(images):
    assert build("mobilenetv2").features[:4](images).shape == (2, 24, 16, 16)


SIGNED_INPUTS = {"preresnet20x5": {"conv", "linear"}, "resnet18": {"conv1"}, "resnet50": {"conv1"},
                 "mobilenetv2": {"features.0.0", "features.18.0", *(f"features.{i}.conv.0.0" for i in range(2, 18))}}


@pytest.mark.parametrize("name", CONVOLUTIONAL)
def test_inputs_are_signed_where_the_docstring_says_so_alone(name, images):
    model, lowest = build(name), {}
    for key, layer in layers(model).items():
        layer.register_forward_hook(lambda _, inputs, out, key=key: lowest.update({key: inputs[0].min()}))
    model(images)
    assert {key for key, value in lowest.items() if value < 0} == SIGNED_INPUTS.get(name, {"conv"})


@pytest.mark.parametrize("name", CONVOLUTIONAL)
def test_convolutions_start_as_he_says(name):
    for key, layer in layers(build(name)).items():
        if isinstance(layer, nn.Conv2d):
            weight = layer.weight.detach() * math.sqrt(layer.weight[0].numel() / 2)
            sigmas = 5 / math.sqrt(weight.numel())
            assert abs(weight.std() - 1) < sigmas and abs(weight.mean()) < sigmas, key
            assert weight.abs().max() > math.sqrt(3), f"{key} is uniform"


def test_transformers_start_at_a_deviation_of_002():
    for name, parameter in build("vit_t").named_parameters():
        if "norm" not in name and not name.endswith("bias"):
            assert abs(parameter.std() / 0.02 - 1) < 5 / math.sqrt(parameter.numel()), name
            assert abs(parameter.mean()) < 0.1 / math.sqrt(parameter.numel()), name
        elif name.endswith("bias"):
            assert not parameter.any(), name


def test_option_a_takes_every_second_pixel_and_adds_channels_of_zeros():
    block = build("resnet20").blocks[3]
    nn.init.zeros_(block.bn2.weight)
    x = torch.randn(2, 16, 6, 6)
    out = block(x)
    assert torch.equal(out[:, :16], x[:, :, ::2, ::2].relu()) and not out[:, 16:].any()


def test_a_preactivation_block_leaves_its_input_alone_on_the_shortcut():
    block = build("preresnet20x5").blocks[1]
    nn.init.zeros_(block.conv2.weight)
    x = torch.randn(2, 80, 4, 4)
    assert torch.equal(block(x), x)


def test_vision_transformer_sees_positions_and_refuses_other_sizes(images):
    model = build("vit_t").eval()
    assert not torch.allclose(model(images), model(images.flip(3)), atol=1e-4)
    patches = images.unflatten(3, (4, 4)).flip(3).flatten(3)  # the same patches in another order
    assert not torch.allclose(model(images), model(patches), atol=1e-4)
    nn.init.zeros_(model.pos_embed)
    torch.testing.assert_close(model(images), model(patches), rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match="VisionTransformer: x must hold images of 16 x 16, got 16 x 20"):
        model(torch.zeros(1, 3, 16, 20))
