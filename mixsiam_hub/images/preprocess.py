"""From upright RGB to the network's input: the one implementation that training, export and inference share."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mixsiam_hub.errors import ImageError
from mixsiam_hub.images.kinds import ImageSource, describe
from mixsiam_hub.images.load import Draft, load_image
from mixsiam_hub.model.config import Preprocessing

DECODES = ("exact", "fast")
"""How encoded images are decoded: in full, or JPEGs at a reduced scale where the network's input is far smaller."""
FAST_SCALE = 2
"""A reduced image is at least so many times as large as it is then resized to."""
MAX_RESIZED_PIXELS = 16_000_000
"""Largest image between resize and crop: 64 MB in Pillow. At 224 px that is a strip 318 times as long as wide."""


def resize_and_crop(image: Image.Image, pre: Preprocessing, draft: Draft | None = None) -> NDArray[np.uint8]:
    """Brings the short edge to `resize_px` and keeps the centre.

    Equal, bit for bit, to torchvision's Resize(resize_px, interpolation, antialias=True) and CenterCrop(input_px) on
    PIL images: the long edge rounds down and the crop's offset rounds half to even.

    Args:
        image: Upright RGB of any size, as `load_image` gives it.
        pre: The encoder's preprocessing.
        draft: With which it was loaded: then it lies where the image in full would.

    Returns:
        (S, S, 3) uint8, S = input_px; read-only.

    Raises:
        ImageError: A strip so long that its resized image would exceed MAX_RESIZED_PIXELS.
    """
    size = _resized(draft.size if draft else image.size, pre.resize_px)
    if size[0] * size[1] > MAX_RESIZED_PIXELS:
        raise ImageError(
            f"{image.width}x{image.height} would be resized to {size[0]}x{size[1]}, more than {MAX_RESIZED_PIXELS} "
            "pixels; crop the strip first"
        )
    resampling = Image.Resampling[pre.interpolation.upper()]
    box = draft.box if draft else None
    image = image.resize(size, resampling, box) if box else _resize(image, size, resampling)
    left, top = (round((edge - pre.input_px) / 2) for edge in size)
    if size != (pre.input_px, pre.input_px):
        image = image.crop((left, top, left + pre.input_px, top + pre.input_px))
    return np.asarray(image)


def _byte_table(pre: Preprocessing) -> NDArray[np.float32]:
    """Returns what each of the 256 values of a byte becomes in each channel, (3, 256) float32.

    Scaled to [0, 1], the mean subtracted, divided by the std: in torchvision's order of operations, so that the last
    bit is the same.
    """
    scaled = np.arange(256, dtype=np.float32) / np.float32(255)
    mean, std = (np.array(values, np.float32)[:, None] for values in (pre.mean, pre.std))
    table: NDArray[np.float32] = (scaled - mean) / std
    return table


def normalise(pixels: NDArray[np.uint8], pre: Preprocessing) -> NDArray[np.float32]:
    """Scales to [0, 1], subtracts the mean, divides by the std, and puts the channels first.

    Args:
        pixels: (..., S, S, 3) uint8 RGB; one image or a batch.
        pre: The encoder's preprocessing.

    Returns:
        (..., 3, S, S) float32, C-contiguous.
    """
    # Looking values up is as fast as arithmetic on the whole image.
    out = np.empty((*pixels.shape[:-3], 3, *pixels.shape[-3:-1]), np.float32)
    for channel, table in enumerate(_byte_table(pre)):
        out[..., channel, :, :] = table.take(pixels[..., channel])
    return out


def preprocess(image: Image.Image, pre: Preprocessing) -> NDArray[np.float32]:
    """Returns the network's input for one upright RGB image, (3, S, S) float32.

    Raises:
        ImageError: As `resize_and_crop`.
    """
    return normalise(resize_and_crop(image, pre), pre)


@dataclass(frozen=True)
class ImageFacts:
    """What is known of an image once it was decoded.

    Attributes:
        height: Of the upright image, in pixels.
        width: Of the upright image, in pixels.
        sha256: Of the encoded file, in hex; None where it was not asked for, and of pixels.
    """

    height: int
    width: int
    sha256: str | None


def load_pixels(source: ImageSource, pre: Preprocessing, *, name: str | None = None) -> NDArray[np.uint8]:
    """Decodes, resizes and crops one image.

    Args:
        source: As `load_image` takes it.
        pre: The encoder's preprocessing.
        name: What to call it in an error.

    Returns:
        (S, S, 3) uint8, S = input_px; read-only.

    Raises:
        ImageError: As `load_image` and `resize_and_crop`; the message names the image.
    """
    return load_pixels_and_facts(source, pre, name=name)[0]


def load_pixels_and_facts(
    source: ImageSource,
    pre: Preprocessing,
    *,
    name: str | None = None,
    with_sha256: bool = False,
    decode: str = DECODES[0],
) -> tuple[NDArray[np.uint8], ImageFacts]:
    """Does what `load_pixels` does, and says what was decoded: what a worker thread does for each image.

    Args:
        source: As `load_image` takes it.
        pre: The encoder's preprocessing.
        name: What to call it in an error.
        with_sha256: Compute the sha256 of the encoded file too.
        decode: One of DECODES.

    Returns:
        Pixels, (S, S, 3) uint8, S = input_px, read-only; and the facts.

    Raises:
        ImageError: As `load_image` and `resize_and_crop`; the message names the image.
    """
    digest = hashlib.sha256() if with_sha256 else None
    is_encoded = not isinstance(source, Image.Image | np.ndarray)
    draft = Draft(FAST_SCALE * pre.resize_px) if decode == "fast" and is_encoded else None
    image = load_image(source, name=name, digest=digest, draft=draft)
    width, height = draft.size if draft else image.size
    facts = ImageFacts(height, width, digest.hexdigest() if digest and is_encoded else None)
    try:
        return resize_and_crop(image, pre, draft), facts
    except ImageError as error:
        raise ImageError(f"{name or describe(source)}: {error}") from None


def _resize(image: Image.Image, size: tuple[int, int], resampling: Image.Resampling) -> Image.Image:
    """Resizes one axis after the other, since Pillow's own order depends on its version, and each pass rounds.

    This is Pillow 13's order; older ones always take the width first.
    """
    width, height = image.size
    shrinks_most_in_height = size[1] < height and height - size[1] > 2 * (width - size[0])
    between = (width, size[1]) if shrinks_most_in_height else (size[0], height)
    for step in (between, size):
        if step != image.size:
            image = image.resize(step, resampling)
    return image


def _resized(size: tuple[int, int], short_px: int) -> tuple[int, int]:
    """(width, height) after the short edge is brought to `short_px`."""
    width, height = size
    if width <= height:
        return short_px, int(short_px * height / width)
    return int(short_px * width / height), short_px
