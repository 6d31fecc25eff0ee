"""A picture of many images."""

import torch

from ..data import Data
from .plots import figure_of, write_figure

_COLUMNS = 8


def contact_sheet(path, data: Data, groups: dict[str, torch.Tensor], scores: torch.Tensor, title: str) -> None:
    """Write a PNG of training images, group by group, each with its class and its score.

    Args:
        groups: {name: rows of the training set}.
        scores: (train_size,), as multiples of the average, written above each.
        title: of the whole.
    """
    lines = [(name, rows[begin:begin + _COLUMNS]) for name, rows in groups.items()
             for begin in range(0, len(rows), _COLUMNS)]
    figure = figure_of(1.1 * _COLUMNS, 0.5 + 1.4 * len(lines))
    figure.suptitle(title, fontsize=9)
    grid = figure.subplots(len(lines), _COLUMNS, squeeze=False)
    pictures = _pictures(data, torch.cat([rows for _, rows in lines]))
    for (group, rows), axes in zip(lines, grid, strict=True):
        axes[0].set_ylabel(group)
        for axis in axes:
            axis.set_xticks([]), axis.set_yticks([])
            axis.set_frame_on(False)
        for row, axis in zip(rows.tolist(), axes, strict=False):
            label = int(data.train_labels[row])
            name = data.class_names[label] if data.class_names else label
            axis.imshow(pictures[row], cmap="gray", vmin=0, vmax=1)
            axis.set_title(f"{name}\n{scores[row]:.2g} x average", fontsize=7)
    write_figure(figure, path)


def _pictures(data: Data, rows: torch.Tensor) -> dict:
    """Return {row: (H, W, 3) or (H, W) array in 0..1}, each stretched to its own range."""
    wanted, found = set(rows.tolist()), {}
    for batch in data.still_batches(256):
        for row, image in zip(batch.rows.tolist(), batch.images, strict=True):
            if row in wanted:
                low, high = image.amin(dim=(1, 2), keepdim=True), image.amax(dim=(1, 2), keepdim=True)
                picture = ((image - low) / (high - low).clamp_min(1e-12)).cpu().permute(1, 2, 0).numpy()
                found[row] = picture if picture.shape[2] == 3 else picture[..., 0]
    return found
