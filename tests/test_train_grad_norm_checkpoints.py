"""GradNormScorer on networks that compute a part again in the backward."""

import copy

import pytest
import torch
from grad_norms import images, oracle
from networks import one_thread  # noqa: F401
from networks_of_samples import SAMPLES
from torch import nn
from torch.utils.checkpoint import checkpoint

from mbq_train import GradNormScorer


class Recomputed(nn.Module):
    """Checkpoints, one within another, and a layer that is called inside and outside of them."""

    def __init__(self, outer, inner, alike=False):
        super().__init__()
        self.outer, self.inner = outer, inner
        self.stem, self.shared, self.own, self.head = (nn.Linear(*size) for size in ((64, 8), (8, 8), (8, 8), (8, 3)))
        self.scale = nn.Parameter(torch.rand(8)) if alike else None

    def forward(self, x):
        x = self.stem(x.flatten(1)).tanh()
        x = checkpoint(lambda v: self.own(checkpoint(self.shared, v, use_reentrant=self.inner).tanh()), x,
                       use_reentrant=self.outer)
        return self.head(self.shared(x if self.scale is None else x * self.scale))


@pytest.mark.parametrize("outer", [False, True], ids=["non-reentrant", "reentrant"])
@pytest.mark.parametrize("inner", [False, True], ids=["of non-reentrant", "of reentrant"])
@pytest.mark.parametrize("alike", [False, True], ids=["own", "alike"])
def test_checkpoints_within_the_network(outer, inner, alike):
    torch.manual_seed(0)
    model, (x, y) = Recomputed(outer, inner, alike), images()
    plain = copy.deepcopy(model)
    plain.outer = plain.inner = False
    scorer, apply = GradNormScorer(model), torch.utils.checkpoint.CheckpointFunction.apply
    for _ in range(2):
        torch.testing.assert_close(scorer(x, y).total, oracle(plain, x, y), rtol=1e-5, atol=1e-7)
    assert torch.utils.checkpoint.CheckpointFunction.apply == apply


class Again(torch.autograd.Function):
    """A reentrant checkpoint that is not torch's."""

    @staticmethod
    def forward(ctx, run, x):
        ctx.run, ctx.x = run, x.detach()
        return run(x)

    @staticmethod
    def backward(ctx, grad):
        x = ctx.x.detach().requires_grad_()
        with torch.enable_grad():
            ctx.run(x).backward(grad)
        return None, x.grad


class RecomputedByHand(nn.Module):
    def __init__(self, alike):
        super().__init__()
        self.stem, self.inner, self.head = nn.Linear(64, 8), nn.Linear(8, 8), nn.Linear(8, 3)
        self.scale = nn.Parameter(torch.rand(8)) if alike else None
        self.again = True

    def forward(self, x):
        x = self.stem(x.flatten(1)).tanh()
        x = Again.apply(self.inner, x) if self.again else self.inner(x)
        return self.head(x if self.scale is None else x * self.scale)


def test_checkpoints_that_are_not_torchs():
    torch.manual_seed(0)
    model, (x, y) = RecomputedByHand(alike=False), images()
    plain = copy.deepcopy(model)
    plain.again = False
    for _ in range(2):
        torch.testing.assert_close(GradNormScorer(model)(x, y).total, oracle(plain, x, y), rtol=1e-5, atol=1e-7)
    with pytest.raises(RuntimeError, match="layers must not be called in the backward .*got inner in a .* and scale"):
        GradNormScorer(RecomputedByHand(alike=True))(x, y)


def test_inputs_keep_their_need_of_a_gradient():
    torch.manual_seed(0)
    model, (x, y) = Recomputed(True, True), images()
    model.stem, x = nn.Identity(), torch.randn(SAMPLES, 8, requires_grad=True)
    assert GradNormScorer(model)(x, y).layers.keys() == {"shared", "own", "head"} and x.grad is None
