"""A ResNet-20 and a ViT trained with double rounding: every deployment has their weights and computes what they do."""

import copy
from dataclasses import replace

import compare_deployments
import deployed_networks
import pytest
from networks import one_thread  # noqa: F401

from mbq_lab import Options, train_run
from mbq_lab.runs.networks import load_data_and_network

TRAINED = {
    "resnet20": Options(model="resnet20", bits=(8, 4, 2), quantizer="double-rounding", train_limit=640, test_limit=200),
    "vit_t": Options(model="vit_t", bits=(8, 4), quantizer="double-rounding", rounding="half_up", learning_rate=3e-4,
                     train_limit=320, test_limit=100),
}
LAYERS = {"resnet20": 18, "vit_t": 48}  # that are quantized


@pytest.fixture(params=TRAINED, scope="module")
def run(request, tmp_path_factory):
    """(model, its batches of test images and labels, its options), after two epochs in float and one at all bits."""
    folder, options = tmp_path_factory.mktemp("run"), replace(TRAINED[request.param], epochs=1, float_epochs=2)
    train_run(options, folder)
    _, data, model = load_data_and_network(folder)
    return model, [(batch.images, batch.labels) for batch in data.test_batches(50)], options


def test_every_deployment_computes_what_was_trained(run):
    """Bit-equal weights everywhere and logits with mbq_store's; else layers within 1e-5 of their largest output, and
    top-1 agreement of 99.9 %."""
    model, batches, options = run
    rows = compare_deployments.compare(model, batches)
    paths = ("mbq_store", "deploy, codes", "deploy, planes", "onnxruntime")
    assert [(row.bits, row.path) for row in rows] == [(bits, path) for bits in options.bits for path in paths]
    for row in rows:
        print(row)
        assert row.layers == LAYERS[options.model] and row.images == options.test_limit and row.codes > 1e6
        assert row.same_weights == row.layers and row.layer_error <= 1e-5 and row.agreeing >= 0.999 * row.images
        assert row.holds and (row.path != "mbq_store" or (row.same_logits and not row.flipped and not row.layer_error))
    assert all(row.compared == row.layers for row in rows), "were the layers compared at all?"


@pytest.mark.parametrize("run", ["resnet20"], indirect=True)
def test_a_planted_fault_is_found(run, monkeypatch):
    """One weight of one layer that is another code in the file."""
    model, batches, _ = run
    export_onnx = deployed_networks.export_onnx

    def faulty(model, *arguments, **options):
        model = copy.deepcopy(model)
        layer = next(module for module in model.modules() if hasattr(module, "weight_quantizer"))
        layer.weight.data[0].view(-1)[0] += 2 * layer.weight_quantizer.scale(8)[0]
        export_onnx(model, *arguments, **options)

    monkeypatch.setattr(deployed_networks, "export_onnx", faulty)
    *_, row = compare_deployments.compare(model, batches[:1], bits=(8,))
    assert row.path == "onnxruntime" and row.same_weights == row.layers - 1 and row.layer_error > 1e-5 and not row.holds
