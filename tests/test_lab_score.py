"""mbq score, transfer and ablate; angles, probes and adapted BatchNorm."""

import json
import struct

import pyarrow.parquet
import pytest
import torch
from networks import interruptible, one_thread, tiny_model  # noqa: F401
from small_data import halves
from typer.testing import CliRunner

from mbq_lab import dry_run, evaluate_run, train_run
from mbq_lab.command.app import app
from mbq_lab.options import Options
from mbq_lab.runs import networks as run_networks
from mbq_lab.runs.linear_probe import linear_probe
from mbq_lab.runs.networks import load_data_and_network
from mbq_train import AnyPrecision, adapt_bn, convert, initialise, score_images, set_bits
from mbq_train.coreset.transfer import gradient_angles

BITS = (32, 4, 2)
TINY = ["--bits", "2,4,32", "--epochs", 3, "--float-epochs", 1, "--batch-size", 8, "--learning-rate", 0.01]


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setattr(run_networks, "load_data", lambda *args, **options: halves())
    monkeypatch.setattr(run_networks, "build_model", lambda *args, **options: tiny_model())


def refused(*arguments):
    """The one line a command ends in."""
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == 2 and len(result.stderr.splitlines()) == 1, result.output
    return result.stderr


def files_of(folder):
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*")}


def mbq(*arguments, exit_code=0):
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == exit_code, result.output
    return result.output


def is_picture(path):
    image = path.read_bytes()
    return image[:8] == b"\x89PNG\r\n\x1a\n" and min(struct.unpack(">II", image[16:24])) > 100


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "emqnet"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run_networks, "load_data", lambda *args, **options: halves())
        patch.setattr(run_networks, "build_model", lambda *args, **options: tiny_model())
        mbq("train", "--recipe", "emqnet", "--prune-rate", 0.5, "--score-epochs", 1, *TINY, "--out", folder)
    return folder


def test_the_recipe_trains_from_one_command(run):
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [line["phase"] for line in lines] == ["float", "quantized", "quantized", "quantized", "result"]
    assert lines[1]["scoring_seconds"] > 0 and list(lines[1]["scores"]) == ["32", "4", "2"]
    config = json.loads((run / "config.json").read_text())
    assert config["bits"] == [32, 4, 2] and config["quantizer"] == "any-precision" and config["weight_correction"]
    assert list(lines[-1]["accuracy"]) == ["32", "4", "2"]


def test_score_writes_a_table_and_two_pictures(run, tmp_path):
    shown = mbq("score", run, "--score", "el2n", "--out", tmp_path / "scores", "--images", 5)
    assert "float path" in shown and "2 bits" in shown
    table = pyarrow.parquet.read_table(tmp_path / "scores/scores.parquet")
    assert table.column_names == ["row", "label", "float", "bits_4", "bits_2"] and table.num_rows == 60
    assert json.loads(table.schema.metadata[b"mbq"]) == {"score": "el2n", "bits": [32, 4, 2]}
    options, data, model = load_data_and_network(run)
    expected = score_images(model, data.still_batches(16), options.bits, score="el2n")
    assert table["bits_2"].to_pylist() == pytest.approx(expected[2].tolist(), rel=1e-5)
    assert is_picture(tmp_path / "scores/scores.png") and is_picture(tmp_path / "scores/images.png")
    assert "did you mean 'grand'" in mbq("score", run, "--score", "gran", exit_code=2)
    mbq("score", run, "--bits", "2")
    assert pyarrow.parquet.read_table(run / "scores.parquet").column_names == ["row", "label", "bits_2"]


def test_transfer_writes_angles_and_probes(run):
    shown = mbq("transfer", run)
    assert "Degrees" in shown and "probe" in shown
    facts = json.loads((run / "transfer.json").read_text())
    assert facts["bits"] == list(BITS) and list(facts["angles"]) == ["0", "1", "3", "6"] and is_picture(
        run / "transfer.png")


