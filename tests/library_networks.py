"""ResNet-18 and a vision transformer for images of 32 x 32, quantized by the public ways of other libraries."""

import warnings

import pytest
import torch
import torch.ao.quantization as aoq
from foreign import package
from torch import nn

IMAGES = (8, 3, 32, 32)


def resnet18():
    """Return torchvision's, with a first convolution of stride 1."""
    torch.manual_seed(0)
    model = package("torchvision").models.resnet18(num_classes=10)
    model.conv1, model.maxpool = nn.Conv2d(3, 64, 3, padding=1, bias=False), nn.Identity()
    return model


def vit():
    """Return timm's: 4 blocks, 192 wide, 65 tokens."""
    torch.manual_seed(0)
    package("timm")
    from timm.models.vision_transformer import VisionTransformer
    return VisionTransformer(img_size=32, patch_size=4, embed_dim=192, depth=4, num_heads=3, num_classes=10)


def swapped(model, make):
    """Put make(module), where it is not None, in the place of every module below `model`, each once."""
    made = {}
    for name, module in [*model.named_modules()]:
        parent, _, last = name.rpartition(".")
        if module not in made:
            made[module] = make(module) if name else None
        if made[module] is not None:
            setattr(model.get_submodule(parent), last, made[module])
    return model


def brevitas_of(model):
    """Weights of 8 bits with a scale a channel from statistics; ReLU of 8 bits and, in transformers, inputs of layers,
    with learned scales."""
    qnn = pytest.importorskip("brevitas.nn")
    from brevitas.quant import Int8ActPerTensorFloat, Int8WeightPerChannelFloat
    inputs = {} if any(isinstance(module, nn.ReLU) for module in model.modules()) else {
        "input_quant": Int8ActPerTensorFloat, "input_collect_stats_steps": 3}

    def make(module):
        if isinstance(module, nn.ReLU):
            return qnn.QuantReLU(bit_width=8, collect_stats_steps=3)
        options = dict(weight_quant=Int8WeightPerChannelFloat, bias=getattr(module, "bias", None) is not None)
        if isinstance(module, nn.Conv2d):
            made = qnn.QuantConv2d(module.in_channels, module.out_channels, module.kernel_size, stride=module.stride,
                                   padding=module.padding, **options)
        elif isinstance(module, nn.Linear):
            made = qnn.QuantLinear(module.in_features, module.out_features, **options, **inputs)
        else:
            return None
        made.load_state_dict(module.state_dict(), strict=False)
        return made
    return swapped(model, make)


class FakeQuantizedConv2d(nn.Conv2d):
    """A convolution of torchao's quantizers: its weight by output channels, its input by rows of pixels."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        from torchao.quantization.qat import IntxFakeQuantizeConfig, IntxFakeQuantizer
        self.weights = IntxFakeQuantizer(IntxFakeQuantizeConfig(torch.int4, "per_channel"))
        self.inputs = IntxFakeQuantizer(IntxFakeQuantizeConfig(torch.int8, "per_token", is_symmetric=False))

    def forward(self, x):
        weight = self.weights(self.weight.flatten(1)).view_as(self.weight)
        return self._conv_forward(self.inputs(x), weight, self.bias)


def torchao_config():
    from torchao.quantization import Int8DynamicActivationIntxWeightConfig
    from torchao.quantization.granularity import PerGroup
    return Int8DynamicActivationIntxWeightConfig(weight_dtype=torch.int4, weight_granularity=PerGroup(32))


def torchao_of(model, step="prepare"):
    """Linear layers as QATConfig has them; convolutions with quantizers of their own."""
    pytest.importorskip("torchao")
    from torchao.quantization import quantize_
    from torchao.quantization.qat import QATConfig

    def make(module):
        if type(module) is not nn.Conv2d:
            return None
        made = FakeQuantizedConv2d(module.in_channels, module.out_channels, module.kernel_size, module.stride,
                                   module.padding, bias=module.bias is not None)
        made.load_state_dict(module.state_dict(), strict=False)
        return made
    if step == "prepare":
        swapped(model, make)
    quantize_(model, QATConfig(torchao_config(), step=step))
    return model


def torch_ao_of(model):
    """Observers and fake-quantizers of their own on linear layers and convolutions, by prepare_qat."""
    for module in model.modules():
        if isinstance(module, (nn.Linear, nn.Conv2d)):
            module.qconfig = aoq.QConfig(
                aoq.FakeQuantize.with_args(observer=aoq.MovingAverageMinMaxObserver),
                aoq.FakeQuantize.with_args(observer=aoq.MovingAveragePerChannelMinMaxObserver, quant_min=-128,
                                           quant_max=127, dtype=torch.qint8, qscheme=torch.per_channel_symmetric))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return aoq.prepare_qat(model)
