"""accelerate on Brevitas' statistics: extremes and percentiles and their gradients, bit for bit."""

import copy
import os
import warnings

import pytest
import torch

from mbq_train import accelerate
from mbq_train.drop_in.brevitas_statistics import _Extreme

warnings.filterwarnings("ignore")
pytest.importorskip("brevitas")
if os.environ.get("BREVITAS_JIT") == "1":
    pytest.skip("modules are scripted", allow_module_level=True)
from brevitas.core.stats import stats_op  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore")
EXTREMES = {"size": lambda x, *dim: torch.max(x.abs(), *dim), "highest": torch.max, "lowest": torch.min}


@pytest.mark.parametrize("rows", [0, 1, 5], ids=["tensor", "one-row", "rows"])
@pytest.mark.parametrize("which", EXTREMES)
def test_gradients_of_extremes(which, rows):
    for trial in range(30):
        x = torch.randn(max(rows, 1), 300)
        x = x.mul(2).round() if trial % 2 else x  # ties
        leaves = x.clone().requires_grad_(), x.clone().requires_grad_()
        theirs = EXTREMES[which](leaves[0], 1)[0] if rows else EXTREMES[which](leaves[0]).reshape(1)
        ours = _Extreme.apply(leaves[1], which, rows > 0).reshape(-1)
        grad = torch.randn(max(rows, 1))
        theirs.backward(grad), ours.backward(grad)
        assert torch.equal(theirs, ours) and torch.equal(leaves[0].grad, leaves[1].grad)


@pytest.mark.parametrize("ties", [False, True], ids=["apart", "ties"])
@pytest.mark.parametrize("name, percents", [
    ("AbsPercentile", (99.9, None)), ("NegativePercentileOrZero", (0.1,)), ("PercentileInterval", (0.1, 99.9))])
def test_percentiles(name, percents, ties):
    original = getattr(stats_op, name)(*percents)
    ours = copy.deepcopy(original)
    accelerate(ours)
    x = torch.randn(200, 100)
    x = x.mul(3).round() if ties else x
    leaves = x.clone().requires_grad_(), x.clone().requires_grad_()
    results = [module(leaf) for module, leaf in zip((original, ours), leaves, strict=True)]
    for result in results:
        result.backward(torch.tensor(0.7))
    assert torch.equal(*results) and torch.equal(leaves[0].grad, leaves[1].grad) and leaves[0].grad.any()
