"""round_clamp: codes and values against NumPy's, and the nesting of its bit-widths."""

import lsb_oracles
import oracles
import pytest
import torch

import mbq_kernels as mbq

shapes = pytest.mark.parametrize("shape, axis", lsb_oracles.SHAPES, ids=lambda v: str(v).replace(" ", ""))
dtypes = pytest.mark.parametrize("dtype", oracles.DTYPES, ids=str)


@shapes
@dtypes
@pytest.mark.parametrize("bits", [8, 3, 1])
def test_values(device, shape, axis, dtype, bits):
    x, limit = lsb_oracles.make(shape, axis, dtype)
    wanted = lsb_oracles.values(x, limit, axis, bits)
    for name, given in oracles.layouts(x) if x.dim() and x.numel() else [("as it is", x)]:
        given = given.to(device)
        value = mbq.round_clamp(given, bits=bits, limit=limit.to(device), axis=axis)
        oracles.assert_same(value, wanted, name)
        assert value.stride() == torch.empty_like(given).stride(), name
    u = torch.rand(shape).to(dtype)
    oracles.assert_same(mbq.round_clamp(u.to(device), bits=bits), lsb_oracles.values(u, None, None, bits))


def near_edges(bits, dtype):
    """0, 1, every bin edge and midpoint of `bits` and one ulp around each that lies in [0, 1]."""
    grid = (torch.arange(2 ** (bits + 1) + 1, dtype=torch.float64) / 2 ** (bits + 1)).to(dtype)
    u = torch.cat([grid, torch.nextafter(grid, grid + 1), torch.nextafter(grid, grid - 1)])
    return u[(u >= 0) & (u <= 1)]


@dtypes
@pytest.mark.parametrize("bits", range(1, 9))
def test_ties_and_ends(device, dtype, bits):
    u = near_edges(bits, dtype)
    oracles.assert_same(mbq.round_clamp(u.to(device), bits=bits), lsb_oracles.values(u, None, None, bits))
    for limit in torch.tensor([1.0, 3.0] + ([1e-40, 2e38] if dtype == torch.float32 else [])):
        x = ((2 * u.float() - 1) * limit).to(dtype)
        x = x[x.float().abs() <= limit]
        wanted = lsb_oracles.values(x, limit, None, bits)
        oracles.assert_same(mbq.round_clamp(x.to(device), bits=bits, limit=limit.to(device)), wanted, f"limit {limit}")


def test_values_are_symmetric_around_an_exact_zero(device):
    """But for the lowest, as two's complement is."""
    limit = torch.tensor(0.7310585975646973, device=device)
    for bits in range(1, 9):
        u = (torch.arange(2**bits, device=device) + 0.25) / 2**bits
        value = mbq.round_clamp((2 * u - 1) * limit, bits=bits, limit=limit)
        middle = 2 ** (bits - 1)
        assert value[middle] == 0 and value.unique().numel() == 2**bits
        oracles.assert_same(value[1:middle], -value[middle + 1:].flip(0))
        ends = torch.tensor([-(2.0**bits), 2.0**bits - 2], device=device) / torch.tensor(2.0**bits - 1, device=device)
        oracles.assert_same(value[[0, -1]], limit * ends)


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_small_weights_have_no_common_sign(device, bits):
    """As many values above zero as below, though most weights of a layer lie in the bin around it."""
    x = torch.randn(20000, generator=torch.Generator().manual_seed(0)).to(device)
    x = torch.cat([x, -x])
    sign = mbq.round_clamp(x, bits=bits, limit=x.abs().amax()).sign()
    assert sign.sum() == 0 and sign.unique().tolist() == [-1, 0, 1]


