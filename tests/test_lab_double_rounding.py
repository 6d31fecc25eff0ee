"""Double rounding in runs: the command, its estimate of memory, and the eager rival."""

import json

import eager_quantizers as eager
import pytest
import torch
from networks import one_thread  # noqa: F401
from quantization_time import quantization_time
from test_train_double_rounding import BITS, converted
from typer.testing import CliRunner

import mbq_kernels
from mbq_lab import Options
from mbq_lab.command.app import app
from mbq_lab.runs.memory_estimate import estimate_memory
from mbq_train import WeightBank


@pytest.mark.parametrize("rounding", ["half_even", "half_up"])
@pytest.mark.parametrize("bits, scale_chain", [(8, False), (5, True), (4, False), (2, True)])
def test_the_eager_rival_computes_the_same(bits, rounding, scale_chain):
    weight = torch.randn(6, 5, 3, 3, generator=torch.Generator().manual_seed(0)) * 0.1 + 0.02
    results = []
    for function in (mbq_kernels.double_round, eager.double_round):
        leaves = [weight.clone().requires_grad_(), torch.full((6,), 0.003).requires_grad_()]
        out = function(*leaves, bits=bits, axis=0, rounding=rounding, scale_chain=scale_chain)
        results.append((out, *torch.autograd.grad(out.square().sum(), leaves)))
    (ours, grad_x, grad_scale), (theirs, their_grad_x, their_grad_scale) = results
    assert torch.equal(ours, theirs) and torch.equal(grad_x == 0, their_grad_x == 0)
    torch.testing.assert_close(grad_x, their_grad_x, rtol=1e-6, atol=0)  # autograd multiplies by the step and divides
    torch.testing.assert_close(grad_scale, their_grad_scale, rtol=1e-4, atol=1e-5)


def test_profile_and_memory_know_it():
    model, images = converted(rounding="half_up", shared_sum=True)
    result = quantization_time(model, images, repeats=2)
    assert result.calls == 2 * 2 * len(BITS) and result.kernels_ms > 0 and result.eager_ms > 0
    options = Options(bits=BITS, schedule="accumulate", weight_bank=True, quantizer="double-rounding")
    memory = estimate_memory(model, images, options, train_size=100, classes=3)
    assert memory.weight_bank == WeightBank(model, BITS).nbytes > 0


def test_mbq_train_end_to_end(tmp_path):
    def mbq(*arguments):
        result = CliRunner().invoke(app, list(map(str, arguments)))
        assert result.exit_code == 0, result.output
        return result.output

    mbq("train", "--epochs", 1, "--float-epochs", 1, "--batch-size", 128, "--bits", "8,4,2", "--quantizer",
        "double-rounding", "--rounding", "half_up", "--schedule", "accumulate", "--weight-bank", "--out", tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert (config["quantizer"], config["rounding"], config["shared_sum"]) == ("double-rounding", "half_up", False)
    result = json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[-1])
    assert result["accuracy"]["8"] > 0.3
    assert "6 bits, not trained" in mbq("eval", tmp_path, "--bits", "8,6,4,2")


def test_mbq_train_refuses_1_bit_before_it_trains(tmp_path):
    result = CliRunner().invoke(app, ["train", "--bits", "8,1", "--quantizer", "double-rounding", "--out",
                                      str(tmp_path / "run")])
    assert result.exit_code == 2 and "bits must be at least 2 with DoubleRounding weights" in result.output
    assert not (tmp_path / "run").exists()
