"""Augmentations against a loop over images, and the distribution of what is drawn."""

import math

import pytest
import torch

from mbq_lab.data.augment import augment_images, draw, parse_augment, resized_crop_box
from mbq_train.batches import seeded

FILL = torch.tensor([7, 8, 9], dtype=torch.uint8).reshape(1, 3, 1, 1)


def one_by_one(images, parameters, names):
    """The definition: pad with black and cut out, then mirror, then cover a square."""
    height, width = images.shape[-2:]
    result = []
    for image, (top, left, flip, row, column) in zip(images, parameters.tolist(), strict=True):
        if "crop" in names:
            padded = torch.zeros(3, height + 2 * (height // 8), width + 2 * (width // 8), dtype=torch.uint8)
            padded[:, height // 8:height // 8 + height, width // 8:width // 8 + width] = image
            image = padded[:, top:top + height, left:left + width]
        if "flip" in names and flip:
            image = image.flip(-1)
        if "cutout" in names:
            image = image.clone()
            image[:, max(row - height // 4, 0):row + height // 4, max(column - width // 4, 0):column + width // 4] = \
                FILL[0]
        result.append(image)
    return torch.stack(result)


@pytest.mark.parametrize("names", ["none", "crop", "flip", "cutout", "crop,flip", "cutout,flip,crop"])
@pytest.mark.parametrize("size", [(32, 32), (8, 16), (5, 3)], ids=str)
def test_a_batch_is_augmented_as_its_images_one_by_one(names, size):
    images = torch.randint(0, 256, (64, 3, *size), dtype=torch.uint8)
    parameters, names = draw(64, size, seeded("test", 1)), parse_augment(names)
    result = augment_images(images, parameters, names, FILL)
    assert result.dtype == torch.uint8 and torch.equal(result, one_by_one(images, parameters, names))
    if names and size != (5, 3):
        assert not torch.equal(result, images)


def test_parameters_take_every_value_and_no_other():
    parameters = draw(20000, (32, 16), seeded("test", 2))
    for column, end in zip(parameters.T, (9, 5, 2, 32, 16), strict=True):
        counts = column.bincount(minlength=end)
        assert len(counts) == end and (counts - 20000 / end).abs().max() < 6 * math.sqrt(20000 / end)


def test_cutout_covers_a_square_half_as_wide():
    images = torch.full((1, 3, 32, 32), 255, dtype=torch.uint8)
    inside = augment_images(images, torch.tensor([[0, 0, 0, 16, 16]]), ("cutout",), FILL)
    assert (inside[0, 0] == 7).sum() == 16 * 16 and (inside[0, 2] == 9).sum() == 16 * 16
    corner = augment_images(images, torch.tensor([[0, 0, 0, 0, 31]]), ("cutout",), FILL)
    assert (corner[0, 0] == 7).sum() == 8 * 9


def test_resized_crops_lie_inside_and_have_the_areas_and_ratios_asked_for():
    areas, ratios = [], []
    for number in range(2000):
        left, top, right, bottom = resized_crop_box((300, 300), seeded("test", number))
        assert 0 <= left < right <= 300 and 0 <= top < bottom <= 300
        areas.append((right - left) * (bottom - top) / 90000)
        ratios.append((right - left) / (bottom - top))
    assert 0.078 < min(areas) < 0.1 and 0.9 < max(areas) <= 1 and 0.4 < sum(areas) / 2000 < 0.56
    assert 0.74 < min(ratios) < 0.77 and 1.3 < max(ratios) < 1.36
    assert 0.4 < sum(ratio < 1 for ratio in ratios) / 2000 < 0.55


@pytest.mark.parametrize("size, box", [
    ((1, 1), (0, 0, 1, 1)), ((2, 1000), (498, 0, 501, 2)), ((900, 3), (0, 448, 3, 452)),
], ids=str)
def test_a_resized_crop_of_an_image_too_narrow_is_its_centre(size, box):
    boxes = {resized_crop_box(size, seeded("test", number)) for number in range(30)}
    assert box in boxes and all(0 <= b[0] < b[2] <= size[1] and 0 <= b[1] < b[3] <= size[0] for b in boxes)


def test_names_are_read_from_a_list():
    assert parse_augment("none") == () and parse_augment(" crop, flip") == ("crop", "flip")


@pytest.mark.parametrize("text, match", [
    ("crops", r"load_data: augment must be one of .*, got 'crops' \(did you mean 'crop'\?\)"),
    ("crop,mixup", "load_data: augment must be one of .*, got 'mixup'"),
    ("crop,none", "load_data: augment must be one of .*, got 'none'"),
    ("", "load_data: augment must be one of .*, got ''"),
    ("Auto", r"got 'Auto' \(did you mean 'auto'\?\)"),
])
def test_unknown_augmentations_are_answered_with_the_nearest(text, match):
    with pytest.raises(ValueError, match=match):
        parse_augment(text)
