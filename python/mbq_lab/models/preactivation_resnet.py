"""The pre-activation residual network of Any-Precision."""

import torch
import torch.nn.functional as F
from torch import nn

from ._shared import check_image_size, conv, he_init


class PreActivationResNet20(nn.Module):
    """Pre-activation ResNet-20, `widen` times as wide: 80, 160 and 320 channels at 5, 6.76 M parameters for CIFAR-10.

    Every convolution but the first sees the output of a ReLU, the shortcuts' too. As in the paper's code the last
    BatchNorm goes into the mean over pixels without a ReLU, so the input of `linear` is signed, and the paper keeps
    `conv`, `linear` and the shortcuts' convolutions in float.

    Args:
        widen: factor on 16, 32 and 64 channels.
        classes, in_channels, image_size: as for build_model; both sides at least 4.

    forward: (N, in_channels, H, W) float -> (N, classes) logits.

    Reference: Yu et al., "Any-Precision Deep Neural Networks", 2021, arXiv 1911.07346 (CIFAR-10); the block is that of
    He et al., "Identity Mappings in Deep Residual Networks", 2016, arXiv 1603.05027.
    """

    def __init__(self, widen: int, *, classes: int, in_channels: int, image_size):
        super().__init__()
        check_image_size(self, image_size, stride=4)
        a, b, c = (widen * channels for channels in (16, 32, 64))
        self.conv = conv(in_channels, a, 3)
        shapes = [(a, a, 1)] * 3 + [(a, b, 2)] + [(b, b, 1)] * 2 + [(b, c, 2)] + [(c, c, 1)] * 2
        self.blocks = nn.Sequential(*(_Block(*shape) for shape in shapes))
        self.bn = nn.BatchNorm2d(c)
        self.linear = nn.Linear(c, classes)
        he_init(self)

    def forward(self, x):
        x = self.bn(self.blocks(self.conv(x)))
        return self.linear(torch.mean(x, dim=(2, 3)))


class _Block(nn.Module):
    """conv(relu(bn(conv(a)))) + shortcut, with a = relu(bn(x)); shortcut: x, or bn(conv(a)) where the shape changes."""

    def __init__(self, in_channels: int, out_channels: int, stride: int):
        super().__init__()
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.conv1 = conv(in_channels, out_channels, 3, stride)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.conv2 = conv(out_channels, out_channels, 3)
        self.shortcut = None
        if stride != 1:
            self.shortcut = nn.Sequential(conv(in_channels, out_channels, 1, stride), nn.BatchNorm2d(out_channels))

    def forward(self, x):
        activated = F.relu(self.bn1(x))
        shortcut = x if self.shortcut is None else self.shortcut(activated)
        return self.conv2(F.relu(self.bn2(self.conv1(activated)))) + shortcut
