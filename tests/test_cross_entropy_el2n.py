"""cross_entropy_el2n against 120 digits and against PyTorch's cross_entropy: loss, norm, gradient, smoothing."""

import logits_oracle as oracle
import oracles
import pytest
import torch
import torch.nn.functional as F

import mbq_kernels as mbq

dtypes = pytest.mark.parametrize("dtype", oracles.DTYPES, ids=str)
smoothings = pytest.mark.parametrize("smoothing", [0.0, 0.1, 1.0])


def make(rows, classes, spread, dtype, device):
    logits = ((torch.rand(rows, classes) * 2 - 1) * spread).to(device, dtype)
    targets = torch.randint(classes, (rows,)).to(device)
    targets[1] = -100
    return logits.requires_grad_(), targets


@dtypes
@smoothings
@pytest.mark.parametrize("classes, spread", [(1, 1.0), (2, 80.0), (10, 1.0), (10, 80.0), (257, 8.0), (1031, 1.0)])
def test_loss_norm_and_gradient(device, dtype, smoothing, classes, spread):
    logits, targets = make(5, classes, spread, dtype, device)
    loss, norms = mbq.cross_entropy_el2n(logits, targets, label_smoothing=smoothing)
    assert loss.dtype == norms.dtype == torch.float32 and not norms.requires_grad
    want_loss, want_norms, gaps = oracle.rows(logits, targets, smoothing=smoothing)
    oracle.close(loss, want_loss)
    oracle.close(norms, want_norms, absolute=1e-37 if smoothing == 0 else 1e-7 * smoothing)
    grad = torch.randn(5, device=device)
    (actual,) = torch.autograd.grad(loss, logits, grad)
    assert actual.dtype == dtype and actual.shape == logits.shape
    expected = gaps * grad.cpu().double().unsqueeze(1)
    rounding = torch.finfo(dtype).eps * expected.abs() + torch.finfo(dtype).smallest_normal
    rounding = rounding + 4e-6 * expected.abs() + 1e-7 * smoothing * grad.abs().max().cpu()
    oracles.assert_within(actual, expected, rounding, "grad logits")


@smoothings
def test_equals_the_composed_loss(device, smoothing):
    logits, targets = make(64, 100, 5.0, torch.float32, device)
    loss, norms = mbq.cross_entropy_el2n(logits, targets, label_smoothing=smoothing)
    composed = F.cross_entropy(logits, targets, reduction="none", label_smoothing=smoothing)
    torch.testing.assert_close(loss, composed)
    (grad,) = torch.autograd.grad(loss.sum(), logits)
    torch.testing.assert_close(grad, torch.autograd.grad(composed.sum(), logits)[0])
    torch.testing.assert_close(norms, grad.norm(dim=1))  # the gradient's norm, which is what el2n means


def test_norms_are_those_of_el2n(device):
    logits, targets = make(9, 301, 20.0, torch.float32, device)
    assert torch.equal(mbq.cross_entropy_el2n(logits, targets)[1], mbq.el2n(logits, targets))


def test_confident_rows_keep_their_digits(device):
    logits = torch.randn(4, 7)
    targets = torch.tensor([0, 3, 6, 2])
    logits[torch.arange(4), targets] += torch.tensor([20.0, 40.0, 60.0, 80.0])
    leaf = logits.to(device).requires_grad_()
    loss, norms = mbq.cross_entropy_el2n(leaf, targets.to(device))
    want_loss, want_norms, gaps = oracle.rows(logits, targets)
    oracle.close(loss, want_loss)
    oracle.close(norms, want_norms)
    oracle.close(torch.autograd.grad(loss.sum(), leaf)[0], gaps)


def test_gradcheck():
    logits, targets = make(4, 6, 3.0, torch.float64, "cpu")
    for smoothing in (0.0, 0.2):
        assert torch.autograd.gradcheck(
            lambda x, s=smoothing: mbq.cross_entropy_el2n(x, targets, label_smoothing=s)[0], logits)


