"""Vision transformers: ViT-T for small images, ViT-S."""

import torch
import torch.nn.functional as F
from torch import nn


class VisionTransformer(nn.Module):
    """Pre-norm transformer over patches of an image, with a class token and learned positions.

    vit_s: 16x16 patches, 384 wide, 12 deep, 6 heads; 22.05 M parameters for 224 x 224 images and 1000 classes.
    vit_t: 4x4 patches, 192 wide, 12 deep, 3 heads; 5.36 M parameters for 32 x 32 images and 10 classes.
    Parameters have timm's names, and its and DeiT's checkpoints load. The inputs of all layers are signed.

    Args:
        patch: side of a patch in pixels; must divide both sides of an image.
        width: features of a token, a multiple of heads.
        depth: number of blocks.
        heads: attention heads of a block.
        classes, in_channels, image_size: as for build_model.

    forward: (N, in_channels, H, W) float of exactly image_size -> (N, classes) logits.

    Reference: Dosovitskiy et al., "An Image is Worth 16x16 Words", 2020, arXiv 2010.11929, eq. 1-4; sizes and
    initialisation (normal with deviation 0.02, truncated) of Touvron et al., "DeiT", 2020, arXiv 2012.12877, table 1.
    """

    def __init__(self, *, patch: int, width: int, depth: int, heads: int, classes: int, in_channels: int, image_size):
        super().__init__()
        if image_size[0] % patch or image_size[1] % patch:
            raise ValueError(f"VisionTransformer: image_size must be a multiple of the patch, {patch} x {patch}, "
                             f"got {image_size[0]} x {image_size[1]}")
        self.image_size = image_size
        tokens = 1 + (image_size[0] // patch) * (image_size[1] // patch)
        self.patch_embed = _PatchEmbedding(in_channels, width, patch)
        self.cls_token = nn.Parameter(torch.empty(1, 1, width))
        self.pos_embed = nn.Parameter(torch.empty(1, tokens, width))
        self.blocks = nn.Sequential(*(_Block(width, heads) for _ in range(depth)))
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.head = nn.Linear(width, classes)
        self._init()

    def _init(self) -> None:
        for parameter in (self.cls_token, self.pos_embed):
            nn.init.trunc_normal_(parameter, std=0.02)
        for module in self.modules():
            if isinstance(module, (nn.Linear, nn.Conv2d)):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)

    def forward(self, x):
        if x.shape[2:] != self.image_size:
            raise ValueError(f"VisionTransformer: x must hold images of {self.image_size[0]} x {self.image_size[1]}, "
                             f"got {x.shape[2]} x {x.shape[3]}")
        x = self.patch_embed(x)
        x = torch.cat((self.cls_token.expand(x.shape[0], -1, -1), x), dim=1) + self.pos_embed
        return self.head(self.norm(self.blocks(x))[:, 0])


class _PatchEmbedding(nn.Module):
    """(N, C, H, W) -> (N, tokens, width): one linear map of every patch."""

    def __init__(self, in_channels: int, width: int, patch: int):
        super().__init__()
        self.proj = nn.Conv2d(in_channels, width, patch, stride=patch)

    def forward(self, x):
        return self.proj(x).flatten(2).transpose(1, 2)


class _Block(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x))."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=1e-6)
        self.attn = _Attention(width, heads)
        self.norm2 = nn.LayerNorm(width, eps=1e-6)
        self.mlp = _Mlp(width)

    def forward(self, x):
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class _Attention(nn.Module):
    """softmax(q k^T / sqrt(d)) v per head, between two Linear layers."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x):
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class _Mlp(nn.Module):
    """gelu between two Linear layers, four times as wide inside."""

    def __init__(self, width: int):
        super().__init__()
        self.fc1 = nn.Linear(width, 4 * width)
        self.fc2 = nn.Linear(4 * width, width)

    def forward(self, x):
        return self.fc2(F.gelu(self.fc1(x)))
