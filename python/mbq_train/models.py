"""Networks to train, by name."""

import torch
import torch.nn.functional as F
from torch import nn

from ._names import look_up


class _ResidualBlock(nn.Module):
    """relu(bn(conv(relu(bn(conv(x))))) + shortcut(x)): every convolution sees the output of a ReLU."""

    def __init__(self, in_channels: int, out_channels: int, stride: int):
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.shortcut = nn.Identity()
        if stride != 1 or in_channels != out_channels:
            self.shortcut = nn.Sequential(nn.Conv2d(in_channels, out_channels, 1, stride=stride, bias=False),
                                          nn.BatchNorm2d(out_channels))

    def forward(self, x):
        out = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(out)) + self.shortcut(x))


class ResNet8(nn.Module):
    """Three residual blocks of 16, 32 and 64 channels for small images.

    Args:
        classes: number of classes.
        in_channels: channels of an image.

    forward: (N, in_channels, H, W) float -> (N, classes) logits.

    Reference: He et al., "Deep Residual Learning", 2015, arXiv 1512.03385, section 4.2 with n = 1 (there n >= 3).
    """

    def __init__(self, classes: int, in_channels: int):
        super().__init__()
        self.conv = nn.Conv2d(in_channels, 16, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(16)
        self.blocks = nn.Sequential(_ResidualBlock(16, 16, 1), _ResidualBlock(16, 32, 2), _ResidualBlock(32, 64, 2))
        self.linear = nn.Linear(64, classes)

    def forward(self, x):
        x = self.blocks(F.relu(self.bn(self.conv(x))))
        return self.linear(torch.mean(x, dim=(2, 3)))


MODELS = {"resnet8": ResNet8}


def build_model(name: str, *, classes: int, in_channels: int) -> nn.Module:
    """A freshly initialised float network from the registry (`resnet8`).

    Raises ValueError for an unknown name, with the nearest one there is.
    """
    return look_up("build_model", MODELS, name)(classes, in_channels)
