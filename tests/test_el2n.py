"""el2n against 120 digits: every backend, confident rows, ties, classes from 1 to 10^5, bad targets."""

import functools

import logits_oracle as oracle
import oracles
import pytest
import torch

import mbq_kernels as mbq

dtypes = pytest.mark.parametrize("dtype", oracles.DTYPES, ids=str)


def make(rows, classes, spread, dtype, device):
    logits = ((torch.rand(rows, classes) * 2 - 1) * spread).to(device, dtype)
    return logits, torch.randint(classes, (rows,)).to(device)


@dtypes
@pytest.mark.parametrize("classes", [1, 2, 3, 10, 257, 1031])
@pytest.mark.parametrize("spread", [1.0, 80.0])
def test_norms(device, dtype, classes, spread):
    logits, targets = make(5, classes, spread, dtype, device)
    targets[1] = -100
    actual = mbq.el2n(logits, targets)
    assert actual.dtype == torch.float32 and actual.shape == (5,)
    oracle.close(actual, oracle.rows(logits, targets)[1])


@pytest.mark.parametrize("margin", [0.0, 1e-3, 1.0, 17.0, 40.0, 80.0])
def test_confident_rows_keep_their_digits(device, margin):
    """1 + sum p^2 - 2 p_t is 0 in float32 from a margin of 9 on."""
    logits = torch.randn(3, 6)
    targets = torch.tensor([0, 3, 5])
    logits[torch.arange(3), targets] = logits.amax(1) + margin
    oracle.close(mbq.el2n(logits.to(device), targets.to(device)), oracle.rows(logits, targets)[1])


@functools.cache
def many_classes():
    """(logits, targets, what they give): the oracle takes its time"""
    logits, targets = torch.randn(2, 100_003), torch.tensor([7, 100_002])
    logits[1, 100_002] = 60.0
    return logits, targets, oracle.rows(logits, targets)[1]


def test_many_classes(device):
    logits, targets, expected = many_classes()
    oracle.close(mbq.el2n(logits.to(device), targets.to(device)), expected)


def test_ties_and_equal_logits(device):
    logits = torch.full((4, 50), 3.0, device=device)
    oracle.close(mbq.el2n(logits, torch.tensor([0, 1, 48, 49], device=device)),
                 torch.full((4,), (49 / 50**2 + (49 / 50) ** 2) ** 0.5, dtype=torch.float64))


def test_classes_of_probability_zero(device):
    logits = torch.tensor([[1.0, -torch.inf, 2.0, 0.5], [-torch.inf, 0.0, -torch.inf, -torch.inf],
                           [0.0, -torch.inf, 1.0, 2.0]], device=device)
    targets = torch.tensor([2, 1, 1], device=device)
    onehot = torch.nn.functional.one_hot(targets, 4)
    oracle.close(mbq.el2n(logits, targets), (logits.double().softmax(1) - onehot).norm(dim=1).cpu())


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("at", [0, 3, 11])
def test_nan_and_infinity_make_their_row_nan(device, at, value):
    logits, targets = make(3, 12, 1.0, torch.float32, device)
    logits[1, at] = value
    targets[1] = 3
    assert mbq.el2n(logits, targets).isnan().tolist() == [False, True, False]


def test_float64(device, backend):
    if backend in ("cuda", "triton"):
        pytest.skip("float64 is for the CPU")
    logits, targets = make(5, 33, 80.0, torch.float64, device)
    oracle.close(mbq.el2n(logits, targets), oracle.rows(logits, targets)[1], relative=1e-12)


def test_any_leading_shape_any_strides_and_integers(device):
    logits, targets = torch.randn(4, 6, 10, device=device), torch.randint(10, (4, 6), device=device)
    expected = mbq.el2n(logits.reshape(24, 10), targets.reshape(24)).reshape(4, 6)
    assert torch.equal(mbq.el2n(logits, targets.int()), expected)
    assert oracle.same_rows(mbq.el2n(logits.transpose(0, 1), targets.transpose(0, 1)), expected.t())
    for _, layout in oracles.layouts(logits):
        assert oracle.same_rows(mbq.el2n(layout, targets), expected)
    assert oracle.same_rows(mbq.el2n(logits[0, 0], targets[0, 0]), expected[0, 0])
    assert mbq.el2n(logits[:0], targets[:0]).shape == (0, 6)


def test_ignored_rows_whatever_they_hold(device):
    logits = torch.full((2, 5), torch.nan, device=device)
    assert mbq.el2n(logits, torch.tensor([-100, -100], device=device)).tolist() == [0, 0]
    assert mbq.el2n(logits, torch.tensor([7, 7], device=device), ignore_index=7).tolist() == [0, 0]


@pytest.mark.parametrize("bad", [-1, 10, 2**40])
def test_targets_out_of_range(device, backend, bad):
    logits, targets = make(4, 10, 1.0, torch.float32, device)
    targets[2] = bad
    if device == "cuda" or backend == "triton":
        assert mbq.el2n(logits, targets).isnan().tolist() == [False, False, True, False]
        return
    with pytest.raises(RuntimeError, match=rf"^el2n: targets must be in \[0, 10\) or ignore_index -100, got {bad} "
                                           r"\(row 2\)$"):
        mbq.el2n(logits, targets)


X, T = torch.randn(3, 4), torch.tensor([0, 1, 2])
ERRORS = [
    ((X.int(), T), TypeError, "logits must be float32, bfloat16, float16 or float64, got torch.int32"),
    ((X, T.float()), TypeError, "targets must be int64 or int32, got torch.float32"),
    ((X, [0, 1, 2]), TypeError, "targets must be a tensor, got list"),
    ((X, T[:2]), ValueError, r"targets must have the shape of logits without the classes, \(3,\), got \(2,\)"),
    ((X[:, :0], T), ValueError, r"logits must be \(..., C\) with at least one class, got shape \(3, 0\)"),
    ((X[0, 0], T), ValueError, r"logits must be \(..., C\) with at least one class, got shape \(\)"),
    ((X, T.to("meta")), ValueError, "targets must be on logits' device cpu, got meta"),
]


@pytest.mark.parametrize("arguments, error, message", ERRORS, ids=[row[2][:40] for row in ERRORS])
def test_errors(arguments, error, message):
    with pytest.raises(error, match=f"^el2n: {message}$"):
        mbq.el2n(*arguments)


def test_ignore_index_must_be_an_integer():
    with pytest.raises(TypeError, match="^el2n: ignore_index must be an integer, got 1.5$"):
        mbq.el2n(X, T, ignore_index=1.5)


def test_no_gradient():
    assert not mbq.el2n(X.clone().requires_grad_(), T).requires_grad
