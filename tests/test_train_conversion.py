"""plan_conversion: what is quantized, in which order and by which rule, and what the report says."""

import copy

import pytest
import torch
from networks import encoder_network, llama_network, one_thread, small_network, vision_transformer  # noqa: F401
from torch import nn

from mbq_train import DoubleRounding, Float, Learned, QuantConv2d, QuantLinear, convert, plan_conversion


def actions(plan):
    return {entry.name: entry.action for entry in plan.entries}


def reasons(plan):
    return {entry.name: entry.why for entry in plan.entries}


class OutOfOrder(nn.Module):
    """Calls its layers in another order than it registers them, one never, and draws random numbers."""

    def __init__(self):
        super().__init__()
        self.last, self.middle, self.never, self.first = (nn.Linear(4, 4) for _ in range(4))
        self.norm = nn.BatchNorm1d(4)

    def forward(self, x, *, shift):
        x = self.norm(self.first(x)) + shift
        return self.last(nn.functional.dropout(self.middle(x), 0.5, training=True))


def test_first_and_last_are_those_the_example_calls():
    model = OutOfOrder()
    model.first.eval()
    before, state = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    plan = plan_conversion(model, example={"x": torch.ones(3, 4), "shift": 1.0})
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert model.training and not model.first.training and not model.middle._forward_pre_hooks
    assert actions(plan) == {"last": "float", "middle": "quantize", "never": "quantize", "first": "float",
                             "norm": "per_bit"}
    assert "not called with the example" in reasons(plan)["never"]
    assert reasons(plan)["first"] == "keep_float: first as called with the example: it reads the network's input"
    assert reasons(plan)["last"] == "keep_float: last as called with the example"


def test_without_an_example_the_order_is_that_of_registration():
    plan = plan_conversion(OutOfOrder())
    assert (actions(plan)["last"], actions(plan)["first"], actions(plan)["never"]) == ("float", "float", "quantize")
    assert reasons(plan)["last"] == "keep_float: first by order of registration (no example given)"
    assert "by order of registration" in str(plan)


def test_examples_may_be_tuples():
    model = nn.Transformer(8, 2, 1, 1, dim_feedforward=8, batch_first=True).eval()
    plan = plan_conversion(model, example=(torch.randn(2, 3, 8), torch.randn(2, 4, 8)))
    assert [name for name, why in reasons(plan).items() if "keep_float" in why] == [
        "encoder.layers.0.self_attn", "decoder.layers.0.self_attn", "decoder.layers.0.linear2"]
    assert not any("not called" in why for why in reasons(plan).values())


def first(model, example):
    """The layers that 'first' stands for."""
    plan = plan_conversion(model, example=example)
    return [name for name, why in reasons(plan).items() if why.startswith("keep_float: first")]


class Branches(nn.Module):
    """Two layers on the image as it comes and scaled; one behind a pool, one on the image and on what was computed."""

    def __init__(self):
        super().__init__()
        self.plain, self.scaled, self.pooled = (nn.Conv2d(1, 2, 3, padding=1) for _ in range(3))
        self.both, self.head = nn.Conv2d(7, 4, 3, padding=1), nn.Conv2d(4, 2, 3)

    def forward(self, x):
        pooled = self.pooled(nn.functional.max_pool2d(x, 3, 1, 1))
        return self.head(self.both(torch.cat([x, self.plain(x), self.scaled((x - 0.5) / 2), pooled], dim=1)))


class InPlace(nn.Module):
    """Writes a layer's output where the input was, through a view, and reads what no input is in."""

    def __init__(self):
        super().__init__()
        self.query = nn.Parameter(torch.ones(1, 4))
        self.a, self.b, self.c, self.d = (nn.Linear(4, 4) for _ in range(4))

    def forward(self, x):
        x = x.clone() + self.b.weight.new_zeros(4)
        start = self.b(self.query)
        x[:, :] = self.a(x.view(-1, 4))
        return self.d(self.c(x) + start)


