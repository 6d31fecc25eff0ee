"""Random small networks, and random ways to convert them, as plain data that hypothesis draws, shrinks and prints."""

from dataclasses import dataclass, field

import torch
from networks import specs
from odd_layers import ActivatedBatchNorm1d, ActivatedBatchNorm2d, Mlp, Note, Notes, formed, halve
from test_train_transposed_linear import Conv1D
from torch import nn
from torch.utils.checkpoint import checkpoint

from mbq_train import convert, set_layer_bits
from mbq_train.quantize.round_clamp import round_clamp_layers

SAMPLES, TOKENS, LENGTH = 4, 7, 5
SHAPES = {"vectors": (5,), "sequences": (2, 8), "images": (2, 7, 7), "tokens": (LENGTH,)}  # of a sample
CONVOLUTIONS = {"sequences": nn.Conv1d, "images": nn.Conv2d}
KINDS = {"vectors": ("linear", "mlp", "transposed"), "sequences": ("convolution",), "images": ("convolution",),
         "tokens": ("linear", "mlp", "transposed", "attention", "encoder")}
_BATCH_NORMS = ("batch", "batch, subclass", "batch, bare", "batch, stateless", "batch, cumulative", "batch, hook")
NORMS = {"vectors": (*_BATCH_NORMS, "layer"), "tokens": ("layer", "rms"), "sequences": (*_BATCH_NORMS, "group"),
         "images": (*_BATCH_NORMS, "group", "instance")}
ACTIVATIONS = {"": nn.Identity, "relu": nn.ReLU, "relu in place": lambda: nn.ReLU(inplace=True), "gelu": nn.GELU,
               "sigmoid": nn.Sigmoid}
EXTRAS = ("uncalled", "uncalled first", "extra state", "extra dict", "buffer", "positions", "hook", "tied ends")
BATCH_NORM = {"vectors": nn.BatchNorm1d, "sequences": nn.BatchNorm1d, "images": nn.BatchNorm2d}


@dataclass(frozen=True)
class Convolution:
    kernel: int = 3
    stride: int = 1
    padding: int | str = 1
    dilation: int = 1
    groups: str = "one"  # or 'two', 'depthwise'
    mode: str = "zeros"


@dataclass(frozen=True)
class Block:
    """One layer with what stands around it; `shares` and `ties` take the layer, or its weight, of the block before."""
    kind: str
    form: str = "plain"
    bias: bool = True
    norm: str = ""
    norm_first: bool = False
    activation: str = "relu"
    residual: bool = False
    dropout: bool = False
    run: str = ""  # or 'checkpoint', 'reentrant'
    shares: bool = False
    ties: bool = False
    convolution: Convolution = Convolution()


@dataclass(frozen=True)
class Case:
    """A network and a conversion of it."""
    of: str  # 'vectors', 'sequences', 'images', 'tokens'
    blocks: tuple[Block, ...]
    width: int = 4
    extras: frozenset = frozenset()
    gain: float = 1.0  # of inputs
    dtype: torch.dtype = torch.float32
    bits: tuple[int, ...] = (8, 2)
    example: bool = True
    layer_bits: int | None = None
    options: dict = field(default_factory=dict)

    def network(self, seed: int = 0) -> nn.Module:
        torch.manual_seed(seed)
        return Network(self).to(self.dtype)

    def inputs(self) -> torch.Tensor:
        shape, random = (SAMPLES, *SHAPES[self.of]), torch.Generator().manual_seed(1)
        if self.of == "tokens":
            return torch.randint(TOKENS, shape, generator=random)
        return (self.gain * torch.randn(shape, generator=random)).to(self.dtype)

    def convert(self, network: nn.Module) -> nn.Module:
        model = convert(network, self.bits, example=self.inputs() if self.example else None, **specs(**self.options))
        if self.layer_bits:
            set_layer_bits(model, {name: self.layer_bits for name in list(round_clamp_layers(model))[:1]})
        return model

    @property
    def looseness(self) -> float:
        """How much larger bounds of sums are than those of float32."""
        return 1000.0 if self.dtype == torch.bfloat16 else 1.0

    @property
    def quantizer(self) -> str:
        return self.options.get("quantizer", "learned")

    @property
    def corrected(self) -> bool:
        return self.options.get("weight_correction", False)


class Network(nn.Module):
    """A stem, blocks and a head."""

    def __init__(self, case: Case):
        super().__init__()
        width, extras, shape = case.width, case.extras, SHAPES[case.of]
        self.positions = nn.Parameter(torch.randn(LENGTH, width)) if "positions" in extras and case.of == "tokens" \
            else None
        if "uncalled first" in extras:
            self.aside = nn.Linear(3, 2)
        self.stem, self.pooled = _stem(case.of, width), case.of in CONVOLUTIONS
        self.runs, layers, size = [], [], shape[-1]
        self.blocks = nn.ModuleList()
        for block in case.blocks:
            layer, after = _layer(case, block, layers[-1] if layers else None, size)
            norm, size = _norm(case, block, min(size, after)), after
            if block.shares and layer in layers and repr(norm) == repr(self.blocks[-1].norm):
                norm = self.blocks[-1].norm
            layers.append(layer)
            self.blocks.append(_Block(block, layer, norm))
            self.runs.append(block.run)
        self.head = nn.Linear(width, TOKENS if "tied ends" in extras else 3)
        if "tied ends" in extras and case.of == "tokens":
            self.head.weight = self.stem.weight
        if "uncalled" in extras:
            self.beside = nn.Linear(2, 3)
        if "buffer" in extras:
            self.register_buffer("factor", torch.tensor(0.75), persistent=False)
        if "extra state" in extras:
            self.note = Note()
        if "extra dict" in extras:
            self.notes = Notes()
        if "hook" in extras:
            for block in self.blocks:
                block.register_forward_hook(halve)

    def forward(self, x):
        x = self.stem(x)
        if self.positions is not None:
            x = x + self.positions
        for block, run in zip(self.blocks, self.runs, strict=True):
            x = checkpoint(block, x, use_reentrant=run == "reentrant") if run and self.training else block(x)
        x = x * getattr(self, "factor", 1.0)
        return self.head(x.flatten(2).mean(dim=2) if self.pooled else x)