def trained(batch_norm="shared"):
    model = convert(tiny_model(), BITS[1:], batch_norm=batch_norm, weights=AnyPrecision())
    initialise(model, next(halves().test_batches(20)).images)
    return model


def test_angles_are_those_of_the_gradients():
    model, batches = trained(), list(halves().still_batches(25))
    before = model.state_dict()
    angles = gradient_angles(model, batches, BITS)
    images, labels = (torch.cat([batch[i] for batch in batches]) for i in (0, 1))
    gradients = []
    model.eval()
    for b in BITS:
        set_bits(model, b)
        loss = torch.nn.functional.cross_entropy(model(images), labels)
        gradients.append(torch.autograd.grad(loss, model[3].weight)[0].flatten().double())
    cosine = torch.stack([torch.stack([torch.cosine_similarity(a, b, dim=0) for a in gradients]) for b in gradients])
    expected = torch.rad2deg(cosine.clamp(-1, 1).acos())
    torch.testing.assert_close(angles["3"], expected.fill_diagonal_(0), rtol=1e-3, atol=1e-2)
    assert (angles["3"][0, 1:] > 0.1).all() and model[3].weight.grad is None
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    with pytest.raises(ValueError, match="gradient_angles: batches must hold images, got none"):
        gradient_angles(model, [], BITS)


def test_probes_read_features_of_other_bit_widths(run):
    _, data, model = load_data_and_network(run)
    accuracy = linear_probe(model, data, BITS)
    assert accuracy.shape == (3, 3) and (accuracy.diagonal() >= 0.8).all() and (accuracy <= 1).all()


@pytest.mark.parametrize("batch_norm", ["shared", "per_bit"])
def test_adapt_bn_averages_the_statistics_of_one_bit_width(batch_norm):
    model = trained(batch_norm)
    set_bits(model, 4)
    images = torch.randn(40, 1, 8, 8, generator=torch.Generator().manual_seed(1)) + 3
    before = {name: value.clone() for name, value in model.state_dict().items()}
    assert adapt_bn(model, 2, [images[:20], (images[20:], None)]) is model
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    prefix = "1." if batch_norm == "shared" else "1.by_bits.2."
    assert changed == {prefix + name for name in ("running_mean", "running_var", "num_batches_tracked")}
    inputs = [model[0](part) for part in images.split(20)]
    mean = torch.stack([x.mean(dim=(0, 2, 3)) for x in inputs]).mean(dim=0)
    variance = torch.stack([x.var(dim=(0, 2, 3)) for x in inputs]).mean(dim=0)
    torch.testing.assert_close(model.state_dict()[prefix + "running_mean"], mean)
    torch.testing.assert_close(model.state_dict()[prefix + "running_var"], variance)
    norm = model[1] if batch_norm == "shared" else model[1].by_bits["2"]
    assert model.training and norm.momentum == 0.1 and model[3].weight_quantizer.bit_state.bits == 4


def test_adapt_bn_that_fails_changes_nothing():
    model, images = trained("shared"), torch.randn(20, 1, 8, 8)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(ValueError, match="adapt_bn: batches must hold images for the statistics"):
        adapt_bn(model, 2, [])
    with pytest.raises(RuntimeError, match="channels"):
        adapt_bn(model, 2, [images, images.expand(-1, 2, -1, -1)])
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert model.training and model[1].training and model[1].momentum == 0.1


def test_eval_can_adapt_batch_norm_at_trained_and_untrained_bit_widths(run):
    assert "3 bits, not trained" in mbq("eval", run, "--bits", "32,4,3,2", "--adapt-bn")
    plain, adapted = (evaluate_run(run, bits=(32, 3, 2), adapt=adapt) for adapt in (False, True))
    assert plain.untrained == adapted.untrained == (3,) and plain.float_accuracy == adapted.float_accuracy
    assert evaluate_run(run, bits=(32, 3, 2)).accuracy == plain.accuracy


