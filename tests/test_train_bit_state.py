"""The bit-width in use: set_bits, get_bits, views, what print shows."""

import pytest
import torch
from networks import one_thread, small_network  # noqa: F401
from own_loop import BITS, IMAGES, converted, outputs, trained
from torch import nn

from mbq_train import at_bits, get_bits, set_bits


def test_set_bits_is_a_context_manager_and_get_bits_tells():
    model = trained()
    set_bits(model, 4)
    with set_bits(model, 2):
        assert get_bits(model) == 2
        with set_bits(model, 32):
            assert get_bits(model) == 32
        assert get_bits(model) == 2
    assert get_bits(model) == 4
    with pytest.raises(ZeroDivisionError), set_bits(model, 8):
        raise ZeroDivisionError
    assert get_bits(model) == 4
    with pytest.raises(ValueError, match="get_bits: model must hold layers made by convert, got Sequential without"):
        get_bits(small_network())
    both = nn.ModuleList([model, trained()])
    with pytest.raises(ValueError, match="get_bits: model must be at one bit-width, got parts at 8, 4 bits"):
        set_bits(both[1], 8), get_bits(both)


def test_a_view_shares_parameters_and_owns_its_bit_width():
    model = trained()
    expected = dict(zip(BITS, outputs(model), strict=True))
    set_bits(model, 8)
    view = at_bits(model, 2)
    assert get_bits(model) == 8 and get_bits(view) == 2
    assert torch.equal(view(IMAGES), expected[2]) and torch.equal(model(IMAGES), expected[8])
    assert [id(p) for p in view.parameters()] == [id(p) for p in model.parameters()]
    assert [id(b) for b in view.buffers()] == [id(b) for b in model.buffers()]
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    view.train()(IMAGES).square().mean().backward()
    optimizer.step()
    assert torch.equal(at_bits(model, 2).eval()(IMAGES), view.eval()(IMAGES))
    model.double()
    assert view(IMAGES.double()).dtype == torch.float64
    with pytest.raises(ValueError, match="set_bits: bits must be one of 32, 8, 4, 2, got 3"):
        at_bits(model, 3)


def test_print_shows_bit_widths_and_not_every_parameter():
    text = repr(converted(example=IMAGES, learn_offset=True)[3])
    assert "WeightQuantizer(bits=8, 4, 2, signed, axis=0)" in text and text.count("\n") <= 4
    assert "ActivationQuantizer(bits=8, 4, 2, unsigned, per tensor, offset)" in text


def test_a_context_of_set_bits_can_be_entered_again_and_later():
    model = trained()
    set_bits(model, 8)
    context = set_bits(model, 4)
    set_bits(model, 2)
    for _ in range(2):
        with context:
            assert get_bits(model) == 4
        assert get_bits(model) == 2
