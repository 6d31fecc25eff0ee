"""Ten thousand damaged files: success or StoreError, nothing else. Runs without torch."""

import random

import pytest
import stores

from mbq_store import StoreError


def mutated(data, rng):
    """The file with bytes changed, cut off, moved or repeated, or with its header's numbers and words changed."""
    data = bytearray(data)
    kind = rng.randrange(5)
    if kind == 0:
        for _ in range(rng.randint(1, 4)):
            data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    elif kind == 1:
        del data[rng.randrange(len(data)):]
    elif kind == 2:
        header = int.from_bytes(data[:8], "little")
        place = 8 + rng.randrange(header)
        data[place:place + 1] = rng.choice([b"", *(bytes([byte]) for byte in b'09-"{},e\\\0[.')])
        data[:8] = (header + rng.choice([-1, 0, 1])).to_bytes(8, "little")
    elif kind == 3:
        begin = rng.randrange(len(data))
        end = min(len(data), begin + rng.randrange(64))
        data[begin:begin] = data[begin:end]
    else:
        header, body = stores.split(bytes(data))
        values = [header[name] for name in header if name != "__metadata__"]
        chosen = rng.choice(values)
        field = rng.choice(["shape", "data_offsets"])
        chosen[field] = [rng.choice([0, 1, -1, 2**31, 2**63, value, value + 1, value - 1, None, 1.5, "1", [value]])
                         for value in chosen[field]]
        data = bytearray(stores.join(header, body))
    return bytes(data)


@pytest.mark.parametrize("rounding, layout", [("half_up", "planes"), ("half_even", "codes")])
def test_ten_thousand_mutated_files(tmp_path, rounding, layout):
    """Success or StoreError, nothing else: half of the ten thousand here, half in the other case."""
    stores.small_store(tmp_path / "good", rounding=rounding, layout=layout)
    good, rng, path = (tmp_path / "good").read_bytes(), random.Random(layout), tmp_path / "mutated"
    refused = 0
    for _ in range(5000):
        path.write_bytes(mutated(good, rng))
        try:
            stores.read_everything(path)
        except StoreError:
            refused += 1
    assert 2500 < refused < 4950  # the mutations are neither harmless nor all alike
