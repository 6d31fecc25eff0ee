"""round_clamp: codes and values against NumPy's, and the nesting of its bit-widths."""

import lsb_oracles
import oracles
import pytest
import torch

import mbq_kernels as mbq

shapes = pytest.mark.parametrize("shape, axis", lsb_oracles.SHAPES, ids=lambda v: str(v).replace(" ", ""))
dtypes = pytest.mark.parametrize("dtype", oracles.DTYPES, ids=str)
forms = pytest.mark.parametrize("form", lsb_oracles.FORMS)


@shapes
@dtypes
@pytest.mark.parametrize("bits", [8, 3, 1])
@forms
def test_values(device, shape, axis, dtype, bits, form):
    x, limit = lsb_oracles.make(shape, axis, dtype)
    wanted = lsb_oracles.values(x, limit, axis, bits, form)
    for name, given in oracles.layouts(x) if x.dim() and x.numel() else [("as it is", x)]:
        given = given.to(device)
        value = mbq.round_clamp(given, bits=bits, limit=limit.to(device), axis=axis, form=form)
        oracles.assert_same(value, wanted, name)
        assert value.stride() == torch.empty_like(given).stride(), name
    u = torch.rand(shape).to(dtype)
    oracles.assert_same(mbq.round_clamp(u.to(device), bits=bits, form=form),
                        lsb_oracles.values(u, None, None, bits, form))


def near_edges(bits, dtype):
    """0, 1, every bin edge and midpoint of `bits` and one ulp around each that lies in [0, 1]."""
    grid = (torch.arange(2 ** (bits + 1) + 1, dtype=torch.float64) / 2 ** (bits + 1)).to(dtype)
    u = torch.cat([grid, torch.nextafter(grid, grid + 1), torch.nextafter(grid, grid - 1)])
    return u[(u >= 0) & (u <= 1)]


def weights_near_edges(bits, dtype, limit, form):
    """Within +-limit: x at 0, both ends and every edge of its form, and one ulp of u around."""
    u = near_edges(bits, dtype).float()
    x = ((2 * u - 1 if form == "offset" else torch.cat([u, -u])) * limit).to(dtype)
    return x[x.float().abs() <= limit]


@dtypes
@pytest.mark.parametrize("bits", range(1, 9))
@forms
def test_ties_and_ends(device, dtype, bits, form):
    u = near_edges(bits, dtype)
    oracles.assert_same(mbq.round_clamp(u.to(device), bits=bits, form=form),
                        lsb_oracles.values(u, None, None, bits, form))
    for limit in torch.tensor([1.0, 3.0] + ([1e-40, 1e38, 3e38] if dtype == torch.float32 else [])):
        x = weights_near_edges(bits, dtype, limit, form)
        value = mbq.round_clamp(x.to(device), bits=bits, limit=limit.to(device), form=form)
        oracles.assert_same(value, lsb_oracles.values(x, limit, None, bits, form), f"limit {limit}")
        assert value.isfinite().all() and (limit < 1e-30 or (value.float().abs() <= limit * (1 + 2.0**-23)).all())


