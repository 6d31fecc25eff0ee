"""sample_grad_norm_embedding against autograd, one sample at a time in float64; repeated indices above all."""

import oracles
import pytest
import torch

import mbq_kernels as mbq

dtypes = pytest.mark.parametrize("dtype", oracles.DTYPES, ids=str)


def oracle(indices, grads, padding_idx=None, rows=50):
    """Squared norms of the weight's gradient of every sample, by autograd."""
    weight = torch.randn(rows, grads.shape[-1], dtype=torch.float64).requires_grad_()
    norms = []
    for index, grad in zip(indices.cpu(), grads.cpu().double(), strict=True):
        found = torch.nn.functional.embedding(index, weight, padding_idx=padding_idx)
        norms.append(torch.autograd.grad(found, weight, grad)[0].square().sum())
    return torch.stack(norms) if norms else torch.zeros(0, dtype=torch.float64)


def make(shape, width, dtype, device, rows=50):
    return torch.randint(rows, shape).to(device), torch.randn(*shape, width).to(device, dtype)


@dtypes
@pytest.mark.parametrize("shape, width", [((1,), 1), ((5,), 7), ((3, 1), 5), ((4, 17), 33), ((2, 3, 5), 8),
                                          ((2, 200), 130)], ids=str)
@pytest.mark.parametrize("rows", [1, 3, 50])
def test_norms(device, dtype, shape, width, rows):
    indices, grads = make(shape, width, dtype, device, rows)
    actual = mbq.sample_grad_norm_embedding(indices, grads)
    assert actual.dtype == torch.float32 and actual.shape == shape[:1]
    oracles.assert_within(actual, want := oracle(indices, grads), 1e-6 * want, "norms")
    assert torch.equal(mbq.sample_grad_norm_embedding(indices.int(), grads), actual)


def test_more_samples_than_a_grid_has_rows(device, backend):
    if (device, backend) == ("cpu", "triton"):
        pytest.skip("takes minutes in Triton's interpreter")
    grads = torch.randn(70_000, 1, 2, device=device)
    indices = torch.zeros(70_000, 1, dtype=torch.int64, device=device)
    want = grads.double().square().sum((1, 2)).cpu()
    oracles.assert_within(mbq.sample_grad_norm_embedding(indices, grads), want, 1e-6 * want, "norms")


def test_repeated_indices_add_up_before_they_are_squared(device):
    grads = torch.tensor([[[1.0], [1.0], [1.0]], [[1.0], [-1.0], [2.0]]], device=device)
    indices = torch.tensor([[4, 4, 9], [7, 7, 7]], device=device)
    assert mbq.sample_grad_norm_embedding(indices, grads).tolist() == [5.0, 4.0]  # 2^2 + 1^2, (1 - 1 + 2)^2


def test_gradients_that_cancel(device):
    """A sum near zero of terms a million times larger keeps its digits."""
    grads = torch.tensor([[[1e6], [1e-1], [-1e6]]], device=device)
    actual = mbq.sample_grad_norm_embedding(torch.zeros(1, 3, dtype=torch.int64, device=device), grads)
    torch.testing.assert_close(actual.cpu(), torch.tensor([0.01]), rtol=1e-5, atol=0)


@pytest.mark.parametrize("padding_idx", [0, 2, -1])
def test_padding(device, padding_idx):
    indices, grads = make((4, 30), 9, torch.float32, device, rows=5)
    grads[indices == padding_idx] = torch.nan  # whatever stands there
    want = oracle(indices, grads.nan_to_num(), padding_idx if padding_idx >= 0 else None, rows=5)
    actual = mbq.sample_grad_norm_embedding(indices, grads, padding_idx=padding_idx)
    oracles.assert_within(actual, want, 1e-6 * want, "norms")


def test_layouts_and_empty(device):
    indices, grads = make((4, 6, 5), 8, torch.float32, device, rows=4)
    expected = mbq.sample_grad_norm_embedding(indices, grads)
    for _, layout in oracles.layouts(grads):
        assert torch.equal(mbq.sample_grad_norm_embedding(indices, layout), expected)
    turned = mbq.sample_grad_norm_embedding(indices.transpose(1, 2), grads.transpose(1, 2))
    torch.testing.assert_close(turned, expected)
    assert mbq.sample_grad_norm_embedding(indices[:0], grads[:0]).shape == (0,)
    assert mbq.sample_grad_norm_embedding(indices[:, :0], grads[:, :0]).tolist() == [0] * 4
    assert mbq.sample_grad_norm_embedding(indices, grads[..., :0]).tolist() == [0] * 4


def test_what_is_not_finite_is_seen(device):
    indices, grads = make((3, 6), 4, torch.float32, device)
    grads[1, 2, 3] = torch.nan
    grads[2, 0, 0] = torch.inf
    norms = mbq.sample_grad_norm_embedding(indices, grads)
    assert norms.isnan().tolist() == [False, True, False] and norms.isinf().tolist() == [False, False, True]


def test_float64():
    indices, grads = make((3, 9), 4, torch.float64, "cpu", rows=3)
    want = oracle(indices, grads)
    torch.testing.assert_close(mbq.sample_grad_norm_embedding(indices, grads), want, rtol=1e-12, atol=0)


def test_extra_memory_is_bounded():
    """Neither T x T nor a gradient per sample: less than what was given."""
    indices, grads = make((64, 512), 64, torch.float32, "cpu")
    with torch.profiler.profile(profile_memory=True) as seen:
        mbq.sample_grad_norm_embedding(indices, grads)
    largest = max(event.cpu_memory_usage for event in seen.events())
    assert largest <= 12 * 2**20 < grads.nbytes * 2


INDICES, GRADS = torch.zeros(2, 3, dtype=torch.int64), torch.randn(2, 3, 4)
ERRORS = [
    ((INDICES, GRADS[:1]), {}, ValueError,
     r"grad_outputs must be \(N, ..., D\) for indices \(N, ...\), got \(1, 3, 4\) for \(2, 3\)"),
    ((INDICES.float(), GRADS), {}, TypeError, "indices must be int64 or int32, got torch.float32"),
    ((INDICES, GRADS.int()), {}, TypeError,
     "grad_outputs must be float32, bfloat16, float16 or float64, got torch.int32"),
    ((INDICES, GRADS), {"padding_idx": 1.0}, TypeError, "padding_idx must be an integer or None, got 1.0"),
    ((INDICES.to("meta"), GRADS), {}, ValueError, "indices must be on grad_outputs' device cpu, got meta"),
    ((INDICES[0, 0], GRADS[0, 0]), {}, ValueError,
     r"grad_outputs must be \(N, ..., D\) for indices \(N, ...\), got \(4,\) for \(\)"),
]


@pytest.mark.parametrize("arguments, options, error, message", ERRORS, ids=[row[3][:30] for row in ERRORS])
def test_errors(arguments, options, error, message):
    with pytest.raises(error, match=f"^sample_grad_norm_embedding: {message}$"):
        mbq.sample_grad_norm_embedding(*arguments, **options)
