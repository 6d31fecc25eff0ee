"""Networks with a BatchNorm for every pair of bit-widths, and which layers each goes by."""

from itertools import product

import torch
from torch import nn

from mbq_train import DoubleRounding, convert, set_bits, set_layer_bits

BITS = (8, 4, 2)
IMAGES = torch.randn(8, 1, 8, 8, generator=torch.Generator().manual_seed(0))


def chain():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4),
                         nn.ReLU(), nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(16, 2))


class Residual(nn.Module):
    """Registers everything in another order than it calls it; the shortcut is called last."""

    def __init__(self):
        super().__init__()
        self.norm_down, self.down = nn.BatchNorm2d(6), nn.Conv2d(4, 6, 1)
        self.norm2, self.conv2 = nn.BatchNorm2d(6), nn.Conv2d(6, 6, 3, padding=1)
        self.norm1, self.conv1 = nn.BatchNorm2d(6), nn.Conv2d(4, 6, 3, padding=1)
        self.norm3, self.conv3 = nn.BatchNorm2d(6), nn.Conv2d(6, 6, 3)
        self.stem, self.norm0, self.head = nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Linear(6, 2)

    def forward(self, x):
        x = self.norm0(self.stem(x)).relu()
        out = self.norm2(self.conv2(self.norm1(self.conv1(x)).relu()))
        out = (out + self.norm_down(self.down(x))).relu_()
        return self.head(self.norm3(self.conv3(out)).mean((2, 3)))


class PreActivation(nn.Module):
    """Norms before the layers: that of a sum follows what was called last of all that reaches the sum."""

    def __init__(self):
        super().__init__()
        self.stem, self.head = nn.Conv2d(1, 4, 3), nn.Linear(4, 2)
        self.norms = nn.ModuleList(nn.BatchNorm2d(4) for _ in range(5))
        self.convs = nn.ModuleList(nn.Conv2d(4, 4, 3, padding=1) for _ in range(4))

    def forward(self, x):
        x = self.stem(x)
        for first in (0, 2):
            inside = self.convs[first](self.norms[first](x).relu())
            x = x + self.convs[first + 1](self.norms[first + 1](inside).relu())
        return self.head(self.norms[4](x).mean((2, 3)))


TRANSITIONS = {
    chain: {"4": [None, "3"], "7": ["3", "6"]},
    Residual: {"norm1": [None, "conv1"], "norm2": ["conv1", "conv2"], "norm_down": [None, "down"],
               "norm3": ["down", "conv3"]},
    PreActivation: {"norms.1": [None, "convs.0"], "norms.2": ["convs.0", "convs.1"], "norms.3": ["convs.1", "convs.2"],
                    "norms.4": ["convs.2", "convs.3"]},
}


def converted(make=chain, **options):
    torch.manual_seed(0)
    options = {"weights": DoubleRounding(), "batch_norm": "transitional", "example": IMAGES} | options
    return convert(make(), BITS, **options)


def trained(model):
    """Give every BatchNorm statistics of its own, the same for the same network."""
    torch.manual_seed(1)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            with torch.no_grad():
                module.running_mean.normal_()
                module.weight.uniform_(0.5, 1.5)
    return model.eval()


def mixed_outputs(model):
    found = []
    for bits, own in product(BITS, ({"3": 8, "6": None}, {"3": 2, "6": 4}, {"3": None, "6": None})):
        set_bits(model, bits)
        set_layer_bits(model, own)
        found.append(model(IMAGES))
    return found
