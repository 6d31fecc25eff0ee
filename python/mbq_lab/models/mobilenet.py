"""MobileNetV2: inverted residuals around depthwise convolutions."""

import torch
from torch import nn

from ._shared import check_image_size, conv, he_init

SMALL = 64  # pixels: up to here two of the five strides of 2 are 1

# expansion, channels, blocks, stride of the first block: table 2
_STAGES = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))


class MobileNetV2(nn.Module):
    """MobileNetV2 of width 1, 3.50 M parameters at 1000 classes.

    Parameters have torchvision's names, and its checkpoints load. For images of at most 64 x 64 pixels the first
    convolution and the stage of 24 channels have stride 1. A block ends without a ReLU: the inputs of the expanding 1x1
    convolutions, and of the last convolution, are signed; all others but the image are in [0, 6].

    Args:
        classes, in_channels, image_size: as for build_model; both sides at least 8, of larger images 32.

    forward: (N, in_channels, H, W) float -> (N, classes) logits.

    Reference: Sandler et al., "MobileNetV2", 2018, arXiv 1801.04381, table 2. It gives no initialisation: convolutions
    are He's, the classifier's weights normal with deviation 0.01, and its dropout is 0.2, as in torchvision.
    """

    def __init__(self, *, classes: int, in_channels: int, image_size):
        super().__init__()
        small = max(image_size) <= SMALL
        check_image_size(self, image_size, stride=8 if small else 32)
        layers, channels = [_conv_bn_relu(in_channels, 32, 3, 1 if small else 2)], 32
        for expansion, width, blocks, stride in _STAGES:
            for i in range(blocks):
                first = i == 0 and not (small and width == 24)
                layers.append(_InvertedResidual(channels, width, stride if first else 1, expansion))
                channels = width
        self.features = nn.Sequential(*layers, _conv_bn_relu(channels, 1280, 1))
        self.classifier = nn.Sequential(nn.Dropout(0.2), nn.Linear(1280, classes))
        he_init(self)
        nn.init.normal_(self.classifier[1].weight, std=0.01)
        nn.init.zeros_(self.classifier[1].bias)

    def forward(self, x):
        return self.classifier(torch.mean(self.features(x), dim=(2, 3)))


class _InvertedResidual(nn.Module):
    """1x1 convolution to expansion * in_channels, depthwise 3x3, 1x1 to out_channels; plus x where shapes agree."""

    def __init__(self, in_channels: int, out_channels: int, stride: int, expansion: int):
        super().__init__()
        hidden = expansion * in_channels
        self.residual = stride == 1 and in_channels == out_channels
        expand = [_conv_bn_relu(in_channels, hidden, 1)] if expansion > 1 else []
        self.conv = nn.Sequential(*expand, _conv_bn_relu(hidden, hidden, 3, stride, groups=hidden),
                                  conv(hidden, out_channels, 1), nn.BatchNorm2d(out_channels))

    def forward(self, x):
        return x + self.conv(x) if self.residual else self.conv(x)


def _conv_bn_relu(in_channels: int, out_channels: int, kernel: int, stride: int = 1, groups: int = 1) -> nn.Sequential:
    return nn.Sequential(conv(in_channels, out_channels, kernel, stride, groups), nn.BatchNorm2d(out_channels),
                         nn.ReLU6())
