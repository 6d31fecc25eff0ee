"""Small float networks, and the fixture of the modules that train them."""

import signal

import pytest
import torch
from torch import nn

from mbq_lab import Options
from mbq_lab.options import SPEC_OPTIONS


@pytest.fixture(autouse=True)
def interruptible():
    """Ctrl-C as in a terminal: a process started in the background ignores SIGINT."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """Networks this small wait more than they compute when threads share the cores with other programs."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


class NormAct(nn.BatchNorm2d):
    """As timm's BatchNormAct2d."""

    def __init__(self, channels):
        super().__init__(channels)
        self.drop, self.act = nn.Dropout(0.5), nn.PReLU(channels)

    def forward(self, x):
        return self.act(self.drop(super().forward(x)))


def small_network():
    """Four layers to convert, for images of 1 x 8 x 8; three outputs."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6),
                         nn.ReLU(), nn.Flatten(), nn.Linear(96, 5), nn.ReLU(), nn.Linear(5, 3))


def tiny_model(seed=0):
    """Three layers to convert, for images of 1 x 8 x 8; two outputs."""
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.ReLU(), nn.Flatten(),
                         nn.Linear(64, 2))


class Attention(nn.Module):
    """Self-attention written by hand, with one projection for query, key and value."""

    def __init__(self, width, heads):
        super().__init__()
        self.heads, self.qkv, self.proj = heads, nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x):
        q, k, v = self.qkv(x).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        return self.proj(nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class VisionTransformer(nn.Module):
    """One block for images of 1 x 8 x 8; a position embedding and a class token of its own; three outputs."""

    def __init__(self, width=8):
        super().__init__()
        self.patches = nn.Conv2d(1, width, 4, stride=4)
        self.token = nn.Parameter(torch.zeros(1, 1, width))
        self.positions = nn.Parameter(0.1 * torch.randn(1, 5, width))
        self.norm1, self.attention = nn.LayerNorm(width), Attention(width, 2)
        self.norm2, self.mlp = nn.LayerNorm(width), nn.Sequential(nn.Linear(width, 16), nn.GELU(), nn.Linear(16, width))
        self.head = nn.Linear(width, 3)

    def forward(self, x):
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(len(x), -1, -1), x], dim=1) + self.positions
        x = x + self.attention(self.norm1(x))
        return self.head((x + self.mlp(self.norm2(x)))[:, 0])


def vision_transformer():
    torch.manual_seed(0)
    return VisionTransformer()


def depthwise_network():
    """Grouped and depthwise convolutions, for images of 1 x 8 x 8; three outputs."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1, groups=8),
                         nn.BatchNorm2d(8), nn.ReLU6(),
                         nn.Conv2d(8, 12, 3, groups=4, padding=1, padding_mode="reflect"), nn.ReLU(),
                         nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, 3))


def conv1d_network():
    """For sequences of 2 x 16; three outputs."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv1d(2, 6, 3), nn.BatchNorm1d(6), nn.ReLU(), nn.Conv1d(6, 6, 3, groups=2, dilation=2),
                         nn.ReLU(), nn.Conv1d(6, 4, 3, padding="same", padding_mode="circular"), nn.ReLU(),
                         nn.Flatten(), nn.Linear(40, 3))


def encoder_network(**options):
    """nn.TransformerEncoder between two Linear layers, for sequences of 5 x 8; three outputs a position."""
    torch.manual_seed(0)
    options = {"dim_feedforward": 16, "dropout": 0.0, "batch_first": True} | options
    layer = nn.TransformerEncoderLayer(8, 2, **options)
    encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=options["batch_first"])
    return nn.Sequential(nn.Linear(8, 8), encoder, nn.Linear(8, 3))


class LlamaBlock(nn.Module):
    """RMSNorm, attention with rotated positions and SwiGLU, with the names of Llama."""

    def __init__(self, width, heads, hidden):
        super().__init__()
        self.heads = heads
        self.q_proj, self.k_proj = nn.Linear(width, width, bias=False), nn.Linear(width, width, bias=False)
        self.v_proj, self.o_proj = nn.Linear(width, width, bias=False), nn.Linear(width, width, bias=False)
        self.gate_proj, self.up_proj = nn.Linear(width, hidden, bias=False), nn.Linear(width, hidden, bias=False)
        self.down_proj = nn.Linear(hidden, width, bias=False)
        self.norm1, self.norm2 = nn.RMSNorm(width), nn.RMSNorm(width)

    def forward(self, x):
        h = self.norm1(x)
        q, k, v = (proj(h).unflatten(2, (self.heads, -1)).transpose(1, 2)
                   for proj in (self.q_proj, self.k_proj, self.v_proj))
        h = nn.functional.scaled_dot_product_attention(rotate(q), rotate(k), v, is_causal=True)
        x = x + self.o_proj(h.transpose(1, 2).flatten(2))
        h = self.norm2(x)
        return x + self.down_proj(nn.functional.silu(self.gate_proj(h)) * self.up_proj(h))


def rotate(x):
    """x (N, heads, T, D), its halves turned by position times frequency."""
    half = x.shape[3] // 2
    angle = torch.arange(x.shape[2])[:, None] * 100.0 ** -(torch.arange(half) / half)
    a, b = x.split(half, dim=3)
    return torch.cat([a * angle.cos() - b * angle.sin(), a * angle.sin() + b * angle.cos()], dim=3)


def llama_network():
    """Tokens below 7, (N, T), to logits of the same; the embedding is the weight of the last layer too."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(7, 8), LlamaBlock(8, 2, 12), LlamaBlock(8, 2, 12), nn.RMSNorm(8),
                          nn.Linear(8, 7, bias=False))
    model[4].weight = model[0].weight
    return model


def specs(**options):
    """Arguments of convert: what the options of quantizers on the command line name, and all others as they are."""
    flat = {name: options.pop(name) for name in ("quantizer", "activation_quantizer", *SPEC_OPTIONS)
            if name in options}
    flat = {name: value for name, value in flat.items() if value is not None}
    chosen = Options(**flat)
    return {"weights": chosen.weights, "activations": chosen.activations, **options}
