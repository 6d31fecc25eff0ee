"""score_images: the forms in which a user gives batches and bit-widths."""

import pytest
import torch
from networks import one_thread, tiny_model  # noqa: F401
from torch.utils.data import DataLoader, SubsetRandomSampler, TensorDataset

from mbq_train import Batch, convert, score_images

IMAGES, LABELS, ROWS = torch.rand(10, 1, 8, 8), torch.arange(10) % 2, torch.arange(10)
SET = TensorDataset(IMAGES, LABELS)


@pytest.fixture(scope="module")
def model():
    return convert(tiny_model(), (8, 4), example=IMAGES)


def test_bit_widths_are_read_once_and_counted_once(model):
    expected = score_images(model, [(IMAGES, LABELS)], (8, 4), score="el2n")
    for bits in ((b for b in (8, 4)), (8, 4, 8), [8, 4]):
        scores = score_images(model, DataLoader(SET, batch_size=4), bits, score="el2n")
        assert list(scores) == [8, 4] and all(torch.allclose(scores[b], expected[b], atol=1e-6) for b in scores)
    with pytest.raises(TypeError, match="score_images: bits must be a sequence of integers, got 8"):
        score_images(model, [(IMAGES, LABELS)], 8)


@pytest.mark.parametrize("options, got", [
    ({"shuffle": True}, "RandomSampler"), ({"sampler": SubsetRandomSampler(range(10))}, "SubsetRandomSampler"),
    ({"drop_last": True}, "drop_last"),
], ids=["shuffle", "sampler", "drop_last"])
def test_pairs_in_another_order_than_the_set_are_refused(model, options, got):
    loader = DataLoader(SET, batch_size=4, **options)
    with pytest.raises(ValueError, match=f"batches must hold all images in the order of the set, got pairs .* {got}$"):
        score_images(model, loader, (8,))


def test_rows_allow_any_order(model):
    expected = score_images(model, [(IMAGES, LABELS)], (8,))[8]
    loader = DataLoader(TensorDataset(IMAGES, LABELS, ROWS), batch_size=4, shuffle=True)
    torch.testing.assert_close(score_images(model, loader, (8,))[8], expected)


@pytest.mark.parametrize("batch", [
    {"images": IMAGES, "labels": LABELS}, IMAGES, (IMAGES,), (IMAGES, LABELS.tolist()), (IMAGES, LABELS[:5]),
    (IMAGES[0], LABELS[0]), (IMAGES, LABELS, ["name"] * 10), Batch(IMAGES, LABELS, ROWS[:5], 10),
    Batch(IMAGES, LABELS, ROWS.float(), 10),
], ids=["dict", "tensor", "images", "list", "short", "item", "names", "few rows", "real rows"])
def test_batches_of_another_form_are_refused(model, batch):
    with pytest.raises(TypeError, match="score_images: batches must give images and labels, and integer rows"):
        score_images(model, [batch], (8,))


def test_rows_below_0_are_refused(model):
    with pytest.raises(ValueError, match="batches must hold every image of the set once"):
        score_images(model, [Batch(IMAGES, LABELS, ROWS - 1, 10)], (8,))
