"""One image: decoded with Pillow, cropped, resized, as a tensor."""

import io

import numpy as np
import torch

from .errors import DataError

DEEP_MODES = ("I", "F")  # Pillow clips them to 8 bits without a word; I;16 and its like begin with I too


def decode_image(raw: bytes | np.ndarray, where: str):
    """Return the Pillow image in `raw`, in RGB, or as it is when `raw` is an array of pixels, (H, W) or (H, W, 3)
    uint8.

    Grayscale and palettes become RGB; transparency is dropped; an image is turned as its EXIF orientation says. Raises
    DataError with `where` for bytes that are no image, a truncated one, or one of more than 8 bits a channel.
    """
    from PIL import Image

    if isinstance(raw, np.ndarray):
        return Image.fromarray(raw)
    try:
        image = Image.open(io.BytesIO(raw))
        if not image.mode.startswith(DEEP_MODES):
            image.load()  # after it, for readers that turn the image themselves have taken the orientation out
            orientation = _orientation(image)
            if "transparency" in image.info:
                image = image.convert("RGBA")  # straight to RGB, Pillow warns
            return _upright(image.convert("RGB"), orientation)
    except Exception as error:  # Pillow's decoders raise whatever the broken bytes lead them into
        raise DataError(f"decode_image: image must be one that Pillow can read, got {where} ({error})") from error
    raise DataError(f"decode_image: image must have 8 bits a channel, got mode {image.mode} in {where}")


def _orientation(image) -> int:
    """Return how the image was held, 1..8 of EXIF; 1, upright, where that cannot be read."""
    try:
        return image.getexif().get(0x0112, 1)
    except Exception:  # of broken EXIF, which leaves the pixels as they are
        return 1


def _upright(image, orientation: int):
    from PIL.Image import Transpose

    turns = {2: Transpose.FLIP_LEFT_RIGHT, 3: Transpose.ROTATE_180, 4: Transpose.FLIP_TOP_BOTTOM,
             5: Transpose.TRANSPOSE, 6: Transpose.ROTATE_270, 7: Transpose.TRANSVERSE, 8: Transpose.ROTATE_90}
    return image.transpose(turns[orientation]) if orientation in turns else image


def pixels(image) -> torch.Tensor:
    """Return (C, H, W) uint8 of a Pillow image."""
    array = torch.from_numpy(np.array(image))
    return array[None] if array.ndim == 2 else array.permute(2, 0, 1)


def fit(image, size: tuple[int, int], *, enlarge: float = 1.0):
    """Return the centre of `image`, (height, width) `size`, after scaling it until it just covers `enlarge` times that.
    """
    height, width = size
    if enlarge == 1.0 and image.size == (width, height):
        return image
    factor = enlarge * max(height / image.height, width / image.width)
    scaled = (max(round(image.width * factor), width), max(round(image.height * factor), height))
    left, top = (scaled[0] - width) // 2, (scaled[1] - height) // 2
    return image.resize(scaled, _bilinear()).crop((left, top, left + width, top + height))


def crop_resized(image, box: tuple[int, int, int, int], size: tuple[int, int]):
    """Return the part `box` (left, top, right, bottom) of `image`, scaled to (height, width) `size`."""
    return image.resize(size[::-1], _bilinear(), box=box)


def _bilinear():
    from PIL import Image

    return Image.Resampling.BILINEAR
