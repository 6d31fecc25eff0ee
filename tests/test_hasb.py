"""HASB: what the layers of a supernet draw."""

import math
from collections import Counter

import pytest
import torch
from networks import one_thread  # noqa: F401
from scipy.stats import chisquare
from transitional_networks import BITS, chain, converted

from mbq_train import BitRoulette, Trace
from mbq_train.training.steps import Stepper

TRACES = {"3": 0.5, "6": 2.0}
DRAWS = 3000


def roulette(traces=None, *, epochs=1, uniform_epochs=0, largest=1.0, **options):
    return BitRoulette(converted(), traces or TRACES, epochs=epochs, uniform_epochs=uniform_epochs, largest=largest,
                       **options)


@pytest.mark.parametrize("layer, expected", [("3", [1 / 3, 1 / 3, 1 / 3]), ("6", [8 / 14, 4 / 14, 2 / 14])])
@pytest.mark.parametrize("bits", BITS)
def test_layers_draw_by_their_traces(layer, expected, bits):
    drawn = roulette()
    counts = Counter(drawn.draw(step, 0, bits)[layer] for step in range(DRAWS))
    assert counts.keys() == set(BITS)
    assert chisquare([counts[b] for b in BITS], [DRAWS * p for p in expected]).pvalue > 0.01
    assert torch.allclose(drawn.probabilities[drawn.layers.index(layer)].float(), torch.tensor(expected))


@pytest.mark.parametrize("epoch, sigma", [(2, 0.15), (9, 0.5)])
def test_a_share_sigma_of_the_layers_draws(epoch, sigma):
    drawn = roulette(epochs=10, uniform_epochs=2, largest=0.5, seed=1)
    assert drawn.sigma(epoch) == pytest.approx(sigma) and drawn.sigma(1) == 0
    draws = [drawn.draw(step, epoch, 4) for step in range(DRAWS)]
    for layer in TRACES:
        drew = sum(draw[layer] is not None for draw in draws)
        assert chisquare([drew, DRAWS - drew], [DRAWS * sigma, DRAWS * (1 - sigma)]).pvalue > 0.01
    both = sum(all(draw.values()) for draw in draws)  # layers draw independently of each other
    assert chisquare([both, DRAWS - both], [DRAWS * sigma**2, DRAWS * (1 - sigma**2)]).pvalue > 0.01
    assert drawn.draw(5, 1, 4) == drawn.draw(5, epoch, 32) == {"3": None, "6": None}


def test_the_paper_waits_ten_epochs_and_ends_at_a_half():
    drawn = BitRoulette(converted(), TRACES, epochs=90)
    assert [drawn.sigma(epoch) for epoch in (0, 9, 10, 89)] == [0, 0, pytest.approx(11 / 180), 0.5]


def test_draws_depend_on_seed_step_and_bits_alone():
    def draws(seed, consumed):
        torch.manual_seed(consumed)
        drawn = roulette({"6": 2.0, "3": 0.5}, seed=seed)
        torch.rand(consumed)
        before = torch.get_rng_state()
        found = {(step, bits): drawn.draw(step, 0, bits) for step in range(50) for bits in BITS}
        assert torch.equal(torch.get_rng_state(), before)
        return found

    one, again, other = draws(0, 1), draws(0, 7), draws(1, 1)
    assert one == again != other
    assert len({tuple(draw.values()) for draw in one.values()}) == 9  # every configuration comes
    assert any(one[step, 8] != one[step, 2] for step in range(50))


def test_traces_of_the_hessian_count_an_element():
    of_elements = {"3": Trace(4.0, 0.0, 100), "6": Trace(2.0, 0.0, 10)}
    assert torch.equal(roulette(of_elements).probabilities, roulette().probabilities)
    alike = roulette({"3": 1.0, "6": 1.0})  # none below the mean
    assert torch.allclose(alike.probabilities, torch.tensor([8, 4, 2], dtype=torch.float64).expand(2, 3) / 14)
    assert roulette(bits=(4, 2)).probabilities.shape == (2, 2)


@pytest.mark.parametrize("traces, options, match", [
    ({"3": 1.0}, {}, "traces must hold every quantized layer, got none of '6'"),
    (TRACES | {"0": 1.0}, {}, "traces must be of quantized layers, got one of '0'"),
    (TRACES | {"6": math.nan}, {}, "traces must be finite and at least 0, got nan of '6'"),
    (TRACES | {"6": -1.0}, {}, "traces must be finite and at least 0, got -1.0 of '6'"),
    (TRACES | {"6": Trace(math.inf, 0.0, 2)}, {}, "traces must be finite and at least 0, got inf of '6'"),
    (TRACES, {"largest": 1.5}, r"largest must be in \[0, 1\], got 1.5"),
    (TRACES, {"largest": math.nan}, r"largest must be in \[0, 1\], got nan"),
    (TRACES, {"bits": (8, 6)}, "bits must be trained ones, of 8, 4, 2, got 6"),
    (TRACES, {"epochs": 0}, "epochs must be an integer of at least 1, got 0"),
    (TRACES, {"uniform_epochs": -1}, "uniform_epochs must be an integer of at least 0, got -1"),
])
def test_what_cannot_be_drawn_from_is_an_error(traces, options, match):
    with pytest.raises(ValueError, match=f"BitRoulette: {match}"):
        roulette(traces, **options)


def test_wrong_calls_are_errors():
    with pytest.raises(TypeError, match="traces must be a mapping by layer, got list"):
        roulette([1.0, 2.0])
    with pytest.raises(ValueError, match="BitRoulette: model must hold layers made by convert"):
        BitRoulette(chain(), TRACES, epochs=1)
    with pytest.raises(ValueError, match="bits must be one of 32, 8, 4, 2, got 6"):
        roulette().draw(0, 0, 6)
    with pytest.raises(ValueError, match=r"epoch must be in 0..0, got 1"):
        roulette().draw(0, 1, 8)
    with pytest.raises(ValueError, match="schedule must be each with a configuration of layers, got 'accumulate'"):
        Stepper(chain(), (32,), None, schedule="accumulate", configuration=lambda bits: None)
