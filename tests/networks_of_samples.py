"""Networks whose samples lie along other dimensions, or share parameters that no layer holds, and their inputs."""

import torch
from torch import nn

SAMPLES = 7


def classes(n=SAMPLES):
    return torch.arange(n) % 3


def tokens(length, n=SAMPLES):
    return torch.randint(0, 20, (n, length), generator=torch.Generator().manual_seed(length))


def sequences(length, n=SAMPLES):
    return torch.randn(n, length, 4, generator=torch.Generator().manual_seed(length))


class Positions(nn.Module):
    """Position embeddings of batch 1 from a layer, as BERT and GPT-2 have them."""

    def __init__(self):
        super().__init__()
        self.token, self.position, self.head = nn.Embedding(20, 8), nn.Embedding(16, 8), nn.Linear(8, 3)

    def forward(self, x):
        return self.head(torch.tanh(self.token(x) + self.position(torch.arange(x.shape[1]))).mean(1))


class SequenceFirst(nn.Module):
    """Layers that see (T, N, width), and torch's attention."""

    def __init__(self):
        super().__init__()
        self.stem, self.norm, self.inner, self.head = nn.Linear(4, 6), nn.LayerNorm(6), nn.Linear(6, 6), nn.Linear(6, 3)
        self.attention = nn.MultiheadAttention(6, 2)

    def forward(self, x):
        x = self.inner(self.norm(self.stem(x).transpose(0, 1))).tanh()
        return self.head((x + self.attention(x, x, x, need_weights=False)[0]).mean(0))


class Token(nn.Module):
    """A class token, positions and layer scales that are parameters of the network itself."""

    def __init__(self):
        super().__init__()
        self.stem, self.inner, self.head = nn.Linear(8, 6), nn.Linear(6, 6), nn.Linear(6, 3)
        self.token, self.position = nn.Parameter(torch.randn(1, 1, 6)), nn.Parameter(torch.randn(1, 9, 6))
        self.scale, self.temperature = nn.Parameter(torch.rand(6)), nn.Parameter(torch.tensor(0.7))

    def forward(self, x):
        x = torch.cat([self.token.expand(len(x), -1, -1), self.stem(x.flatten(1, 2))], dim=1) + self.position
        x = x + self.inner(x.mean(1, keepdim=True) * x).tanh() * self.scale
        return self.head((x / self.temperature)[:, 0])


class Windows(nn.Module):
    """Attention within windows, which are folded into the batch before or after the samples; a table of biases."""

    def __init__(self, samples_last: bool):
        super().__init__()
        self.samples_last, width = samples_last, 6
        self.patches, self.norm = nn.Conv2d(1, width, 2, stride=2), nn.LayerNorm(width)
        self.qkv, self.proj, self.head = nn.Linear(width, 3 * width), nn.Linear(width, width), nn.Linear(width, 3)
        self.conv, self.group_norm = nn.Conv2d(width, width, 2, padding=1, groups=2), nn.GroupNorm(2, width)
        self.batch_norm, self.table = nn.BatchNorm2d(width), nn.Parameter(torch.randn(7, 2))
        self.register_buffer("index", torch.randint(7, (4, 4)))

    def forward(self, x):
        x = self.patches(x).permute(0, 2, 3, 1)
        n, order = len(x), (1, 3, 0, 2, 4, 5) if self.samples_last else (0, 1, 3, 2, 4, 5)
        windows = self.norm(x).reshape(n, 2, 2, 2, 2, 6).permute(order).reshape(-1, 4, 6)
        q, k, v = self.qkv(windows).reshape(-1, 4, 3, 2, 3).permute(2, 0, 3, 1, 4)
        bias = self.table[self.index.view(-1)].view(4, 4, 2).permute(2, 0, 1).contiguous().unsqueeze(0)
        out = self.proj(((q @ k.mT + bias).softmax(-1) @ v).transpose(1, 2).flatten(2))
        out = self.batch_norm(self.group_norm(self.conv(out.mT.unflatten(2, (2, 2)))))[:, :, :2, :2].flatten(2).mT
        shape = (2, 2, n) if self.samples_last else (n, 2, 2)
        order = (2, 0, 1, 3, 4, 5) if self.samples_last else (0, 1, 2, 3, 4, 5)
        out = out.reshape(*shape, 2, 2, 6).permute(order).transpose(2, 3).reshape(n, 4, 4, 6)
        return self.head((x + out).mean((1, 2)))
