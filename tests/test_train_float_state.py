"""The state of a float network, loaded into a converted one: nothing of it is dropped."""

import copy

import pytest
import torch
from foreign import package
from networks import one_thread, small_network  # noqa: F401
from torch import nn

from mbq_train import convert, initialise, set_bits

BITS = (8, 2)


class NormWithState(nn.BatchNorm1d):
    """With a buffer and a parameter of its own."""

    def __init__(self, channels):
        super().__init__(channels)
        self.act = nn.PReLU(channels)
        self.register_buffer("shift", torch.ones(channels))

    def forward(self, x):
        return self.act(super().forward(x) + self.shift)


class Block(nn.Module):
    def __init__(self, norm):
        super().__init__()
        self.norm, self.attention, self.linear = norm, nn.MultiheadAttention(4, 2), nn.Linear(4, 4)

    def forward(self, x):
        x = self.norm(x)
        return self.linear(self.attention(x, x, x)[0])


NORMS = {
    "affine": lambda: nn.BatchNorm1d(4), "not affine": lambda: nn.BatchNorm1d(4, affine=False),
    "no statistics": lambda: nn.BatchNorm1d(4, track_running_stats=False), "subclass": lambda: NormWithState(4),
    "synchronised": lambda: nn.SyncBatchNorm(4),
}


def network(norm, seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 4), Block(norm()), Block(norm()), nn.Linear(4, 4))


def trained(norm, x):
    """Away from the first values of everything."""
    model = network(norm)
    with torch.no_grad():
        for value in (*model.parameters(), *model.buffers()):
            value.add_(torch.rand_like(value) if value.is_floating_point() else 3)
    model(x)
    return model.eval()


@pytest.fixture
def x():
    return torch.randn(6, 4, generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize("strict", [True, False], ids=["strict", "not strict"])
@pytest.mark.parametrize("started", [True, False], ids=["with scales", "without"])
@pytest.mark.parametrize("norm", NORMS.values(), ids=NORMS)
def test_every_bit_width_starts_from_the_float_network(norm, started, strict, x):
    source = trained(norm, x)
    model = convert(network(norm, seed=1), BITS)
    if started:
        initialise(model, x)
    scales = {name: value.clone() for name, value in model.state_dict().items() if "_quantizer." in name}
    keys = model.load_state_dict(source.state_dict(), strict=strict)
    assert not keys.missing_keys and not keys.unexpected_keys
    assert scales and all(torch.equal(model.state_dict()[name].nan_to_num(-1), value.nan_to_num(-1))
                          for name, value in scales.items())
    set_bits(model.eval(), 32)
    torch.testing.assert_close(model(x), source(x))
    for name, value in convert(copy.deepcopy(source), BITS).state_dict().items():
        assert "_quantizer." in name or torch.equal(model.state_dict()[name], value), name


@pytest.mark.parametrize("assign", [False, True], ids=["copied", "assigned"])
def test_bit_widths_share_no_memory_afterwards(assign, x):
    model = convert(network(NORMS["affine"], seed=1), BITS)
    model.load_state_dict(trained(NORMS["affine"], x).state_dict(), assign=assign)
    parameters = dict(model.named_parameters())
    assert len({parameter.data_ptr() for parameter in parameters.values()}) == len(parameters)
    initialise(model, x)


def test_the_state_of_a_converted_network_loads_exactly(x):
    model = convert(network(NORMS["subclass"]), BITS)
    for bits in BITS:
        set_bits(model, bits)
        model(x)
    other = convert(network(NORMS["subclass"], seed=1), BITS)
    other.load_state_dict(model.state_dict())
    assert all(torch.equal(value, other.state_dict()[name]) for name, value in model.state_dict().items())
    assert not torch.equal(other[2].norm.by_bits["8"].running_mean, other[2].norm.by_bits["2"].running_mean)
    alone = convert(network(NORMS["subclass"], seed=2), BITS)[1].norm
    alone.load_state_dict(trained(NORMS["subclass"], x)[1].norm.state_dict())
    assert torch.equal(alone.by_bits["2"].act.weight, alone.by_bits["32"].act.weight)


def test_a_shared_batch_norm_becomes_that_of_every_bit_width(x):
    shared = convert(network(NORMS["affine"]), BITS, batch_norm="shared")
    initialise(shared, x)
    shared(x)
    model = convert(network(NORMS["affine"], seed=1), BITS)
    model.load_state_dict(shared.state_dict())
    assert all(torch.equal(one.running_mean, shared[1].norm.running_mean) for one in model[1].norm.by_bits.values())


@pytest.mark.parametrize("strict", [True, False], ids=["strict", "not strict"])
@pytest.mark.parametrize("bits", [(8, 4), (8, 4, 2), (8,)], ids=str)
def test_states_of_other_bit_widths_say_so(bits, strict, x):
    model = convert(network(NORMS["affine"]), BITS)
    found = ", ".join(map(str, (*bits, 32)))
    with pytest.raises(RuntimeError, match=rf"bit-widths of 1.norm must be 8, 2, 32, got a state with {found}\n"):
        model.load_state_dict(convert(network(NORMS["affine"]), bits).state_dict(), strict=strict)


def test_what_a_float_state_lacks_is_still_missing():
    model, state = convert(small_network(), BITS), small_network().state_dict()
    del state["3.weight"], state["4.bias"]
    with pytest.raises(RuntimeError) as error:
        model.load_state_dict(state)
    text = str(error.value)
    assert all(f'"{name}"' in text for name in ("3.weight", "4.by_bits.8.bias", "4.by_bits.32.bias"))
    assert '"7.' not in text and "Unexpected" not in text
    partial = small_network().state_dict()
    model.load_state_dict({name: value for name, value in partial.items() if name.startswith("9.")}, strict=False)


def test_a_timm_checkpoint_loads_after_conversion():
    timm = package("timm")
    source = timm.create_model("mobilenetv3_small_050", num_classes=4).eval()
    images = torch.randn(2, 3, 32, 32)
    model = convert(timm.create_model("mobilenetv3_small_050", num_classes=4), BITS, example=images)
    with torch.no_grad():
        for value in source.parameters():
            value.add_(0.1 * torch.rand_like(value))
    model.load_state_dict(source.state_dict())
    set_bits(model.eval(), 32)
    assert torch.equal(model(images), source(images))
