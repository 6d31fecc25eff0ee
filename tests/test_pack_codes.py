"""pack_codes and unpack_codes: bytes against Python's big integers, there and back."""

import oracles
import pytest
import torch

import mbq_kernels as mbq

WIDTHS = pytest.mark.parametrize("bits, signed", [(b, s) for b in (1, 2, 4) for s in (True, False)])
SHAPES = [(1,), (7,), (8,), (2053,), (20011,), (3, 1031), (5, 128), (2, 3, 5, 7), (600, 3), (0,), (4, 0), (0, 5)]


@WIDTHS
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_there_and_back(device, shape, bits, signed):
    codes = oracles.random_codes(shape, bits, signed)
    wanted = oracles.packed_rows(codes, bits, signed)
    for name, given in oracles.layouts(codes) if codes.numel() else [("as it is", codes)]:
        packed = mbq.pack_codes(given.to(device), bits=bits, signed=signed)
        assert packed.dtype == torch.uint8 and packed.is_contiguous(), name
        assert torch.equal(packed.cpu(), wanted), name
    for name, given in oracles.layouts(wanted) if wanted.numel() else [("as it is", wanted)]:
        back = mbq.unpack_codes(given.to(device), bits=bits, signed=signed, shape=shape)
        assert back.dtype == codes.dtype and back.is_contiguous(), name
        assert torch.equal(back.cpu(), codes), name


def test_hand_worked_bytes(device):
    """-8 .. 7 at 4 bits: the first code in the low half; the last byte is filled up with 0."""
    codes = torch.tensor([[1, -1, 7], [-8, 0, -2]], dtype=torch.int8, device=device)
    assert mbq.pack_codes(codes, bits=4).tolist() == [[0xF1, 0x07], [0x08, 0x0E]]
    signs = torch.tensor([1, -1, -1, 1, 1, 1, 1, -1, 1], dtype=torch.int8, device=device)
    assert mbq.pack_codes(signs, bits=1).tolist() == [0b01111001, 0b00000001]


@WIDTHS
def test_bits_that_fill_up_a_row_are_not_looked_at(device, bits, signed):
    codes = oracles.random_codes((4, 9), bits, signed).to(device)
    packed = mbq.pack_codes(codes, bits=bits, signed=signed)
    used = 9 * bits % 8
    dirty = packed.clone()
    dirty[:, -1] |= 256 - 2**used
    assert not torch.equal(dirty, packed)
    assert torch.equal(mbq.unpack_codes(dirty, bits=bits, signed=signed, shape=(4, 9)), codes)


@pytest.mark.parametrize("bits, signed, code, field", [(1, True, 0, 1), (1, True, -5, 0), (2, True, 2, 1),
                                                       (4, True, -9, 8), (4, False, 16, 15), (1, False, 2, 1)])
@pytest.mark.parametrize("at", [0, 20002])
def test_a_code_out_of_range(device, backend, bits, signed, code, field, at):
    codes = oracles.random_codes((20003,), bits, signed)
    codes[at] = code
    if device == "cuda" or backend == "triton":
        packed = mbq.pack_codes(codes.to(device), bits=bits, signed=signed)
        assert packed[at * bits // 8].item() >> (at * bits % 8) & (2**bits - 1) == field
        return
    lo, hi = oracles.bounds(bits, signed)
    between = f"{lo} or {hi}" if lo == -hi else f"between {lo} and {hi}"
    with pytest.raises(RuntimeError, match=rf"^pack_codes: codes must be {between} at {bits} bits?, got {code}$"):
        mbq.pack_codes(codes, bits=bits, signed=signed)


CODES, PACKED = torch.ones(4, 9, dtype=torch.int8), torch.ones(4, 5, dtype=torch.uint8)
PACK_ERRORS = [
    ({"codes": torch.ones(3)}, TypeError, "codes must be torch.int8, got torch.float32"),
    ({"codes": CODES.byte()}, TypeError, "codes must be torch.int8, got torch.uint8"),
    ({"signed": False}, TypeError, "codes must be torch.uint8, got torch.int8"),
    ({"signed": "yes"}, TypeError, "signed must be True or False, got 'yes'"),
    ({"bits": 3}, ValueError, r"bits must be 1, 2 or 4 \(others as planes, see to_planes\), got 3"),
    ({"bits": 8}, ValueError, "bits must be 1, 2 or 4.*got 8"),
    ({"codes": torch.tensor(1, dtype=torch.int8)}, ValueError, "codes must have at least one dimension"),
]
UNPACK_ERRORS = [
    ({"packed": CODES}, TypeError, "packed must be torch.uint8, got torch.int8"),
    ({"shape": (4, 8)}, ValueError, r"packed must have shape \(4, 4\) for codes of shape \(4, 8\) at 4 bits, "
                                    r"got \(4, 5\)"),
    ({"shape": (5, 9)}, ValueError, r"packed must have shape \(5, 5\)"),
    ({"shape": (36,)}, ValueError, r"packed must have shape \(18,\)"),
    ({"shape": ()}, ValueError, "shape must have at least one dimension"),
    ({"shape": (4, -1)}, ValueError, r"shape must have at least one dimension and none below 0, got \(4, -1\)"),
    ({"shape": 9}, TypeError, "shape must be a sequence of integers, got 9"),
    ({"shape": (4, 9.0)}, TypeError, "shape must be a sequence of integers"),
    ({"bits": 6}, ValueError, "bits must be 1, 2 or 4"),
]


@pytest.mark.parametrize("changes, error, message", PACK_ERRORS, ids=[e[2][:40] for e in PACK_ERRORS])
def test_pack_errors(changes, error, message):
    with pytest.raises(error, match="^pack_codes: " + message):
        mbq.pack_codes(**{"codes": CODES, "bits": 4, **changes})


@pytest.mark.parametrize("changes, error, message", UNPACK_ERRORS, ids=[e[2][:40] for e in UNPACK_ERRORS])
def test_unpack_errors(changes, error, message):
    with pytest.raises(error, match="^unpack_codes: " + message):
        mbq.unpack_codes(**{"packed": PACKED, "bits": 4, "shape": (4, 9), **changes})
