"""switch_bits: every code, pair of bit-widths and rounding rule against Python's integers."""

import oracles
import pytest
import torch

import mbq_kernels as mbq

ROUNDINGS = ("half_even", "half_up")
PAIRS = [(high, low) for high in range(2, 9) for low in range(2, high + 1)]
SHAPES = [(1,), (7,), (2053,), (40009,), (3, 1031), (2, 3, 5, 7), (0,), (4, 0), ()]


@pytest.mark.parametrize("rounding", ROUNDINGS)
@pytest.mark.parametrize("high, low", PAIRS)
def test_every_code(device, high, low, rounding):
    lo, hi = oracles.bounds(high, True)
    codes = torch.arange(lo, hi + 1, dtype=torch.int8, device=device)
    actual = mbq.switch_bits(codes, from_bits=high, to_bits=low, rounding=rounding)
    assert actual.dtype == torch.int8
    assert actual.tolist() == [oracles.switched(code, high, low, rounding) for code in range(lo, hi + 1)]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("rounding", ROUNDINGS)
def test_shapes_and_layouts(device, shape, rounding):
    codes = oracles.random_codes(shape, 8)
    wanted = oracles.switched_all(codes, 8, 3, rounding)
    for name, given in oracles.layouts(codes) if codes.dim() and codes.numel() else [("as it is", codes)]:
        given = given.to(device)
        actual = mbq.switch_bits(given, to_bits=3, rounding=rounding)
        assert torch.equal(actual.cpu(), wanted), name
        assert actual.stride() == torch.empty_like(given).stride(), name


def test_channels_last_stays_so(device):
    codes = oracles.random_codes((2, 5, 4, 3), 8).to(device).to(memory_format=torch.channels_last)
    actual = mbq.switch_bits(codes, to_bits=4)
    assert actual.stride() == codes.stride()
    assert torch.equal(actual.cpu(), oracles.switched_all(codes.cpu(), 8, 4, "half_even"))


def test_hand_worked_ties(device):
    """8 -> 4 bits, D = 4: 8 and 24 are ties of 0 and 1, 1 and 2; 120 rounds to 8 and is clamped."""
    codes = torch.tensor([-128, -24, -8, -7, 7, 8, 9, 24, 119, 120, 127], dtype=torch.int8, device=device)
    even, up = (mbq.switch_bits(codes, to_bits=4, rounding=rounding).tolist() for rounding in ROUNDINGS)
    assert even == [-8, -2, 0, 0, 0, 0, 1, 2, 7, 7, 7]
    assert up == [-8, -1, 0, 0, 0, 1, 1, 2, 7, 7, 7]


def test_switching_twice_is_another_rounding(device):
    """Why stores keep the highest bit-width."""
    codes = torch.arange(-128, 128, dtype=torch.int8, device=device)
    twice = mbq.switch_bits(mbq.switch_bits(codes, to_bits=6), from_bits=6, to_bits=3)
    once = mbq.switch_bits(codes, to_bits=3)
    wanted = [oracles.switched(oracles.switched(c, 8, 6, "half_even"), 6, 3, "half_even") for c in range(-128, 128)]
    assert twice.tolist() == wanted and twice.tolist() != once.tolist()


@pytest.mark.parametrize("bits, code", [(4, 8), (4, -9), (2, 127), (7, -65)])
@pytest.mark.parametrize("at", [0, 5000, 39999])
def test_a_code_out_of_range(device, backend, bits, code, at):
    """Raises on the CPU wherever it is; clamped to the range of from_bits on CUDA and by Triton."""
    codes = oracles.random_codes((40000,), bits)
    codes[at] = code
    lo, hi = oracles.bounds(bits, True)
    if device == "cuda" or backend == "triton":
        actual = mbq.switch_bits(codes.to(device), from_bits=bits, to_bits=2)
        assert torch.equal(actual.cpu(), oracles.switched_all(codes.clamp(lo, hi), bits, 2, "half_even"))
        return
    with pytest.raises(RuntimeError, match=rf"^switch_bits: codes must be between {lo} and {hi} at {bits} bits, "
                                           rf"got {code}$"):
        mbq.switch_bits(codes, from_bits=bits, to_bits=2)


ERRORS = [
    ({"codes": torch.ones(3)}, TypeError, "codes must be torch.int8, got torch.float32"),
    ({"codes": torch.ones(3, dtype=torch.uint8)}, TypeError, "codes must be torch.int8, got torch.uint8"),
    ({"codes": [1]}, TypeError, "codes must be a tensor, got list"),
    ({"codes": torch.ones(2, 2).char().to_sparse()}, TypeError, "codes must be a dense tensor"),
    ({"to_bits": 1}, ValueError, "to_bits must be between 2 and 8, got 1"),
    ({"from_bits": 9}, ValueError, "from_bits must be between 2 and 8, got 9"),
    ({"from_bits": 4, "to_bits": 6}, ValueError, "to_bits must be at most from_bits, 4, got 6"),
    ({"to_bits": 4.0}, TypeError, r"to_bits must be an integer, got 4\.0"),
    ({"to_bits": True}, TypeError, "to_bits must be an integer, got True"),
    ({"rounding": "floor"}, ValueError, "rounding must be 'half_even' or 'half_up', got 'floor'"),
    ({"rounding": None}, ValueError, "rounding must be 'half_even' or 'half_up', got None"),
]


@pytest.mark.parametrize("changes, error, message", ERRORS, ids=[e[2][:40] for e in ERRORS])
def test_errors(changes, error, message):
    with pytest.raises(error, match="^switch_bits: " + message):
        mbq.switch_bits(**{"codes": torch.ones(3, dtype=torch.int8), "to_bits": 4, **changes})
