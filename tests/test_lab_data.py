"""Batches: a pure function of seed, epoch and number; ranks; coresets."""

import math

import image_sets as sets
import pytest
import torch

from mbq_lab.data import load_data
from mbq_train.batches import Batch

KINDS = {"memory": {"augment": "crop,flip,cutout"}, "stream": {"augment": "resized-crop,crop,flip,cutout",
                                                               "image_size": 8}}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("birds")
    sets.parquet_set(folder, train=46, test=9, group=10)
    return folder


@pytest.fixture(params=KINDS)
def data(request, folder):
    """46 training images of 3 classes, once in memory and once streamed, with every augmentation."""
    return load_data(folder, **KINDS[request.param])


def same(first: Batch, second: Batch) -> bool:
    return first.total == second.total and all(map(torch.equal, first[:3], second[:3]))


def test_a_batch_has_its_images_labels_rows_and_total(data):
    batches = list(data.train_batches(8, seed=0, epoch=0))
    assert [len(batch.images) for batch in batches] == [batch.total for batch in batches] == [8] * 5 + [6]
    assert len(batches) == data.steps(8) == 6
    for images, labels, rows, _ in batches:
        assert images.shape[1:] == (3, 8, 8) and images.dtype == torch.float32
        assert labels.dtype == rows.dtype == torch.int64 and torch.equal(labels, rows % 3)
    rows = torch.cat([batch.rows for batch in batches])
    assert sorted(rows.tolist()) == list(range(46)) and rows.tolist() != list(range(46))


def test_seed_and_epoch_decide_every_bit_and_nothing_else(data):
    def drawn(**options):
        return list(data.train_batches(16, **{"seed": 3, "epoch": 2, **options}))

    first = drawn()
    state = torch.get_rng_state()
    torch.manual_seed(99)
    assert all(map(same, first, drawn()))
    torch.set_rng_state(state)
    drawn()
    assert torch.equal(torch.get_rng_state(), state)  # the caller's own numbers do not depend on the data
    for other in (drawn(seed=4), drawn(epoch=3), drawn(seed=2, epoch=3)):
        assert not torch.equal(other[0].rows, first[0].rows)


def test_augmentation_changes_with_the_epoch(data):
    def by_row(epoch):
        batches = list(data.train_batches(16, seed=0, epoch=epoch))
        rows = torch.cat([batch.rows for batch in batches])
        return torch.cat([batch.images for batch in batches])[rows.argsort()]

    changed = (by_row(0) != by_row(1)).flatten(1).any(dim=1)
    assert changed.float().mean() > 0.8


def test_start_resumes_exactly_and_reads_nothing_before_it(data, monkeypatch):
    full = list(data.train_batches(8, seed=1, epoch=4))
    for start in range(7):
        rest = list(data.train_batches(8, seed=1, epoch=4, start=start))
        assert len(rest) == 6 - start and all(map(same, full[start:], rest))
    if hasattr(data, "_source"):
        read, kind = [], type(data._source.train)
        real = kind.read
        monkeypatch.setattr(kind, "read", lambda self, row: read.append(row) or real(self, row))
        list(data.train_batches(8, seed=1, epoch=4, start=5))
        assert sorted(read) == sorted(full[5].rows.tolist())


@pytest.mark.parametrize("world", [2, 3, 4])
def test_ranks_part_the_global_batch_exactly(data, world):
    whole = list(data.train_batches(12, seed=0, epoch=1))
    ranks = [list(data.train_batches(12, seed=0, epoch=1, rank=rank, world=world)) for rank in range(world)]
    for number, batch in enumerate(whole):
        parts = [rank[number] for rank in ranks]
        for rank, part in enumerate(parts):
            total = 12 if number < 3 else 10 // world * world  # the last batch is cut, for equal parts
            assert part.total == total and len(part.rows) == total // world
            assert all(torch.equal(mine, every[:total][rank::world])
                       for mine, every in zip(part[:3], batch[:3], strict=True))


def test_a_last_batch_smaller_than_the_world_is_left_out_on_every_rank(data):
    assert [data.steps(9, world=world) for world in (1, 3, 9)] == [6, 5, 5]  # 46 = 5 * 9 + 1
    assert [data.steps(12, world=world) for world in (1, 2, 12)] == [4, 4, 3]  # 46 = 3 * 12 + 10
    parts = [list(data.train_batches(9, seed=0, epoch=0, rank=rank, world=3)) for rank in range(3)]
    assert [len(part) for part in parts] == [5, 5, 5]
    assert len(torch.cat([batch.rows for part in parts for batch in part]).unique()) == 45


