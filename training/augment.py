"""One random view of an image: SimSiam's augmentation (MoCo v2's), each step drawn from the view's own stream.

Every number is drawn whether its step acts or not, so that switching one step off leaves the others as they were. The
crop and the flip are done here, where the image is; the colours are changed by `recolour`, where the network is.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mixsiam_hub.training.recolour import MAX_SIGMA_PX, UNCHANGED

JITTER = (0.4, 0.4, 0.4, 0.1)
"""Range of brightness, contrast and saturation (factor 1 +- x) and of hue (+- x turns)."""
BLUR_SIGMA_PX = (0.1, MAX_SIGMA_PX)
SHRUNK_TO = 1 / 3
"""Smallest edge of a view that is shrunk and enlarged again, as a share of its edge."""
KERNELS = (
    Image.Resampling.BOX,
    Image.Resampling.BILINEAR,
    Image.Resampling.HAMMING,
    Image.Resampling.BICUBIC,
    Image.Resampling.LANCZOS,
)
"""What shrinks and enlarges such a view, each drawn anew."""
CROP_RATIO = (3 / 4, 4 / 3)

Box = tuple[float, float, float, float]
"""(left, top, right, bottom) in pixels."""


@dataclass(frozen=True)
class Augmentation:
    """How views are drawn.

    Attributes:
        size_px: Edge of the square view.
        crop_scale: Smallest and largest share of the image's area that a crop takes.
        flip: Probability of a horizontal flip.
        jitter: Probability of colour jitter.
        grey: Probability of losing all colour.
        blur: Probability of a Gaussian blur.
        shrink: Probability of few pixels: the view is shrunk to a third of its edge or more, and enlarged again.
    """

    size_px: int
    crop_scale: tuple[float, float] = (0.2, 1.0)
    flip: float = 0.5
    jitter: float = 0.8
    grey: float = 0.2
    blur: float = 0.5
    shrink: float = 0.0


def draw_view(
    image: Image.Image, how: Augmentation, rng: np.random.Generator
) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """Draws one view.

    Args:
        image: Upright, mode RGB.
        how: The probabilities.
        rng: The view's own stream.

    Returns:
        As `cut_view`.
    """
    return cut_view(image, draw_crop(image.width, image.height, how.crop_scale, rng), how, rng)


def cut_view(
    image: Image.Image, box: Box, how: Augmentation, rng: np.random.Generator
) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """Cuts a view out of an image; its colours are still the image's, for `recolour` to change many at once.

    Args:
        image: Upright, mode RGB.
        box: What becomes the view.
        how: The probabilities.
        rng: The view's own stream, from which its box was drawn.

    Returns:
        (size_px, size_px, 3) uint8 RGB; what is to be done to its colours, (COLOURS,) float32.
    """
    is_flipped, is_jittered, is_grey, is_blurred = rng.random(4) < (how.flip, how.jitter, how.grey, how.blur)
    factors = UNCHANGED + is_jittered * (rng.uniform(-1, 1, size=4) * JITTER)
    order = rng.permutation(4)
    sigma = is_blurred * rng.uniform(*BLUR_SIGMA_PX)
    if rng.random() < how.shrink:
        edge = max(1, round(how.size_px * rng.uniform(SHRUNK_TO, 1)))
        shrink_by, enlarge_by = (KERNELS[number] for number in rng.integers(len(KERNELS), size=2))
        view = image.resize((edge, edge), shrink_by, box).resize((how.size_px, how.size_px), enlarge_by)
    else:
        view = image.resize((how.size_px, how.size_px), Image.Resampling.BILINEAR, box)
    pixels = np.asarray(view)
    if is_flipped:
        pixels = pixels[:, ::-1]
    return pixels, np.array([*factors, *order, is_grey, sigma], np.float32)


def draw_crop(width: int, height: int, scale: tuple[float, float], rng: np.random.Generator) -> Box:
    """Draws the box of a random resized crop of an image, as torchvision's RandomResizedCrop does.

    Returns:
        Whole pixels inside the image; the largest centred box of an allowed shape if ten draws do not fit.
    """
    areas = height * width * rng.uniform(*scale, size=10)
    ratios = np.exp(rng.uniform(math.log(CROP_RATIO[0]), math.log(CROP_RATIO[1]), size=10))
    corner = rng.random(2)
    for area, ratio in zip(areas, ratios, strict=True):
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            left, top = int(corner[1] * (width - w + 1)), int(corner[0] * (height - h + 1))
            return left, top, left + w, top + h
    w = min(width, max(1, round(height * CROP_RATIO[1])))
    h = min(height, max(1, round(width / CROP_RATIO[0])))
    left, top = (width - w) // 2, (height - h) // 2
    return left, top, left + w, top + h