@pytest.mark.parametrize("bits", range(2, 9))
def test_edges_of_a_bit_less_are_midpoints_of_odd_bins(device, bits):
    """So that an odd code can go up or down when the bit is lost, and an even one stays."""
    steps = 2**bits
    u = torch.arange(0, 8 * steps + 1, device=device) / (8 * steps)  # eighths of a bin
    fine = (mbq.round_clamp(u, bits=bits) * (steps - 1)).round().long()
    coarse = (mbq.round_clamp(u, bits=bits - 1) * (steps // 2 - 1)).round().long()
    edges = u[1:][coarse.diff() != 0] * steps  # where the coarse code changes, in fine steps, to an eighth
    nearest_odd = (edges - 1).div(2).round() * 2 + 1  # centres of the odd fine bins
    assert edges.numel() == steps // 2 - 1
    assert ((edges - nearest_odd).abs() <= 1 / 8).all()
    inside = fine < steps - 1
    assert (coarse[inside & (fine % 2 == 0)] * 2 == fine[inside & (fine % 2 == 0)]).all()
    moved = coarse[inside & (fine % 2 == 1)] * 2 - fine[inside & (fine % 2 == 1)]
    assert set(moved.tolist()) <= {-1, 1} and (bits == 2 or set(moved.tolist()) == {-1, 1})


@pytest.mark.parametrize("bits", range(2, 9))
def test_losing_a_bit_rescales_unchanged_codes_and_nothing_else(device, bits):
    u = torch.rand(4099, device=device)
    kept = mbq.extract_lsb(u, bits=bits) == 0
    assert kept.any()
    fine, coarse = (mbq.round_clamp(u[kept], bits=b) for b in (bits, bits - 1))
    code = (fine * (2**bits - 1)).round()
    assert torch.equal(code % 2, torch.zeros_like(code))
    top = torch.tensor(2.0 ** (bits - 1) - 1, device=device)  # by a number, CUDA multiplies with 1 / number
    oracles.assert_same(coarse, code / 2 / top)


def test_channels_last_and_float64(device, backend):
    x = torch.randn(2, 5, 4, 3, device=device).to(memory_format=torch.channels_last)
    limit = x.abs().amax((0, 2, 3))
    value = mbq.round_clamp(x, bits=4, limit=limit, axis=1)
    assert value.stride() == x.stride()
    oracles.assert_same(value, lsb_oracles.values(x, limit, 1, 4))
    if device == "cpu" and backend != "triton":
        x = x.double() * (1 - 2.0**-40)
        oracles.assert_same(mbq.round_clamp(x, bits=4, limit=limit, axis=1),
                            lsb_oracles.values(x, limit.double(), 1, 4))


def test_all_zero_layer(device):
    x = torch.zeros(70, 3, device=device, requires_grad=True)
    value = mbq.round_clamp(x, bits=4, limit=x.detach().abs().amax())
    assert torch.equal(value, torch.zeros_like(x))
    assert torch.equal(torch.autograd.grad(value.sum(), x)[0], torch.ones_like(x))


def test_gradient_passes_and_nothing_is_saved(device):
    x, limit = lsb_oracles.make((4, 33), None)
    leaf, grad = x.to(device).requires_grad_(), torch.randn(4, 33, device=device)
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        value = mbq.round_clamp(leaf, bits=4, limit=limit.to(device).requires_grad_())
    assert saved == []
    assert torch.equal(torch.autograd.grad(value, leaf, grad)[0], grad)


BAD_X = [({"x": torch.tensor([[0.5, 1.5]])}, r"x must lie within \[0, 1\], got 1.5 \(element 1\)"),
         ({"x": torch.tensor([[0.5, torch.nan]])}, r"x must lie within \[0, 1\], got nan \(element 1\)"),
         ({"x": torch.tensor([[0.5], [-1.5]]), "limit": torch.ones(1)},
          r"x must lie within \[-limit, limit\], got -1.5 \(element 1\)"),
         ({"x": torch.tensor([[0.5]]), "limit": torch.zeros(1)},
          r"x must lie within \[-limit, limit\], got 0.5 \(element 0\)"),
         ({"limit": torch.tensor([-1.0])}, r"limit must be finite and >= 0, got -1 \(element 0\)"),
         ({"limit": torch.tensor([1.0, torch.inf]), "axis": 0, "x": torch.ones(2, 3)},
          r"limit must be finite and >= 0, got inf \(element 1\)")]
BAD_TYPES = [({"x": torch.ones(3, dtype=torch.int32)}, TypeError, "x must be float32.*got torch.int32"),
             ({"limit": torch.ones(2)}, ValueError, "limit must have 1 element without axis, got 2"),
             ({"limit": 1.0}, TypeError, "limit must be a tensor, got float"),
             ({"limit": torch.ones(4), "axis": 0}, ValueError, "limit must have 1 or 1 elements"),
             ({"axis": 2}, ValueError, r"axis must be in \[-2, 2\)"),
             ({"bits": 9}, ValueError, "bits must be between 1 and 8, got 9"),
             ({"bits": None}, TypeError, "bits must be an integer, got None")]


@pytest.mark.parametrize("changes, error, message", [(c, RuntimeError, m) for c, m in BAD_X] + BAD_TYPES,
                         ids=lambda value: value[:40] if isinstance(value, str) else "")
@pytest.mark.parametrize("name", ["cpu", "reference"])
def test_errors(name, changes, error, message):
    with mbq.use_backend(name), pytest.raises(error, match="^round_clamp: " + message):
        mbq.round_clamp(**{"x": torch.ones(1, 3), "bits": 4, **changes})


@pytest.mark.parametrize("at", [0, 1500, 2999])
@pytest.mark.parametrize("bad", [1.25, -0.25, torch.nan])
def test_values_outside(device, backend, at, bad):
    """Name the element of x, whatever its place in memory, on the CPU; are clamped, NaN to 0, on CUDA and by Triton."""
    x = torch.full((1000, 3), 0.5)
    x.view(-1)[at] = bad
    for given in (x, x.t().contiguous().t()):
        if device == "cuda" or backend == "triton":
            value = mbq.round_clamp(given.to(device), bits=4)
            assert value.flatten()[at] == (1.0 if bad > 1 else 0.0) and value.flatten()[at - 1] == 8 / 15
            continue
        with pytest.raises(RuntimeError, match=rf"^round_clamp: x must lie .* got {bad} \(element {at}\)"):
            mbq.round_clamp(given, bits=4)
        per_channel = (2 * given - 1, torch.tensor([1.0, 1.0, 1.0]), 1)
        with pytest.raises(RuntimeError, match=rf"^round_clamp: x must lie .* \(element {at}\)"):
            mbq.round_clamp(per_channel[0], bits=4, limit=per_channel[1], axis=1)