class _Block(nn.Module):
    def __init__(self, block: Block, layer: nn.Module, norm: nn.Module):
        super().__init__()
        self.norm, self.layer, self.dropout = norm, layer, nn.Dropout(0.3 if block.dropout else 0)
        self.activation, self.is_attention = ACTIVATIONS[block.activation](), block.kind == "attention"
        self.norm_first, self.residual = block.norm_first, block.residual

    def forward(self, x):
        y = self.norm(x) if self.norm_first else x
        y = self.layer(y, y, y, need_weights=False)[0] if self.is_attention else self.layer(y)
        y = self.dropout(self.activation(y if self.norm_first else self.norm(y)))
        return x + y if self.residual and x.shape == y.shape else y


def _stem(of: str, width: int) -> nn.Module:
    if of == "tokens":
        return nn.Embedding(TOKENS, width)
    if of == "vectors":
        return nn.Linear(*SHAPES[of], width)
    return CONVOLUTIONS[of](SHAPES[of][0], width, 3, padding=1)


def _norm(case: Case, block: Block, size: int) -> nn.Module:
    kind, width = block.norm, case.width
    if not kind or kind == "instance" and size < 2:
        return nn.Identity()
    if kind.startswith("batch"):
        base = BATCH_NORM[case.of]
        if kind == "batch, subclass":
            base = {nn.BatchNorm1d: ActivatedBatchNorm1d, nn.BatchNorm2d: ActivatedBatchNorm2d}[base]
        norm = base(width, affine=kind != "batch, bare", track_running_stats=kind != "batch, stateless",
                    momentum=None if kind == "batch, cumulative" else 0.1)
        if kind == "batch, hook":
            norm.register_forward_hook(halve)
        return norm
    return {"layer": lambda: nn.LayerNorm(width), "rms": lambda: nn.RMSNorm(width),
            "group": lambda: nn.GroupNorm(2 if width % 2 == 0 else 1, width),
            "instance": lambda: nn.InstanceNorm2d(width, track_running_stats=True)}[kind]()


def _layer(case: Case, block: Block, before: nn.Module | None, size: int) -> tuple[nn.Module, int]:
    """The layer of a block, which may be that of the block `before`, and the size of the images that it makes."""
    layer, after = _new_layer(case, block, size)
    same = type(layer) is type(before)
    if block.shares and same and repr(layer) == repr(before):
        return before, after
    if block.ties and same and isinstance(getattr(layer, "weight", None), nn.Parameter) and isinstance(
            getattr(before, "weight", None), nn.Parameter) and layer.weight.shape == before.weight.shape:
        layer.weight = before.weight
    return layer, after


def _new_layer(case: Case, block: Block, size: int) -> tuple[nn.Module, int]:
    width = case.width
    if block.kind == "convolution":
        return _convolution(case, block, size)
    if block.kind == "mlp":
        return Mlp(_linear(block, width, 2 * width), nn.GELU(), _linear(block, 2 * width, width)), size
    if block.kind == "transposed":
        return Conv1D(width, width), size
    heads = 2 if width % 2 == 0 else 1
    if block.kind == "attention":
        return nn.MultiheadAttention(width, heads, bias=block.bias, batch_first=True, add_bias_kv=block.form == "same",
                                     add_zero_attn=block.form == "adapter"), size
    if block.kind == "encoder":
        return nn.TransformerEncoderLayer(width, heads, dim_feedforward=2 * width, dropout=0.0, batch_first=True,
                                          bias=block.bias, norm_first=block.norm_first), size
    return _linear(block, width, width), size


def _linear(block: Block, *sizes: int) -> nn.Module:
    return formed(block.form, nn.Linear, *sizes, bias=block.bias)


def _convolution(case: Case, block: Block, size: int) -> tuple[nn.Module, int]:
    """What does not fit the images is made to: more padding, or zeros."""
    shape, width = block.convolution, case.width
    reach = shape.dilation * (shape.kernel - 1)
    stride, padding, mode = shape.stride, shape.padding, shape.mode
    if padding == "same":
        stride, added = 1, reach
    else:
        padding = padding if reach < size + 2 * padding else -(-reach // 2)
        added = 2 * padding
    if mode in ("reflect", "circular") and added >= size:
        mode = "zeros"
    groups = {"one": 1, "two": 2 if width % 2 == 0 else 1, "depthwise": width}[shape.groups]
    layer = formed(block.form, CONVOLUTIONS[case.of], width, width, shape.kernel, stride=stride, padding=padding,
                   dilation=shape.dilation, groups=groups, padding_mode=mode, bias=block.bias)
    return layer, (size + added - reach - 1) // stride + 1
