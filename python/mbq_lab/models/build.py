"""build_model: a float network from its name."""

from functools import partial
from numbers import Integral

from torch import nn

from mbq_train._names import look_up

from .cifar_resnet import CifarResNet
from .external import build_external
from .mobilenet import MobileNetV2
from .preactivation_resnet import PreActivationResNet20
from .resnet import Bottleneck, ResidualBlock, ResNet
from .vision_transformer import VisionTransformer

MODELS = {
    "resnet8": partial(CifarResNet, blocks=1, projection=True),
    "resnet20": partial(CifarResNet, blocks=3),
    "resnet32": partial(CifarResNet, blocks=5),
    "resnet44": partial(CifarResNet, blocks=7),
    "resnet56": partial(CifarResNet, blocks=9),
    "preresnet20x5": partial(PreActivationResNet20, widen=5),
    "resnet18": partial(ResNet, block=ResidualBlock, depths=(2, 2, 2, 2)),
    "resnet50": partial(ResNet, block=Bottleneck, depths=(3, 4, 6, 3)),
    "mobilenetv2": MobileNetV2,
    "vit_t": partial(VisionTransformer, patch=4, width=192, depth=12, heads=3),
    "vit_s": partial(VisionTransformer, patch=16, width=384, depth=12, heads=6),
}


def build_model(name: str, *, classes: int, in_channels: int, image_size: tuple[int, int]) -> nn.Module:
    """Return a float network for images, freshly initialised from torch's generator, in training mode.

    Args:
        name: one of
            a key of MODELS: resnet8, resnet20, ..., each described at its class;
            timm:NAME, a network of the package timm, not pretrained;
            hf:NAME or hf:FOLDER, an image classifier of the package transformers: pretrained, except a classifier of
            another number of classes; freshly initialised where the folder holds a configuration and no weights;
            package.module:factory, a callable that returns an nn.Module. It is called with the keywords classes,
            in_channels and image_size, or those of them that it takes.
        classes: number of classes.
        in_channels: channels of an image.
        image_size: (H, W) of an image.

    Returns a network that maps (N, in_channels, H, W) float to (N, classes) logits. One of another package is tried on
    an image of zeros before.

    Raises:
        TypeError: name is not a string, image_size not two integers, classes or in_channels no integer.
        ValueError: an unknown name, with the nearest there is; a package that is missing; a factory that fails or
        returns something else; images that the network cannot take.
    """
    if not isinstance(name, str):
        raise TypeError(f"build_model: name must be a string, got {name!r}")
    if not isinstance(image_size, (tuple, list)) or len(image_size) != 2:
        raise TypeError(f"build_model: image_size must be (height, width), got {image_size!r}")
    _check_positive(classes=classes, in_channels=in_channels, height=image_size[0], width=image_size[1])
    build = partial(build_external, name) if ":" in name else look_up("build_model", MODELS, name)
    return build(classes=classes, in_channels=in_channels, image_size=tuple(image_size))


def _check_positive(**counts) -> None:
    for argument, count in counts.items():
        if isinstance(count, bool) or not isinstance(count, Integral):
            raise TypeError(f"build_model: {argument} must be an integer, got {count!r}")
        if count < 1:
            raise ValueError(f"build_model: {argument} must be at least 1, got {count}")