def test_ablate_trains_two_networks_and_measures_four(tmp_path):
    shown = mbq("ablate", "--recipe", "emqnet", "--prune-rate", 0.5, "--score-epochs", 1, *TINY, "--measure",
                "32,4,3,2", "--out", tmp_path / "ablation")
    assert "3 bits*" in shown and "not trained" in shown
    facts = json.loads((tmp_path / "ablation/ablation.json").read_text())
    assert [(cell["correction"], cell["adaptation"]) for cell in facts["cells"]] == [
        (False, False), (False, True), (True, False), (True, True)]
    for cell in facts["cells"]:
        folder = tmp_path / "ablation" / ("corrected" if cell["correction"] else "plain")
        assert json.loads((folder / "config.json").read_text())["weight_correction"] == cell["correction"]
        assert list(cell["accuracy"]) == ["32", "4", "3", "2"] and cell["untrained"] == [3]


@pytest.mark.parametrize("command, message", [
    (["score", "--score", "tdds"], "--score must be one of el2n, grand, last_layer, got 'tdds'"),
    (["score", "--bits", "8"], "--bits must be one of 32, 4, 2, got 8"),
    (["transfer", "--bits", "4"], "--bits must be at least two, to compare, got (4,)"),
    (["transfer", "--bits", "2,4"], "--bits must go from high to low"),
    (["sensitivity", "--bits", "32,4"], "--bits must be between 1 and 8, got 32"),
    (["score", "--device", "tpu"], "--device must be cpu, cuda, cuda:N or auto, got 'tpu'"),
], ids=lambda value: " ".join(value) if isinstance(value, list) else "")
def test_wrong_options_are_one_line_and_write_nothing(run, command, message):
    before = files_of(run)
    assert refused(command[0], run, *command[1:]).startswith(f"error: {message}")
    assert files_of(run) == before


def test_scores_go_to_a_folder(run, tmp_path):
    (tmp_path / "file").write_text("mine")
    for out in (tmp_path / "file", tmp_path / "file/scores"):
        assert f"--out must be a folder, got a file, {tmp_path / 'file'}" in refused("score", run, "--out", out)


def test_overwriting_a_run_takes_its_scores_away(run, tmp_path):
    folder = tmp_path / "run"
    mbq("train", *TINY, "--out", folder)
    names = {path.name for path in folder.iterdir()}
    mbq("score", folder)
    mbq("transfer", folder)
    assert {path.name for path in folder.iterdir()} - names == {
        "scores.parquet", "scores.png", "images.png", "transfer.json", "transfer.png"}
    mbq("train", *TINY, "--out", folder, "--overwrite")
    assert {path.name for path in folder.iterdir()} == names


@pytest.mark.parametrize("options, message", [
    (["--measure", "16"], "--measure must be between 1 and 8, or 32, got 16"),
    (["--measure", "2,4"], "--measure must go from high to low"),
    (["--quantizer", "round-clamp"], "--weight-correction must be left alone unless quantizer is"),
    ([], "--out must not hold an unfinished run"),
], ids=lambda value: " ".join(value) if isinstance(value, list) else "")
def test_ablate_finds_errors_before_it_trains(tmp_path, options, message):
    if not options:
        (tmp_path / "corrected").mkdir()
        (tmp_path / "corrected/config.json").write_text("{}")
    before = files_of(tmp_path)
    assert refused("ablate", *TINY, *options, "--out", tmp_path).startswith(f"error: {message}")
    assert files_of(tmp_path) == before


def test_a_wrong_coreset_is_an_error_before_anything_is_trained(tmp_path):
    with pytest.raises(ValueError, match="coreset_size: prune_rate must leave a batch of 32 images"):
        train_run(Options.for_recipe("emqnet", bits=BITS, batch_size=32), tmp_path / "run")
    assert not (tmp_path / "run").exists()
    with pytest.raises(ValueError, match="coreset_size: prune_rate must leave a batch of 32 images"):
        dry_run(Options.for_recipe("emqnet", bits=BITS, batch_size=32))
