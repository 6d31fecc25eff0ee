"""Residual networks for small images: ResNet-8, 20, 32, 44, 56."""

import torch
import torch.nn.functional as F
from torch import nn

from ._shared import check_image_size, conv, he_init


class CifarResNet(nn.Module):
    """Three stages of 16, 32 and 64 channels, 6 * blocks + 2 layers deep.

    A shortcut between stages takes every second pixel and pads with channels of zeros, without parameters (option A):
    for CIFAR-10 0.27 M parameters at 20 layers, 0.46 M at 32, 0.66 M at 44, 0.85 M at 56. Every layer but the first
    sees the output of a ReLU.

    Args:
        blocks: residual blocks of two convolutions in a stage.
        projection: 1x1 convolutions as shortcuts between stages instead (option B).
        classes, in_channels, image_size: as for build_model; both sides at least 4.

    forward: (N, in_channels, H, W) float -> (N, classes) logits.

    Reference: He et al., "Deep Residual Learning", 2015, arXiv 1512.03385, section 4.2, where blocks >= 3.
    """

    def __init__(self, blocks: int, *, projection: bool = False, classes: int, in_channels: int, image_size):
        super().__init__()
        check_image_size(self, image_size, stride=4)
        self.conv = conv(in_channels, 16, 3)
        self.bn = nn.BatchNorm2d(16)
        shapes = [(16, 16, 1)] * blocks + [(16, 32, 2)] + [(32, 32, 1)] * (blocks - 1)
        shapes += [(32, 64, 2)] + [(64, 64, 1)] * (blocks - 1)
        self.blocks = nn.Sequential(*(_Block(*shape, projection=projection) for shape in shapes))
        self.linear = nn.Linear(64, classes)
        he_init(self)

    def forward(self, x):
        x = self.blocks(F.relu(self.bn(self.conv(x))))
        return self.linear(torch.mean(x, dim=(2, 3)))


class _Block(nn.Module):
    """relu(bn(conv(relu(bn(conv(x))))) + shortcut(x))."""

    def __init__(self, in_channels: int, out_channels: int, stride: int, projection: bool):
        super().__init__()
        self.conv1 = conv(in_channels, out_channels, 3, stride)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.conv2 = conv(out_channels, out_channels, 3)
        self.bn2 = nn.BatchNorm2d(out_channels)
        if stride == 1:
            self.shortcut = nn.Identity()
        elif projection:
            self.shortcut = nn.Sequential(conv(in_channels, out_channels, 1, stride), nn.BatchNorm2d(out_channels))
        else:
            self.shortcut = _ZeroPad(out_channels - in_channels, stride)

    def forward(self, x):
        out = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(out)) + self.shortcut(x))


class _ZeroPad(nn.Module):
    """Every stride-th pixel of x, followed by channels of zeros."""

    def __init__(self, channels: int, stride: int):
        super().__init__()
        self.channels, self.stride = channels, stride

    def forward(self, x):
        return F.pad(x[:, :, ::self.stride, ::self.stride], (0, 0, 0, 0, 0, self.channels))
