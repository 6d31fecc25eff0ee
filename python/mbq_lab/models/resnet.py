"""Residual networks of ImageNet's form: ResNet-18, 50."""

import torch
import torch.nn.functional as F
from torch import nn

from ._shared import check_image_size, conv, he_init

SMALL = 64  # pixels: up to here the first layers keep the image's size


class ResNet(nn.Module):
    """Four stages of 64, 128, 256 and 512 channels (times 4 with Bottleneck), 11.69 M (18) and 25.56 M (50) parameters.

    Parameters have torchvision's names, and its checkpoints load. Images of at most 64 x 64 pixels get a first
    convolution of 3x3 and stride 1 and no max-pooling; all others have 7x7, stride 2 and max-pooling. As in torchvision
    it is a Bottleneck's 3x3 convolution that has the stride. Every layer but the first sees the output of a ReLU.

    Args:
        block: ResidualBlock or Bottleneck.
        depths: blocks in each of the four stages.
        classes, in_channels, image_size: as for build_model; both sides at least 8, of larger images 32.

    forward: (N, in_channels, H, W) float -> (N, classes) logits.

    Reference: He et al., "Deep Residual Learning", 2015, arXiv 1512.03385, table 1.
    """

    def __init__(self, block, depths, *, classes: int, in_channels: int, image_size):
        super().__init__()
        small = max(image_size) <= SMALL
        check_image_size(self, image_size, stride=8 if small else 32)
        self.conv1 = conv(in_channels, 64, 3) if small else conv(in_channels, 64, 7, 2)
        self.bn1 = nn.BatchNorm2d(64)
        self.maxpool = nn.Identity() if small else nn.MaxPool2d(3, stride=2, padding=1)
        channels = 64
        for stage, depth in enumerate(depths):
            width, blocks = 64 * 2**stage, []
            for i in range(depth):
                blocks.append(block(channels, width, 2 if stage > 0 and i == 0 else 1))
                channels = width * block.expansion
            setattr(self, f"layer{stage + 1}", nn.Sequential(*blocks))
        self.fc = nn.Linear(channels, classes)
        he_init(self)

    def forward(self, x):
        x = self.maxpool(F.relu(self.bn1(self.conv1(x))))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.fc(torch.mean(x, dim=(2, 3)))


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut."""

    expansion = 1

    def __init__(self, in_channels: int, width: int, stride: int):
        super().__init__()
        self.conv1 = conv(in_channels, width, 3, stride)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = conv(width, width, 3)
        self.bn2 = nn.BatchNorm2d(width)
        self.downsample = _downsample(in_channels, width, stride)

    def forward(self, x):
        out = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(out + (x if self.downsample is None else self.downsample(x)))


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions, the last to 4 * width channels, and a shortcut."""

    expansion = 4

    def __init__(self, in_channels: int, width: int, stride: int):
        super().__init__()
        self.conv1 = conv(in_channels, width, 1)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = conv(width, width, 3, stride)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = conv(width, 4 * width, 1)
        self.bn3 = nn.BatchNorm2d(4 * width)
        self.downsample = _downsample(in_channels, 4 * width, stride)

    def forward(self, x):
        out = F.relu(self.bn1(self.conv1(x)))
        out = self.bn3(self.conv3(F.relu(self.bn2(self.conv2(out)))))
        return F.relu(out + (x if self.downsample is None else self.downsample(x)))


def _downsample(in_channels: int, out_channels: int, stride: int) -> nn.Module | None:
    if stride == 1 and in_channels == out_channels:
        return None
    return nn.Sequential(conv(in_channels, out_channels, 1, stride), nn.BatchNorm2d(out_channels))
