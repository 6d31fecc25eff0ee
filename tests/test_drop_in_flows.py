"""Quantization-aware training of torch.ao up to the converted network, with and without accelerate."""

import copy

import pytest
import torch
import torch.ao.quantization as aoq
from foreign import package
from networks import one_thread  # noqa: F401 - a fixture
from torch import nn
from torch.ao.quantization.quantize_fx import convert_fx, prepare_qat_fx

from mbq_train import accelerate, restore

SIZE = 24  # activations of 8 x 16 x 24 x 24 elements, which kernels take; weights of 16 x 16 x 3 x 3, which they leave


class Block(nn.Module):
    """A residual block."""

    def __init__(self, channels):
        super().__init__()
        self.conv1, self.conv2 = (nn.Conv2d(channels, channels, 3, padding=1, bias=False) for _ in range(2))
        self.bn1, self.bn2, self.relu = nn.BatchNorm2d(channels), nn.BatchNorm2d(channels), nn.ReLU()
        self.add = torch.ao.nn.quantized.FloatFunctional()

    def forward(self, x):
        return self.add.add_relu(self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x))))), x)


class Network(nn.Module):
    def __init__(self):
        super().__init__()
        self.quant, self.dequant = aoq.QuantStub(), aoq.DeQuantStub()
        self.conv, self.bn, self.relu = nn.Conv2d(3, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU()
        self.block, self.pool, self.fc = Block(16), nn.AdaptiveAvgPool2d(2), nn.Linear(64, 10)

    def forward(self, x):
        x = self.block(self.relu(self.bn(self.conv(self.quant(x)))))
        return self.dequant(self.fc(torch.flatten(self.pool(x), 1)))


def eager():
    network = aoq.fuse_modules_qat(Network(), [["conv", "bn", "relu"], ["block.conv1", "block.bn1", "block.relu"],
                                               ["block.conv2", "block.bn2"]])
    network.qconfig = aoq.get_default_qat_qconfig("fbgemm")
    return aoq.prepare_qat(network), aoq.convert


def separate_observers():
    network = Network()
    weight = aoq.FakeQuantize.with_args(observer=aoq.PerChannelMinMaxObserver, quant_min=-128, quant_max=127,
                                        dtype=torch.qint8, qscheme=torch.per_channel_symmetric)
    network.qconfig = aoq.QConfig(aoq.FakeQuantize.with_args(observer=aoq.MovingAverageMinMaxObserver), weight)
    return aoq.prepare_qat(network), aoq.convert


def traced():
    mapping = aoq.get_default_qat_qconfig_mapping("fbgemm")
    return prepare_qat_fx(Network(), mapping, torch.randn(1, 3, SIZE, SIZE)), convert_fx


def losses_of(network, restore_at=None, size=SIZE):
    torch.manual_seed(1)
    optimizer, losses = torch.optim.SGD(network.parameters(), 0.05, momentum=0.9), []
    for step in range(20):
        if step == restore_at:
            assert restore(network) > 0
        if step == 12:
            network.apply(aoq.disable_observer)
        if step == 15:
            network.apply(torch.nn.intrinsic.qat.freeze_bn_stats)
        loss = nn.functional.cross_entropy(network(torch.randn(8, 3, size, size)), torch.randint(10, (8,)))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize("prepare", [eager, separate_observers, traced])
@pytest.mark.filterwarnings("ignore:.*deprecated.*")
def test_up_to_the_converted_network(prepare):
    torch.manual_seed(0)
    prepared, convert = prepare()
    original, ours, restored = (copy.deepcopy(prepared) for _ in range(3))
    for network in (ours, restored):
        assert len(accelerate(network).replaced) >= 8
    losses = losses_of(original)
    assert losses_of(ours) == losses and losses_of(restored, restore_at=10) == losses
    states = original.state_dict(), ours.state_dict(), restored.state_dict()
    assert list(states[0]) == list(states[1]) == list(states[2])
    assert all(torch.equal(states[0][name], state[name]) for state in states[1:] for name in state)
    x = torch.randn(4, 3, SIZE, SIZE)
    assert torch.equal(original.eval()(x), ours.eval()(x))
    quantized, ours_quantized = convert(original), convert(ours)
    assert str(quantized) == str(ours_quantized)
    assert torch.equal(quantized(x), ours_quantized(x))


@pytest.mark.long
@pytest.mark.filterwarnings("ignore:.*deprecated.*")
def test_resnet18():
    torch.manual_seed(0)
    images, mapping = torch.randn(2, 3, 64, 64), aoq.get_default_qat_qconfig_mapping("fbgemm")
    network = package("torchvision").models.resnet18(num_classes=10)
    original = copy.deepcopy(prepare_qat_fx(network, mapping, images))
    ours = copy.deepcopy(original)
    report = accelerate(ours, example=images)
    assert len(report.replaced) + len(report.left) == 51 and len(report.replaced) > 25
    assert losses_of(ours, size=64) == losses_of(original, size=64)
    assert all(torch.equal(value, original.state_dict()[name]) for name, value in ours.state_dict().items())
