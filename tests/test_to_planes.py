"""to_planes and from_planes: every code and bit-width, and how few planes a lower bit-width reads."""

import oracles
import pytest
import torch

import mbq_kernels as mbq

ROUNDINGS = ("half_even", "half_up")
PAIRS = [(high, low) for high in range(2, 9) for low in range(2, high + 1)]
SHAPES = [(1,), (7,), (8,), (2053,), (20011,), (3, 1031), (5, 128), (2, 3, 5, 7), (600, 3), (0,), (4, 0), (0, 5)]


def needed(high, low, rounding):
    return high if rounding == "half_even" else min(low + 1, high)


@pytest.mark.parametrize("rounding", ROUNDINGS)
@pytest.mark.parametrize("high, low", PAIRS)
def test_every_code(device, high, low, rounding):
    """The switched codes, from the planes that are needed, whatever the others hold."""
    lo, hi = oracles.bounds(high, True)
    codes = torch.arange(lo, hi + 1, dtype=torch.int8, device=device)
    planes = mbq.to_planes(codes, bits=high)
    assert torch.equal(planes.cpu(), oracles.planes_of(codes.cpu(), high))
    wanted = [oracles.switched(code, high, low, rounding) for code in range(lo, hi + 1)]
    count = needed(high, low, rounding)
    poisoned = planes.clone()
    poisoned[count:] = 0xA5
    for given in (planes, poisoned, planes[:count], poisoned[:max(count, high - 1)]):
        actual = mbq.from_planes(given, high_bits=high, bits=low, rounding=rounding, shape=codes.shape)
        assert actual.dtype == torch.int8 and actual.tolist() == wanted


@pytest.mark.parametrize("bits", [8, 5, 2])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_shapes_and_layouts(device, shape, bits):
    codes = oracles.random_codes(shape, bits)
    wanted = oracles.planes_of(codes, bits)
    for name, given in oracles.layouts(codes) if codes.numel() else [("as it is", codes)]:
        planes = mbq.to_planes(given.to(device), bits=bits)
        assert planes.dtype == torch.uint8 and planes.is_contiguous(), name
        assert torch.equal(planes.cpu(), wanted), name
    for name, given in oracles.layouts(wanted) if wanted.numel() else [("as it is", wanted)]:
        for low in range(2, bits + 1):
            back = mbq.from_planes(given.to(device), high_bits=bits, bits=low, shape=shape)
            assert back.is_contiguous()
            assert torch.equal(back.cpu(), oracles.switched_all(codes, bits, low, "half_up")), (name, low)


def test_hand_worked_planes(device):
    """-3 = 101, 1 = 001, 2 = 010 at 3 bits: the sign plane first, code i at bit i."""
    codes = torch.tensor([-3, 1, 2], dtype=torch.int8, device=device)
    assert mbq.to_planes(codes, bits=3).tolist() == [[0b001], [0b100], [0b011]]


def test_bits_that_fill_up_a_row_are_not_looked_at(device):
    codes = oracles.random_codes((4, 9), 8).to(device)
    planes = mbq.to_planes(codes)
    assert (planes[..., -1] <= 1).all()
    planes[..., -1] |= 0xFE
    assert torch.equal(mbq.from_planes(planes, bits=8, shape=(4, 9)), codes)


@pytest.mark.parametrize("bits, code, kept", [(4, 8, 7), (4, -128, -8), (2, 2, 1)])
@pytest.mark.parametrize("at", [0, 20002])
def test_a_code_out_of_range(device, backend, bits, code, kept, at):
    codes = oracles.random_codes((20003,), bits)
    codes[at] = code
    if device == "cuda" or backend == "triton":
        planes = mbq.to_planes(codes.to(device), bits=bits)
        back = mbq.from_planes(planes, high_bits=bits, bits=bits, shape=codes.shape)
        codes[at] = kept
        assert torch.equal(back.cpu(), codes)
        return
    lo, hi = oracles.bounds(bits, True)
    message = f"^to_planes: codes must be between {lo} and {hi} at {bits} bits, got {code}$"
    with pytest.raises(RuntimeError, match=message):
        mbq.to_planes(codes, bits=bits)


CODES, PLANES = torch.ones(4, 9, dtype=torch.int8), torch.ones(8, 4, 2, dtype=torch.uint8)
TO_ERRORS = [
    ({"codes": torch.ones(3)}, TypeError, "codes must be torch.int8, got torch.float32"),
    ({"bits": 1}, ValueError, "bits must be between 2 and 8, got 1"),
    ({"bits": 9}, ValueError, "bits must be between 2 and 8, got 9"),
    ({"bits": None}, TypeError, "bits must be an integer, got None"),
    ({"codes": torch.tensor(1, dtype=torch.int8)}, ValueError, "codes must have at least one dimension"),
]
FROM_ERRORS = [
    ({"planes": CODES}, TypeError, "planes must be torch.uint8, got torch.int8"),
    ({"planes": PLANES[:4]}, ValueError, "planes must be at least 5 for 4 bits of 8, got 4"),
    ({"planes": PLANES[:7], "bits": 7}, ValueError, "planes must be at least 8 for 7 bits of 8, got 7"),
    ({"planes": PLANES[:7], "bits": 8}, ValueError, "planes must be at least 8 for 8 bits of 8, got 7"),
    ({"planes": PLANES[:7], "rounding": "half_even"}, ValueError,
     r"planes must be all 8 with rounding 'half_even', whose ties the last bit decides \('half_up' needs the first 5 "
     r"alone\), got 7"),
    ({"high_bits": 7}, ValueError, "planes must be at most high_bits, 7, got 8"),
    ({"bits": 1}, ValueError, "bits must be between 2 and 8, got 1"),
    ({"high_bits": 9}, ValueError, "high_bits must be between 2 and 8, got 9"),
    ({"high_bits": 3}, ValueError, "bits must be at most high_bits, 3, got 4"),
    ({"shape": (4, 17)}, ValueError, r"planes must have shape \(planes, 4, 3\) for codes of shape \(4, 17\), "
                                     r"got \(8, 4, 2\)"),
    ({"shape": (9,)}, ValueError, r"planes must have shape \(planes, 2\)"),
    ({"shape": []}, ValueError, "shape must have at least one dimension"),
    ({"shape": None}, TypeError, "shape must be a sequence of integers, got None"),
    ({"rounding": "floor"}, ValueError, "rounding must be 'half_even' or 'half_up', got 'floor'"),
]


@pytest.mark.parametrize("changes, error, message", TO_ERRORS, ids=[e[2][:40] for e in TO_ERRORS])
def test_to_planes_errors(changes, error, message):
    with pytest.raises(error, match="^to_planes: " + message):
        mbq.to_planes(**{"codes": CODES, **changes})


@pytest.mark.parametrize("changes, error, message", FROM_ERRORS, ids=[e[2][:40] for e in FROM_ERRORS])
def test_from_planes_errors(changes, error, message):
    with pytest.raises(error, match="^from_planes: " + message):
        mbq.from_planes(**{"planes": PLANES, "bits": 4, "shape": (4, 9), **changes})
