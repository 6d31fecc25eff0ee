"""Augmentation of training images, uint8 throughout: the parameters are drawn on the CPU, then applied anywhere."""

import math

import torch
import torch.nn.functional as F

from mbq_train._names import look_up

RESIZED_CROP = "resized-crop"
NAMES = ("crop", "flip", "cutout", RESIZED_CROP)
AREAS, RATIOS, ATTEMPTS = (0.08, 1.0), (3 / 4, 4 / 3), 10  # of a resized crop


def parse_augment(text: str) -> tuple[str, ...]:
    """Return the augmentations in a comma list, () for `none`. Raises ValueError for an unknown one, with the nearest
    name."""
    names = tuple(name.strip() for name in text.split(","))
    if names == ("none",):
        return ()
    for name in names:
        look_up("load_data", dict.fromkeys(NAMES if len(names) > 1 else (*NAMES, "none", "auto")), name,
                argument="augment")
    return names


def draw(count: int, size: tuple[int, int], generator: torch.Generator) -> torch.Tensor:
    """Return (count, 5) int64 for images of `size`: top and left of the crop, flip, row and column of the cutout's
    centre.

    All are drawn whatever is used, so that an augmentation does not change the others.
    """
    height, width = size
    ends = torch.tensor([2 * (height // 8) + 1, 2 * (width // 8) + 1, 2, height, width])
    return (torch.rand(count, 5, generator=generator, dtype=torch.float64) * ends).long()


def augment_images(images: torch.Tensor, parameters: torch.Tensor, names: tuple[str, ...],
                   fill: torch.Tensor) -> torch.Tensor:
    """Crop, flip and cutout, those of them in `names`, in this order; a resized crop is not done here.

    Args:
        images: (N, C, H, W) uint8.
        parameters: (N, 5) int64 from `draw`, on the device of images.
        names: crop - out of the image with H // 8 and W // 8 black pixels more on every side; flip - left to right
            with probability 1/2; cutout - a square half as high and wide as the image, at the border less of it
            (DeVries and Taylor, 2017, arXiv 1708.04552).
        fill: (1, C, 1, 1) uint8 - colour of the cutout.
    """
    top, left, flip, cut_row, cut_column = parameters.unbind(1)
    height, width = images.shape[-2:]
    rows = torch.arange(height, device=images.device).expand(len(images), -1)
    columns = torch.arange(width, device=images.device).expand(len(images), -1)
    cut = _near(rows, cut_row, height // 4)[:, None, :, None] & _near(columns, cut_column, width // 4)[:, None, None, :]
    if "flip" in names:
        columns = torch.where(flip.bool()[:, None], width - 1 - columns, columns)
    if "crop" in names:
        images = F.pad(images, (width // 8, width // 8, height // 8, height // 8))
        rows, columns = rows + top[:, None], columns + left[:, None]
    if "crop" in names or "flip" in names:
        image = torch.arange(len(images), device=images.device)[:, None, None, None]
        channel = torch.arange(images.shape[1], device=images.device)[None, :, None, None]
        images = images[image, channel, rows[:, None, :, None], columns[:, None, None, :]]
    return torch.where(cut, fill, images) if "cutout" in names else images


def _near(positions: torch.Tensor, centre: torch.Tensor, half: int) -> torch.Tensor:
    distance = positions - centre[:, None]
    return (distance >= -half) & (distance < half)


def resized_crop_box(size: tuple[int, int], generator: torch.Generator) -> tuple[int, int, int, int]:
    """Return (left, top, right, bottom) in an image of (height, width) `size`: 8 to 100 % of its area, 3:4 to 4:3.

    As Inception (Szegedy et al., 2014, arXiv 1409.4842, section 6) and torchvision: ten attempts, then the largest
    box in the centre.
    """
    height, width = size
    for area, ratio, top, left in torch.rand(ATTEMPTS, 4, generator=generator, dtype=torch.float64).tolist():
        area = height * width * (AREAS[0] + area * (AREAS[1] - AREAS[0]))
        ratio = RATIOS[0] * (RATIOS[1] / RATIOS[0]) ** ratio
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            top, left = int(top * (height - h + 1)), int(left * (width - w + 1))
            return left, top, left + w, top + h
    w, h = min(width, max(round(height * RATIOS[1]), 1)), min(height, max(round(width / RATIOS[0]), 1))
    return (width - w) // 2, (height - h) // 2, (width - w) // 2 + w, (height - h) // 2 + h
