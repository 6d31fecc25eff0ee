"""Runs that version 2 of the checkpoints wrote: what they compute, how they go on, what is said of others."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from networks import one_thread  # noqa: F401
from small_data import Told

from mbq_lab import Observer, evaluate_run, load_data, load_quantized, resume_run
from mbq_train import export_store, set_bits

RUNS = Path(__file__).parent / "old_runs"
EXPECTED = json.loads((RUNS / "expected.json").read_text())


@pytest.mark.parametrize("run", ["double-rounding", "any-precision", "round-clamp"])
def test_a_finished_run_computes_what_it_did(run, tmp_path):
    model, data = load_quantized(RUNS / run), load_data("digits", train_limit=200, test_limit=100)
    images = next(data.test_batches(3)).images
    for bits, logits in EXPECTED[run].items():
        set_bits(model, int(bits))
        torch.testing.assert_close(model(images), torch.tensor(logits), rtol=1e-5, atol=1e-6)
    assert evaluate_run(RUNS / run).accuracy.keys() == {6, 3}
    export_store(model, tmp_path / "store", bits=3)


def test_a_stopped_run_goes_on_as_it_would_have(tmp_path):
    shutil.copytree(RUNS / "stopped", tmp_path / "run")
    torch.set_num_threads(1)
    records = []
    resume_run(tmp_path / "run", observer=Told(record=records.append))
    assert isinstance(Told(), Observer)
    losses = [record["loss"] for record in records if record["phase"] == "quantized"]
    for loss, expected in zip(losses, EXPECTED["stopped"][1:], strict=True):
        assert loss == pytest.approx({int(b): value for b, value in expected.items()}, rel=1e-6)
    assert load_quantized(tmp_path / "run") is not None
