"""A small decoder of Llama's form, for sequences of tokens."""

import torch
import torch.nn.functional as F
from torch import nn

_EPS = 1e-5
_BASE = 10000.0  # of the rotary angles
_MULTIPLE = 32  # the MLP's width is rounded up to it


class Decoder(nn.Module):
    """Pre-norm transformer with causal attention, rotary positions, RMSNorm and SwiGLU, without biases.

    Linear layers and names are those of transformers' LlamaForCausalLM without its prefix `model.`. The MLP is 8/3 of
    the width, rounded up to a multiple of 32. The inputs of all layers are signed.

    Args:
        vocabulary: number of tokens.
        width: features of a token, an even multiple of heads.
        depth: number of blocks.
        heads: attention heads of a block.

    forward: tokens (N, T) int64 in [0, vocabulary) -> (N, T, vocabulary) logits of the next token.

    Raises ValueError where the heads do not divide the width into an even number of features.

    Reference: Touvron et al., "LLaMA", 2023, arXiv 2302.13971, section 2.2; rotary positions: Su et al., "RoFormer",
    2021, arXiv 2104.09864, eq. 34. Weights are normal with deviation 0.02 (GPT-2's, and transformers' for Llama).
    """

    def __init__(self, vocabulary: int, width: int, depth: int, heads: int):
        super().__init__()
        if width % (2 * heads):
            raise ValueError(f"Decoder: width must be a multiple of 2 * heads = {2 * heads}, got {width}")
        self.head_width = width // heads
        self.embed_tokens = nn.Embedding(vocabulary, width)
        self.layers = nn.ModuleList(_Block(width, heads) for _ in range(depth))
        self.norm = nn.RMSNorm(width, eps=_EPS)
        self.lm_head = nn.Linear(width, vocabulary, bias=False)
        for module in self.modules():
            if isinstance(module, (nn.Linear, nn.Embedding)):
                nn.init.normal_(module.weight, std=0.02)

    def forward(self, tokens):
        x = self.embed_tokens(tokens)
        rotation = _rotation(tokens.shape[1], self.head_width, x)
        for layer in self.layers:
            x = layer(x, rotation)
        return self.lm_head(self.norm(x))


class _Block(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x))."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.input_layernorm = nn.RMSNorm(width, eps=_EPS)
        self.self_attn = _Attention(width, heads)
        self.post_attention_layernorm = nn.RMSNorm(width, eps=_EPS)
        self.mlp = _SwiGlu(width)

    def forward(self, x, rotation):
        x = x + self.self_attn(self.input_layernorm(x), rotation)
        return x + self.mlp(self.post_attention_layernorm(x))


class _Attention(nn.Module):
    """Causal attention; queries and keys are rotated by their positions."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.q_proj, self.k_proj, self.v_proj, self.o_proj = (nn.Linear(width, width, bias=False) for _ in range(4))

    def forward(self, x, rotation):
        q, k, v = (layer(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
                   for layer in (self.q_proj, self.k_proj, self.v_proj))
        out = F.scaled_dot_product_attention(_rotate(q, rotation), _rotate(k, rotation), v, is_causal=True)
        return self.o_proj(out.transpose(1, 2).flatten(2))


class _SwiGlu(nn.Module):
    """down(silu(gate(x)) * up(x)): Shazeer, 2020, arXiv 2002.05202."""

    def __init__(self, width: int):
        super().__init__()
        hidden = -(-8 * width // (3 * _MULTIPLE)) * _MULTIPLE
        self.gate_proj = nn.Linear(width, hidden, bias=False)
        self.up_proj = nn.Linear(width, hidden, bias=False)
        self.down_proj = nn.Linear(hidden, width, bias=False)

    def forward(self, x):
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


def _rotation(length: int, head_width: int, like):
    """Return (cos, sin), each (length, head_width / 2), of position * base^(-2 i / head_width)."""
    exponents = torch.arange(0, head_width, 2, device=like.device, dtype=torch.float32) / head_width
    positions = torch.arange(length, device=like.device, dtype=torch.float32)
    angles = torch.outer(positions, _BASE ** -exponents)  # float32: bfloat16 cannot tell positions past 256 apart
    return angles.cos().to(like.dtype), angles.sin().to(like.dtype)


def _rotate(x, rotation):
    """Rotate the pairs (x[i], x[i + d/2]) of every head by the angles of their position."""
    cos, sin = rotation
    a, b = x.chunk(2, dim=-1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1)
