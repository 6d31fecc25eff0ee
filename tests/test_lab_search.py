"""mbq search: bit-widths of a run's layers within limits, tested, trained a little, and exported."""

import ctypes
import json

import numpy as np
import onnxruntime
import pytest
import torch
from cli import mbq
from networks import one_thread  # noqa: F401

import mbq_lab.runs.search as searching
import mbq_store
from mbq_lab import Options, build_model, evaluate, evaluate_run, load_quantized, search_run, train_run
from mbq_lab.runs.networks import load_data_and_network
from mbq_train import load_quantized as load_network
from mbq_train import own_layer_bits, set_bits

LAYERS = [f"blocks.{block}.{layer}" for block in (1, 2) for layer in ("conv1", "conv2", "shortcut.0")]
LAYERS = ["blocks.0.conv1", "blocks.0.conv2", *LAYERS]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("search") / "run"
    options = Options.for_recipe("double-rounding", bits=(8, 4, 2), model="resnet8", train_limit=200, test_limit=100,
                                 float_epochs=2, epochs=1, hessian_images=16, hessian_probes=2)
    train_run(options, folder)
    return folder


def test_the_command_searches_tests_trains_and_exports(run, tmp_path):
    store, onnx = tmp_path / "m.safetensors", tmp_path / "m.onnx"
    shown = mbq("search", run, "--mean-bits", 3.5, "--solutions", 3, "--sweep", 4, "--fine-tune", 1, "--store", store,
                "--onnx", onnx)
    assert shown.exit_code == 0, shown.output
    for text in ("found 1", "found 2", "8 bits", "sweep", "fine-tuned", "mean_bits", str(onnx)):
        assert text in shown.stdout.replace("\n", "")
    kept = json.loads((run / "search.json").read_text())
    best = kept["found"][0]
    assert best["mean_bits"] <= 3.5 and sorted(best["bits"]) == sorted(LAYERS) and 0 <= kept["fine_tuned"] <= 1
    assert set(best["bits"].values()) <= {8, 4, 2} and best["binding"] == ["mean_bits"]
    costs = [one["cost"] for one in kept["found"]]
    assert len(costs) == 3 and costs == sorted(costs)
    means = [one["mean_bits"] for one in kept["pareto"]]
    assert means[0] == 2 and len(means) > 1 and means == sorted(means)
    assert (run / "search.png").stat().st_size > 10_000
    network = load_network(run / "search.safetensors", build_model("resnet8", classes=10, in_channels=1,
                                                                   image_size=(8, 8)))
    assert own_layer_bits(network) == best["bits"]
    set_bits(network, kept["model_bits"])
    with mbq_store.open(store) as opened:
        assert {name: opened.layer(name).bits for name in opened.layers} == best["bits"]
    images = torch.rand(5, 1, 8, 8)
    session = onnxruntime.InferenceSession(str(onnx))
    got, = session.run(None, {session.get_inputs()[0].name: images.numpy()})
    want = network(images).detach().numpy()
    assert np.abs(got - want).max() <= 1e-4 * np.abs(want).max()


def test_one_bit_width_for_all_layers_is_the_run_at_it(run):
    result = search_run(run, mean_bits=8)
    trained = evaluate_run(run).accuracy
    assert {b: one.accuracy for b, one in result.uniform.items()} == trained
    assert [one.allocation.mean_bits for one in result.uniform.values()] == [8, 4, 2]
    assert own_layer_bits(load_quantized(run)) == {}


def test_statistics_of_batch_norm_can_be_those_of_each_configuration(run):
    result = search_run(run, mean_bits=3, adapt=True)
    adapted = evaluate_run(run, adapt=True).accuracy
    assert {b: one.accuracy for b, one in result.uniform.items()} == adapted
    assert result.found[0].accuracy == evaluate(result.network, load_data_and_network(run)[1], result.model_bits)


@pytest.mark.parametrize("objective", ["trace", "loss"])
def test_other_objectives_keep_the_limits_too(run, objective):
    result = search_run(run, objective=objective, max_bytes=40_000, max_bit_operations=3e7, bits=(8, 4))
    best = result.found[0].allocation
    assert best.bytes <= 40_000 and best.bit_operations <= 3e7 and set(best.bits.values()) == {8, 4}


def test_measured_latencies_are_a_limit(run, tmp_path):
    table = {name: {str(b): 1e-3 * b for b in (8, 4, 2)} for name in LAYERS}
    (tmp_path / "latency.json").write_text(json.dumps(table))
    shown = mbq("search", run, "--latency", tmp_path / "latency.json", "--max-latency", 0.03, "--json")
    assert shown.exit_code == 0, shown.output
    assert json.loads(shown.stdout)["found"][0]["latency"] <= 0.03


def test_what_compiled_libraries_print_stays_out_of_the_output(run, monkeypatch, capfd):
    libc, allocate = ctypes.CDLL(None), searching.allocate

    def talking(*args, **options):
        libc.puts(b"debug")  # as HiGHS does, in a buffer of its own
        return allocate(*args, **options)

    monkeypatch.setattr(searching, "allocate", talking)
    assert mbq("search", run, "--mean-bits", 4, "--json").exit_code == 0
    libc.fflush(None)
    out, err = capfd.readouterr()
    assert "debug" not in out and "debug" in err
    libc.puts(b"after")
    libc.fflush(None)
    assert capfd.readouterr().out == "after\n"


@pytest.mark.parametrize("options, message", [
    (["--mean-bits", 1], "--mean-bits must be at least 2, the least that these layers can have, got 1, 1 too few"),
    (["--max-bytes", 100], "--max-bytes must be at least "),
    (["--max-latency", 1], "--max-latency must come with latency"),
    (["--objective", "hesian"], "--objective must be one of hessian, loss, trace, got 'hesian'"),
    (["--bits", "8,3"], "must be one of 8, 4, 2, which are trained, got 3"),
    (["--latency", "nosuch.json", "--max-latency", 1], "path must be a file, got nosuch.json"),
    (["--store", "nosuch/m.st"], "no folder nosuch"),
    (["--solutions", 0], "Invalid value for '--solutions'"),
])
def test_bad_input_is_one_line(run, options, message):
    result = mbq("search", run, *options)
    assert result.exit_code == 2 and message in result.stderr, result.output
    assert len(result.stderr.strip().splitlines()) <= 3 and "Traceback" not in result.output


def test_a_table_of_other_layers_is_refused(run, tmp_path):
    (tmp_path / "latency.json").write_text(json.dumps({"conv": {"8": 1.0}}))
    assert "latency must name the layers of costs" in mbq("search", run, "--latency", tmp_path / "latency.json").stderr
    (tmp_path / "latency.json").write_text(json.dumps({"conv": 1.0}))
    assert "latency must be {layer: {bits: seconds}}" in mbq("search", run, "--latency",
                                                             tmp_path / "latency.json").stderr