def test_ignored_rows_have_no_gradient_whatever_they_hold(device):
    logits = torch.tensor([[torch.nan, 1.0], [torch.inf, 0.0], [0.0, 1.0]], device=device).requires_grad_()
    loss, norms = mbq.cross_entropy_el2n(logits, torch.tensor([5, 5, 0], device=device), ignore_index=5)
    assert loss[:2].tolist() == norms[:2].tolist() == [0, 0]
    (grad,) = torch.autograd.grad(loss.sum(), logits)
    assert grad[:2].tolist() == [[0, 0], [0, 0]] and grad[2].isfinite().all()


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("at", [0, 5])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_nan_and_infinity_stay_in_their_row(device, value, at, smoothing):
    logits, targets = make(4, 6, 3.0, torch.float32, device)
    targets[2] = 5
    with torch.no_grad():
        logits[2, at] = value
    loss, norms = mbq.cross_entropy_el2n(logits, targets, label_smoothing=smoothing)
    assert loss.isnan().tolist() == norms.isnan().tolist() == [False, False, True, False]
    (grad,) = torch.autograd.grad(loss.sum(), logits)
    assert grad.isnan().all(1).tolist() == [False, False, True, False]


def test_classes_of_probability_zero(device):
    logits = torch.tensor([[1.0, -torch.inf, 2.0], [-torch.inf, 0.0, -torch.inf]], device=device).requires_grad_()
    targets = torch.tensor([2, 1], device=device)
    loss, _ = mbq.cross_entropy_el2n(logits, targets)
    torch.testing.assert_close(loss, F.cross_entropy(logits, targets, reduction="none"))
    (grad,) = torch.autograd.grad(loss.sum(), logits)
    assert grad[0, 1] == 0 and grad[1].tolist() == [0, 0, 0]


def test_targets_out_of_range(device, backend):
    logits, targets = make(4, 10, 1.0, torch.float32, device)
    targets[3] = 10
    if device == "cuda" or backend == "triton":
        loss, norms = mbq.cross_entropy_el2n(logits, targets)
        (grad,) = torch.autograd.grad(loss.sum(), logits)
        assert (loss[3].isnan() & norms[3].isnan() & grad[3].isnan().all()).item() and loss[:3].isfinite().all()
        return
    with pytest.raises(RuntimeError, match=r"^cross_entropy_el2n: targets must be in \[0, 10\) or ignore_index -100, "
                                           r"got 10 \(row 3\)$"):
        mbq.cross_entropy_el2n(logits, targets)


def test_any_leading_shape_and_strides(device):
    logits = torch.randn(3, 4, 10, device=device)
    targets = torch.randint(10, (3, 4), device=device)
    expected = mbq.cross_entropy_el2n(logits, targets)
    grad = torch.randn(4, 3, device=device).t()  # of other strides than the loss
    want = torch.autograd.grad(mbq.cross_entropy_el2n(leaf := logits.clone().requires_grad_(), targets)[0], leaf, grad)
    for _, layout in oracles.layouts(logits):
        leaf = layout.detach().requires_grad_()
        actual = mbq.cross_entropy_el2n(leaf, targets.int())
        assert oracle.same_rows(actual[0], expected[0]) and oracle.same_rows(actual[1], expected[1])
        assert oracle.same_rows(torch.autograd.grad(actual[0], leaf, grad)[0], want[0])
    empty = logits[:0].requires_grad_()
    assert torch.autograd.grad(mbq.cross_entropy_el2n(empty, targets[:0])[0].sum(), empty)[0].shape == (0, 4, 10)


def test_saves_the_logits_and_two_numbers_a_row():
    logits, targets = make(64, 100, 1.0, torch.float32, "cpu")
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        mbq.cross_entropy_el2n(logits, targets)
    assert [t.data_ptr() for t in saved if t.shape == logits.shape] == [logits.data_ptr()]
    assert sorted(t.numel() for t in saved if t.shape != logits.shape) == [64, 128]


X, T = torch.randn(3, 4), torch.tensor([0, 1, 2])


@pytest.mark.parametrize("options, error, message", [
    ({"label_smoothing": 1.5}, ValueError, "label_smoothing must be between 0 and 1, got 1.5"),
    ({"label_smoothing": float("nan")}, ValueError, "label_smoothing must be between 0 and 1, got nan"),
    ({"label_smoothing": "no"}, TypeError, "label_smoothing must be a number, got 'no'"),
    ({"ignore_index": None}, TypeError, "ignore_index must be an integer, got None"),
    ({"targets": T[:2]}, ValueError, r"targets must have the shape of logits without the classes, \(3,\), got \(2,\)"),
    ({"logits": X.long()}, TypeError, "logits must be float32, bfloat16, float16 or float64, got torch.int64"),
], ids=lambda value: None if not isinstance(value, str) else value[:30])
def test_errors(options, error, message):
    given = {"logits": X, "targets": T, **options}
    with pytest.raises(error, match=f"^cross_entropy_el2n: {message}$"):
        mbq.cross_entropy_el2n(given.pop("logits"), given.pop("targets"), **given)