def test_a_coreset_is_all_that_is_seen(data):
    rows = torch.tensor([45, 3, 7, 20, 3])
    batches = list(data.train_batches(2, seed=0, epoch=0, rows=rows))
    assert len(batches) == data.steps(2, images=len(rows)) == 3
    assert sorted(torch.cat([batch.rows for batch in batches]).tolist()) == sorted(rows.tolist())
    again = list(data.train_batches(2, seed=0, epoch=0, rows=rows))
    assert all(map(same, batches, again))


def test_test_batches_come_in_order_and_are_never_augmented(data):
    batches, again = list(data.test_batches(4)), list(data.test_batches(4))
    assert torch.cat([batch.rows for batch in batches]).tolist() == list(range(9))
    assert [batch.total for batch in batches] == [4, 4, 1] and all(map(same, batches, again))
    assert torch.cat([batch.labels for batch in batches]).tolist() == [i % 3 for i in range(46, 55)]


def test_still_batches_are_the_training_images_in_order_not_augmented(data):
    batches = list(data.still_batches(8))
    assert torch.cat([batch.rows for batch in batches]).tolist() == list(range(46))
    assert torch.equal(torch.cat([batch.labels for batch in batches]).cpu(), data.train_labels)
    assert all(map(same, batches, data.still_batches(8)))
    parts = [list(data.still_batches(8, rank=rank, world=4)) for rank in range(4)]
    assert [len(part) for part in parts] == [2, 2, 1, 1]
    assert all(same(batch, parts[number % 4][number // 4]) for number, batch in enumerate(batches))
    with pytest.raises(ValueError, match="still_batches: rank must be in 0..3, got 4"):
        data.still_batches(8, rank=4, world=4)


@pytest.mark.parametrize("options, error, match", [
    ({"batch_size": 0}, ValueError, "train_batches: batch_size must be at least 1, got 0"),
    ({"batch_size": 6, "world": 4}, ValueError, "train_batches: batch_size must be a multiple of world = 4, got 6"),
    ({"world": 0}, ValueError, "train_batches: world must be at least 1, got 0"),
    ({"world": 2, "rank": 2}, ValueError, r"train_batches: rank must be in 0..1, got 2"),
    ({"rank": -1}, ValueError, r"train_batches: rank must be in 0..0, got -1"),
    ({"start": 7}, ValueError, r"train_batches: start must be in 0..6, got 7"),
    ({"start": -1}, ValueError, r"train_batches: start must be in 0..6, got -1"),
    ({"rows": torch.tensor([0, 46])}, ValueError, r"train_batches: rows must be in 0..45, got 46"),
    ({"rows": torch.tensor([-1, 3])}, ValueError, r"train_batches: rows must be in 0..45, got -1"),
    ({"rows": torch.tensor([], dtype=torch.int64)}, ValueError, r"rows must have one dimension and an element"),
    ({"rows": torch.tensor([[1]])}, ValueError, r"rows must have one dimension and an element, got \(1, 1\)"),
    ({"rows": torch.tensor([1], dtype=torch.int32)}, TypeError, r"rows must be an int64 tensor, got torch.int32"),
    ({"rows": [1, 2]}, TypeError, r"rows must be an int64 tensor, got list"),
    ({"rows": torch.tensor([1, 2]), "world": 4}, ValueError, r"rows must be at least world = 4, got 2"),
], ids=str)
def test_train_batches_refuses_at_the_call(data, options, error, match):
    with pytest.raises(error, match=match):
        data.train_batches(**{"batch_size": 8, "seed": 0, "epoch": 0, **options})


def test_test_batches_refuses_a_batch_of_nothing(data):
    with pytest.raises(ValueError, match="test_batches: batch_size must be at least 1, got 0"):
        data.test_batches(0)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("kind", KINDS)
def test_batches_on_a_gpu_are_those_of_the_cpu_and_in_memory_the_host_never_waits(folder, kind):
    cpu, gpu = (load_data(folder, device=device, **KINDS[kind]) for device in ("cpu", "cuda"))
    list(gpu.train_batches(8, seed=0, epoch=0))  # pinned memory is made with a wait, the first time
    batches = gpu.train_batches(8, seed=0, epoch=0)
    try:
        torch.cuda.set_sync_debug_mode("error" if kind == "memory" else "default")
        found = list(batches)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    for batch, expected in zip(found, cpu.train_batches(8, seed=0, epoch=0), strict=True):
        assert batch.images.device.type == batch.labels.device.type == "cuda" and batch.rows.device.type == "cpu"
        torch.testing.assert_close(batch.images.cpu(), expected.images, rtol=1e-6, atol=1e-6)
        assert torch.equal(batch.labels.cpu(), expected.labels) and torch.equal(batch.rows, expected.rows)
    assert math.isfinite(found[0].images.sum().item())
