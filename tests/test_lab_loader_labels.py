"""Labels of the user's own data sets: what they must be, and networks that have no output for some."""

import pytest
import torch
from networks import one_thread, tiny_model  # noqa: F401
from torch.utils.data import DataLoader, Dataset, TensorDataset

from mbq_lab import Options, data_of, train_run

IMAGES, LABELS = torch.rand(6, 1, 8, 8), torch.tensor([0, 2, 1, 2, 0, 1])
SET = TensorDataset(IMAGES, LABELS)


class Items(Dataset):
    """Images and labels one by one, with attributes that say something of them."""

    def __init__(self, labels, **facts):
        self.labels = labels
        self.__dict__.update(facts)

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, row):
        return IMAGES[row], self.labels[row]


@pytest.mark.parametrize("facts", [
    {"targets": [7] * 6}, {"targets": ["a", "c", "b", "c", "a", "b"]}, {"targets": [0, 2]}, {"classes": 3},
], ids=["before a target_transform", "names", "of another length", "a number of classes"])
def test_what_a_data_set_says_of_its_labels_is_not_trusted_where_its_images_say_otherwise(facts):
    data = data_of(Items(LABELS.tolist(), **facts), SET)
    assert data.classes == 3 and torch.equal(data.train_labels, LABELS)


@pytest.mark.parametrize("labels, error, match", [
    (LABELS.float() + 0.5, TypeError, "must give an integer label for each image, got torch.float32"),
    (LABELS[:, None], TypeError, r"must give an integer label for each image, got torch.int64 \(\d, 1\)"),
    (torch.eye(3)[LABELS].long(), TypeError, r"must give an integer label for each image, got torch.int64 \(\d, 3\)"),
    (["a"] * 6, TypeError, "must give an integer label for each image"),
    (LABELS - 1, ValueError, "must be at least 0"),
], ids=["real", "column", "one-hot", "text", "negative"])
@pytest.mark.parametrize("part", ["train", "test"])
def test_labels_of_another_kind_are_refused_before_training(part, labels, error, match):
    parts = {"train": SET, "test": SET, part: Items(labels)}
    with pytest.raises(error, match=match):
        list(data_of(**parts).test_batches(3))


def test_labels_past_the_classes_are_refused():
    for parts in ((Items(LABELS.tolist(), classes=["a", "b"]), TensorDataset(IMAGES, LABELS % 2)),
                  (TensorDataset(IMAGES, LABELS % 2), SET)):
        with pytest.raises(ValueError, match=r"data_of: labels of t.* must be at least 0 and below 2, got 2"):
            list(data_of(*parts).train_batches(6, seed=0, epoch=0))


def test_a_loader_makes_batches():
    with pytest.raises(ValueError, match="data_of: train must be a DataLoader with a batch_size, .* batch_size=None"):
        data_of(DataLoader(SET, batch_size=None), SET)


def test_a_network_has_an_output_for_every_class(tmp_path):
    with pytest.raises(ValueError, match=r"outputs of shape \(2, 3\) for 2 images of 3 classes, got \(2, 2\)"):
        train_run(Options(bits=(4,), batch_size=3), tmp_path / "run", data=(SET, SET), model=tiny_model())
    assert not (tmp_path / "run").exists()