@forms
def test_values_are_symmetric_around_an_exact_zero(device, form):
    """In the offset form all except the lowest, as two's complement is: in [-limit, limit)."""
    limit = torch.tensor(0.7310585975646973, device=device)
    for bits in range(1, 9):
        x = torch.linspace(-1, 1, 8 * 2**bits + 1, device=device) * limit
        value = mbq.round_clamp(x, bits=bits, limit=limit, form=form).unique()
        top = 2**bits - 1
        if form == "offset":
            expected = torch.arange(-(2 ** (bits - 1)), 2 ** (bits - 1), device=device) * (limit / 2 ** (bits - 1))
        else:
            expected = torch.arange(-top, top + 1, device=device) * (limit / torch.full_like(limit, top))
        oracles.assert_same(value, expected)
        oracles.assert_same(mbq.round_clamp(x[[0, 4 * 2**bits]], bits=bits, limit=limit, form=form),
                            expected[[0, len(expected) // 2]])
        assert expected[len(expected) // 2] == 0


def test_one_bit(device):
    """Two values in the offset form, none beyond the limit; three in the other."""
    x = torch.tensor([-3.0, -1.5, -1.4, -0.8, -0.75, 0.0, 0.75, 0.8, 3.0], device=device)
    for form, wanted in (("offset", [-3, -3, 0, 0, 0, 0, 0, 0, 0]),
                         ("sign-magnitude", [-3, -3, -3, -3, 0, 0, 0, 3, 3])):
        value = mbq.round_clamp(x, bits=1, limit=torch.tensor(3.0, device=device), form=form)
        assert value.tolist() == wanted and not value[value == 0].signbit().any()


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
    fine = (mbq.round_clamp(u, bits=bits) * steps).long()
    coarse = (mbq.round_clamp(u, bits=bits - 1) * (steps // 2)).long()
    edges = u[1:][coarse.diff() != 0] * steps  # where the coarse code changes, in fine steps, to an eighth
    nearest_odd = (edges - 1).div(2).round() * 2 + 1  # centres of the odd fine bins
    assert edges.numel() == steps // 2 - 1
    assert ((edges - nearest_odd).abs() <= 1 / 8).all()
    inside = fine < steps - 1
    assert (coarse[inside & (fine % 2 == 0)] * 2 == fine[inside & (fine % 2 == 0)]).all()
    moved = coarse[inside & (fine % 2 == 1)] * 2 - fine[inside & (fine % 2 == 1)]
    assert set(moved.tolist()) <= {-1, 1} and (bits == 2 or set(moved.tolist()) == {-1, 1})


@pytest.mark.parametrize("bits, k", [(b, k) for b in range(2, 9) for k in (1, 2, 3) if k < b])
def test_losing_bits_that_no_weight_uses(device, bits, k):
    """Changes no value in the offset form, of a weight and of u itself; else codes / 2^k get the scale of bits - k."""
    limit = torch.tensor(0.7310585975646973, device=device)
    x = (2 * torch.rand(4099, device=device) - 1) * limit
    x[0] = -limit
    for form in lsb_oracles.FORMS:
        for given, given_limit in ((x, limit), (x.abs(), None)):
            options = {"limit": given_limit, "form": form}
            kept = given[mbq.extract_lsb(given, bits=bits, k=k, **options) == 0]
            fine, coarse = (mbq.round_clamp(kept, bits=b, **options) for b in (bits, bits - k))
            assert fine.unique().numel() >= min(2, 2 ** (bits - k) - 1)
            if form == "offset":
                oracles.assert_same(coarse, fine)
            else:
                one = torch.ones((), device=device) if given_limit is None else limit
                scales = [one / torch.full_like(one, 2**b - 1) for b in (bits, bits - k)]
                oracles.assert_same(coarse, (fine / scales[0]).round() / 2**k * scales[1])


@forms
def test_channels_last_and_float64(device, backend, form):
    x = torch.randn(2, 5, 4, 3, device=device).to(memory_format=torch.channels_last)
    limit = x.abs().amax((0, 2, 3))
    value = mbq.round_clamp(x, bits=4, limit=limit, axis=1, form=form)
    assert value.stride() == x.stride()
    oracles.assert_same(value, lsb_oracles.values(x, limit, 1, 4, form))
    if device == "cpu" and backend != "triton":
        x = x.double() * (1 - 2.0**-40)
        oracles.assert_same(mbq.round_clamp(x, bits=4, limit=limit, axis=1, form=form),
                            lsb_oracles.values(x, limit.double(), 1, 4, form))


@forms
def test_all_zero_layer(device, form):
    x = torch.zeros(70, 3, device=device, requires_grad=True)
    value = mbq.round_clamp(x, bits=4, limit=x.detach().abs().amax(), form=form)
    assert torch.equal(value, torch.zeros_like(x))
    assert torch.equal(torch.autograd.grad(value.sum(), x)[0], torch.ones_like(x))


@forms
def test_gradient_passes_and_nothing_is_saved(device, form):
    x, limit = lsb_oracles.make((4, 33), None)
    leaf, grad = x.to(device).requires_grad_(), torch.randn(4, 33, device=device)
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        value = mbq.round_clamp(leaf, bits=4, limit=limit.to(device).requires_grad_(), form=form)
    assert saved == []
    assert torch.equal(torch.autograd.grad(value, leaf, grad)[0], grad)


BAD_X = [({"x": torch.tensor([[0.5, 1.5]])}, r"x must lie within \[0, 1\], got 1.5 \(element 1\)"),
         ({"x": torch.tensor([[0.5, torch.nan]])}, r"x must lie within \[0, 1\], got nan \(element 1\)"),
         ({"x": torch.tensor([[0.5], [-1.5]]), "limit": torch.ones(1)},
          r"x must lie within \[-limit, limit\], got -1.5 \(element 1\)"),
         ({"x": torch.tensor([[0.5]]), "limit": torch.zeros(1)},
          r"x must lie within \[-limit, limit\], got 0.5 \(element 0\)"),
         ({"x": torch.tensor([[0.5], [-1.5]]), "limit": torch.ones(1), "form": "sign-magnitude"},
          r"x must lie within \[-limit, limit\], got -1.5 \(element 1\)"),
         ({"x": torch.tensor([[0.5, -0.25]]), "form": "sign-magnitude"},
          r"x must lie within \[0, 1\], got -0.25 \(element 1\)"),
         ({"limit": torch.tensor([-1.0])}, r"limit must be finite and >= 0, got -1 \(element 0\)"),
         ({"limit": torch.tensor([1.0, torch.inf]), "axis": 0, "x": torch.ones(2, 3)},
          r"limit must be finite and >= 0, got inf \(element 1\)")]
BAD_FORM = [({"form": form}, ValueError, f"form must be 'offset' or 'sign-magnitude', got {form!r}")
            for form in ("sign_magnitude", None)]
BAD_TYPES = [*BAD_FORM,
             ({"x": torch.ones(3, dtype=torch.int32)}, TypeError, "x must be float32.*got torch.int32"),
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
            assert value.flatten()[at] == (15 / 16 if bad > 1 else 0.0) and value.flatten()[at - 1] == 8 / 16
            continue
        with pytest.raises(RuntimeError, match=rf"^round_clamp: x must lie .* got {bad} \(element {at}\)"):
            mbq.round_clamp(given, bits=4)
        per_channel = (2 * given - 1, torch.tensor([1.0, 1.0, 1.0]), 1)
        with pytest.raises(RuntimeError, match=rf"^round_clamp: x must lie .* \(element {at}\)"):
            mbq.round_clamp(per_channel[0], bits=4, limit=per_channel[1], axis=1)