class WeightByHand(nn.Module):
    """Does not call its first layer."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = (nn.Linear(4, 4) for _ in range(3))

    def forward(self, x, y):
        return self.c(nn.functional.linear(x, self.a.weight) + self.b(y))


class Custom(torch.autograd.Function):
    """An operation that no override of torch functions sees."""

    @staticmethod
    def forward(ctx, x):
        return x * 2

    @staticmethod
    def backward(ctx, grad):
        return grad


class Behind(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.c, self.d = (nn.Linear(4, 4) for _ in range(4))

    def forward(self, x, other):
        return self.d(self.c(Custom.apply(self.a(Custom.apply(x)) + self.b(other["deep"][0]))))


@pytest.mark.parametrize("make, example, names", [
    (llama_network, torch.arange(6).view(2, 3), ["1.q_proj", "1.k_proj", "1.v_proj"]),
    (vision_transformer, torch.rand(2, 1, 8, 8), ["patches"]),
    (small_network, torch.rand(2, 1, 8, 8), ["0"]),
    (Branches, torch.rand(2, 1, 6, 6), ["plain", "scaled", "pooled"]),
    (InPlace, torch.rand(3, 4), ["a"]),
    (WeightByHand, (torch.rand(3, 4), torch.rand(3, 4)), ["b"]),
    (Behind, (torch.rand(3, 4), {"deep": [torch.rand(3, 4)]}), ["a", "b"]),
], ids=lambda value: getattr(value, "__name__", "") if callable(value) else None)
def test_first_are_all_layers_that_read_the_input_of_the_network(make, example, names):
    model = make()
    assert first(model, example) == names
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in model.modules())


def test_first_is_the_one_called_first_where_nothing_reads_the_input():
    class Constant(nn.Module):
        def __init__(self):
            super().__init__()
            self.b, self.a, self.c = (nn.Linear(4, 4) for _ in range(3))

        def forward(self, x):
            return self.c(self.b(self.a(torch.ones(1, 4))))

    plan = plan_conversion(Constant(), example=torch.ones(1, 4))
    assert reasons(plan)["a"] == "keep_float: first as called with the example"
    assert actions(plan) == {"b": "quantize", "a": "float", "c": "float"}


def test_an_example_may_pad():
    x, padding = torch.randn(2, 3, 8), torch.tensor([[0, 0, 0], [0, 0, 1]]).bool()
    plan = plan_conversion(encoder_network()[1], example={"src": x, "src_key_padding_mask": padding})
    assert len(plan.entries) == 10 and not any("not called" in why for why in reasons(plan).values())


@pytest.mark.parametrize("rules, quantized", [
    ([], {"3", "7"}),
    ([("7", "float")], {"3"}),
    ([(nn.Conv2d, "float")], {"7"}),
    ([("*", "quantize")], {"0", "3", "7", "9"}),
    ([(nn.Linear, "quantize")], {"3", "7", "9"}),
    ([("*", "quantize"), ("[03]", "float")], {"7", "9"}),
    ([("*", "float"), (nn.Linear, "quantize"), ("9", "float")], {"7"}),
    ([("9", {"activations": Learned(signed=True)})], {"3", "7"}),
], ids=lambda value: str(sorted(value) if isinstance(value, set) else value))
def test_later_rules_win_over_earlier_ones_and_keep_float(rules, quantized):
    plan = plan_conversion(small_network(), rules=rules)
    assert {name for name, action in actions(plan).items() if action == "quantize"} == quantized
    model = plan.apply()
    assert {name for name, m in model.named_modules() if isinstance(m, (QuantConv2d, QuantLinear))} == quantized


def test_options_of_rules_reach_the_quantizers():
    model = convert(small_network(), keep_float=("first",), rules=[
        ("*", {"activations": Learned(signed=True, offset=True)}), ("7", {"activations": Learned(signed=True)}),
        (nn.Conv2d, {"activations": Learned(signed=False, offset=True)}), ("0", "quantize"),
        ("9", {"activations": Float(), "weights": DoubleRounding()})], activations=Learned(bits=4))
    found = {name: (model[name].input_quantizer.signed, model[name].input_quantizer.offsets is not None)
             for name in (0, 3, 7)}
    assert found == {0: (False, True), 3: (False, True), 7: (True, False)}
    assert type(model[9].input_quantizer) is nn.Identity
    assert model[9].weight_quantizer.switchable and not model[7].weight_quantizer.switchable


class Mixed(nn.Module):
    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(3))
        self.embedding, self.norm, self.up = nn.Embedding(5, 4), nn.LayerNorm(4), nn.ConvTranspose1d(4, 4, 2)
        self.lstm, self.drop, self.attention = nn.LSTM(4, 4), nn.Dropout(), nn.MultiheadAttention(4, 2)
        self.bn, self.a, self.b = nn.BatchNorm1d(4), nn.Linear(4, 5, bias=False), nn.Linear(4, 5)
        self.a.weight = self.embedding.weight


def test_the_report_names_everything_with_parameters_and_why():
    model = Mixed()
    plan = plan_conversion(model, keep_float=("b",), batch_norm="shared")
    told = {entry.name: (entry.type, entry.parameters, entry.action, entry.why) for entry in plan.entries}
    assert told == {
        "": ("Mixed", 3, "float", "scale: used by hand, out of the reach of convert"),
        "embedding": ("Embedding", 20, "float", "embedding: a look-up, not a product; shares Parameters with a"),
        "norm": ("LayerNorm", 8, "float", "normalisation"),
        "up": ("ConvTranspose1d", 36, "float", "type not supported"),
        "lstm": ("LSTM", 160, "float", "type not supported"),
        "attention": ("MultiheadAttention", 80, "quantize", "supported"),
        "bn": ("BatchNorm1d", 8, "float", "batch_norm='shared'"),
        "a": ("Linear", 20, "quantize", "supported; shares Parameters with embedding"),
        "b": ("Linear", 25, "float", "keep_float"),
    }
    total = sum(parameter.numel() for parameter in model.parameters())
    assert (plan.parameters, plan.quantized_parameters) == (total, 64 + 20) == (340, 84)
    text = str(plan)
    assert all(name in text for name in told) and "84 of 340 parameters quantized (24.7%)" in text
    plan.apply()
    assert str(plan) == text and len(plan.rows()) == len(told)


def test_markup_in_names_is_shown_as_it_is():
    model = nn.ModuleDict({"[bold]": nn.Linear(2, 2)})
    assert "[bold]" in str(plan_conversion(model, keep_float=()))


def test_planning_changes_nothing_and_a_plan_is_applied_once():
    model = small_network()
    before, state = list(model), torch.get_rng_state()
    plan = plan_conversion(model)
    assert list(model) == before
    assert plan.apply() is model and list(model) != before
    assert torch.equal(torch.get_rng_state(), state)
    with pytest.raises(ValueError, match="convert: model must not be converted already"):
        plan.apply()


def test_a_plan_of_a_model_that_changed_since_is_refused():
    model = small_network()
    plan = plan_conversion(model)
    model[3] = nn.Conv2d(4, 6, 3)
    with pytest.raises(ValueError, match="convert: model must be as it was when .* planned, got another module at 3"):
        plan.apply()
