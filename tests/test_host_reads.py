"""No training step reads a tensor's values: on a GPU the host would wait, each time, for all that is to be done."""

import pytest
import torch
from accelerated_networks import FAMILIES, made, step_of
from host_reads import HostRead, as_on_a_gpu, no_host_reads
from manifest import MANIFEST
from networks import encoder_network, one_thread, small_network  # noqa: F401 - a fixture
from test_train_saved import WEIGHTS
from torch.ao.quantization import disable_observer

from mbq_kernels._library import ops
from mbq_train import Float, accelerate, convert, recompute_quantized, set_bits, set_layer_bits
from mbq_train.drop_in.torch_ao.observer import is_on
from mbq_train.quantize.layers import weight_layers


@pytest.mark.parametrize("read", [
    torch.Tensor.item, torch.Tensor.tolist, bool, float, torch.Tensor.cpu, torch.Tensor.numpy, torch.Tensor.nonzero,
    lambda x: torch.equal(x, x), lambda x: torch.ones(1)[x[None] > 0], lambda x: [0, 1][x.int()],
    lambda x: torch.where(x[None] > 0)],
    ids=["item", "tolist", "bool", "float", "cpu", "numpy", "nonzero", "equal", "mask", "index", "where"])
def test_every_read_is_refused(read):
    with pytest.raises(HostRead), no_host_reads():
        read(torch.ones(()))


@pytest.mark.parametrize("op", [op for op in ops() if op in MANIFEST])
def test_ops(op):
    inputs = MANIFEST[op].data.make("cpu")
    with no_host_reads():
        out = MANIFEST[op].call(*inputs)
        if MANIFEST[op].differentiable:
            out.sum().backward()


def train(model, x, bits):
    optimizer = torch.optim.SGD(model.parameters(), 0.01, momentum=0.9)
    for b in bits:
        set_bits(model, b)
        loss = model(x).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("activations", [None, Float()], ids=["quantized inputs", "float inputs"])
@pytest.mark.parametrize("weights", WEIGHTS, ids=repr)
@pytest.mark.filterwarnings("ignore:.*inputs are negative")
def test_converted_networks(weights, activations, recompute):
    for network, x in ((small_network(), torch.rand(4, 1, 8, 8)), (encoder_network(), torch.randn(4, 5, 8))):
        model = convert(network, (4, 2), example=x, keep_float=(), weights=weights, activations=activations)
        recompute_quantized(model, recompute)
        set_layer_bits(model, {next(iter(weight_layers(model))): 2})
        train(model, x, (4, 2))
        with no_host_reads():
            train(model, x, (4, 2, 32))


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.filterwarnings("ignore")
def test_accelerated_networks(name):
    """Observers of torch.ao read extremes themselves: those are off, as in the last part of a training."""
    model = made(name)
    assert accelerate(model).replaced
    step = step_of(model)
    with as_on_a_gpu():
        step(), step()
        model.apply(disable_observer)
        step()
    with no_host_reads() as kernels:
        step()
    assert len(kernels) >= 4 or name == "torch.ao-fused"  # which is torch's operator on a GPU


class Switch(torch.Tensor):
    """On another device, as far as it says; counts reads."""

    is_cpu, reads = False, 0

    def item(self):
        Switch.reads += 1
        return torch.Tensor.item(self)


def test_switches_are_read_again_after_writes_alone():
    switch = torch.ones(1, dtype=torch.uint8).as_subclass(Switch)
    found = []
    for value in (None, None, 0, None, 1, 1, None):
        if value is not None:
            switch[0] = value
        found.append((is_on(switch), Switch.reads))
    assert found == [(True, 1), (True, 1), (False, 2), (False, 2), (True, 3), (True, 4), (True, 4)]
