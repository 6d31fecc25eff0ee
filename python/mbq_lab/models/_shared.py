"""What the convolutional networks share."""

from torch import nn


def check_image_size(network: nn.Module, image_size: tuple[int, int], stride: int) -> None:
    """Raise ValueError unless every stride of the network has pixels to halve: both sides at least their product."""
    if min(image_size) < stride:
        raise ValueError(f"{type(network).__name__}: image_size must be at least {stride} x {stride}, "
                         f"what its strides divide by, got {image_size[0]} x {image_size[1]}")


def he_init(network: nn.Module) -> None:
    """Draw normal convolution weights of variance 2 / fan_in: He et al., 2015, arXiv 1502.01852, eq. 10."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_in", nonlinearity="relu")


def conv(in_channels: int, out_channels: int, kernel: int, stride: int = 1, groups: int = 1) -> nn.Conv2d:
    """Return a convolution without bias, padded so that stride 1 keeps the image's size."""
    return nn.Conv2d(in_channels, out_channels, kernel, stride=stride, padding=kernel // 2, groups=groups, bias=False)
