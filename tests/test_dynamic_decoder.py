"""A decoder whose weights have scales of groups and whose inputs have the range of each token, from training to files.
"""

import copy

import pytest
import torch
from networks import one_thread  # noqa: F401
from torch import nn

from mbq_lab.models import Decoder
from mbq_train import (
    Batch,
    Dynamic,
    Learned,
    ScaleRates,
    Stepper,
    WeightBank,
    add_bits,
    clamp_scales,
    convert,
    deploy,
    export_store,
    initialise,
    load_checkpoint,
    load_quantized,
    parameter_groups,
    recompute_quantized,
    save_checkpoint,
    scales,
    set_bits,
)

BITS = (8, 4, 2)
TOKENS = torch.randint(0, 20, (3, 6), generator=torch.Generator().manual_seed(1))
LABELS = torch.randint(0, 20, (3,), generator=torch.Generator().manual_seed(2))


def decoder(**options):
    """A decoder whose quantized layers have groups of 8; its inputs have the range of each token."""
    torch.manual_seed(0)
    model = Decoder(vocabulary=20, width=16, depth=1, heads=2)
    return convert(model, BITS, weights=Learned(group_size=8), activations=Dynamic(), **options)


class Last(nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, tokens):
        return self.model(tokens)[:, -1]


def train(model, schedule="each", bank=False):
    """Predict a label for every sequence from its last token; the mean losses of three steps."""
    optimizer = torch.optim.AdamW(parameter_groups(model, weight_decay=1e-2), 1e-2)
    bank = WeightBank(model, BITS) if bank else None
    step = Stepper(Last(model), BITS, optimizer, schedule=schedule, bank=bank)
    rows = torch.arange(len(TOKENS))
    return [step(Batch(TOKENS, LABELS, rows, len(TOKENS))).mean() for _ in range(3)]


def outputs(model):
    found = []
    for bits in BITS:
        with set_bits(model.eval(), bits), torch.no_grad():
            found.append(model(TOKENS))
    return found


def test_a_decoder_trains_and_loads(tmp_path):
    model = decoder(example=TOKENS)
    ScaleRates(torch.optim.SGD(scales(model), 0.1), model)
    before = outputs(model)
    losses = train(model.train())
    assert losses[-1] < losses[0]
    after = outputs(model)
    assert all(not torch.equal(*pair) for pair in zip(before, after, strict=True))
    save_checkpoint(tmp_path / "file", model)
    fresh, torn = Decoder(vocabulary=20, width=16, depth=1, heads=2), decoder(example=TOKENS)
    load_checkpoint(tmp_path / "file", torn)
    for other in (load_quantized(tmp_path / "file", fresh), torn, copy.deepcopy(model)):
        assert all(map(torch.equal, outputs(other), after))
    layer = fresh.layers[0].mlp.up_proj
    assert layer.specs.weights == Learned(group_size=8) and layer.specs.activations == Dynamic()
    for scale in scales(fresh):
        scale.data.fill_(-1)
    clamp_scales(fresh)
    assert all(scale.min() > 0 for scale in scales(fresh))


def test_a_bank_and_a_recomputation_train_alike():
    models = [decoder(example=TOKENS).train() for _ in range(3)]
    recompute_quantized(models[2])
    for model, bank in zip(models, (False, True, False), strict=True):
        train(model, "accumulate", bank)
    for one, other, again in zip(*map(outputs, models), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)  # sums of gradients in another order
        assert torch.equal(one, again)


def test_added_bit_widths_lie_between():
    model = add_bits(decoder(example=TOKENS), (6,), [])
    quantizer = model.layers[0].mlp.up_proj.weight_quantizer
    limits = [quantizer.scale(b) * (2 ** (b - 1) - 1) for b in (8, 6, 4)]
    torch.testing.assert_close(limits[1], (limits[0] + limits[2]) / 2)
    assert quantizer.scale(6).shape == (quantizer.scale(8).shape[0], 2)


def test_stores_and_deployment_say_that_they_have_no_groups(tmp_path):
    model = decoder(example=TOKENS)
    with pytest.raises(ValueError, match="export_store: weights of layers.0.self_attn.o_proj must have a scale per "
                                         "output channel, which is what a store holds, got groups of 8; convert with"):
        export_store(model, tmp_path / "file", bits=4)
    assert not (tmp_path / "file").exists()
    with pytest.raises(ValueError, match="must have a DoubleRoundingQuantizer, got GroupWeightQuantizer"):
        deploy(model)


def test_first_values_come_from_a_batch_or_an_example():
    model = decoder()
    with pytest.raises(RuntimeError, match="GroupWeightQuantizer must have seen a training batch at 8 bits"):
        model.eval()(TOKENS)
    initialise(model, TOKENS)
    assert all(scale.isfinite().all() for scale in scales(model))
