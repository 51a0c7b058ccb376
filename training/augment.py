"""One random view of an image: SimSiam's augmentation (MoCo v2's), each step drawn from the view's own stream.

Every number is drawn whether its step acts or not, so that switching one step off leaves the others as they were.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter
from torchvision.transforms import functional

JITTER = (0.4, 0.4, 0.4, 0.1)
"""Range of brightness, contrast and saturation (factor 1 +- x) and of hue (+- x turns)."""
BLUR_SIGMA_PX = (0.1, 2.0)
CROP_RATIO = (3 / 4, 4 / 3)


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
    """

    size_px: int
    crop_scale: tuple[float, float] = (0.2, 1.0)
    flip: float = 0.5
    jitter: float = 0.8
    grey: float = 0.2
    blur: float = 0.5


def draw_view(image: Image.Image, how: Augmentation, rng: np.random.Generator) -> NDArray[np.uint8]:
    """Draws one view.

    Args:
        image: Upright, mode RGB.
        how: The probabilities.
        rng: The view's own stream.

    Returns:
        (size_px, size_px, 3) uint8 RGB.
    """
    top, left, height, width = draw_crop(image.height, image.width, how.crop_scale, rng)
    acts = rng.random(4) < (how.flip, how.jitter, how.grey, how.blur)
    factors = rng.uniform(-1, 1, size=4) * JITTER
    order = rng.permutation(4)
    sigma = rng.uniform(*BLUR_SIGMA_PX)

    view = functional.resized_crop(image, top, left, height, width, [how.size_px, how.size_px], antialias=True)
    if acts[1]:
        view = jitter_colours(view, factors, order)
    if acts[2]:
        view = functional.rgb_to_grayscale(view, num_output_channels=3)
    if acts[3]:
        view = view.filter(ImageFilter.GaussianBlur(sigma))
    if acts[0]:
        view = functional.hflip(view)
    return np.asarray(view)


def draw_crop(
    height: int, width: int, scale: tuple[float, float], rng: np.random.Generator
) -> tuple[int, int, int, int]:
    """Draws the box of a random resized crop, as torchvision's RandomResizedCrop does.

    Returns:
        (top, left, height, width) in pixels, inside the image; the largest centred box of an allowed shape if ten
        draws do not fit.
    """
    areas = height * width * rng.uniform(*scale, size=10)
    ratios = np.exp(rng.uniform(math.log(CROP_RATIO[0]), math.log(CROP_RATIO[1]), size=10))
    corner = rng.random(2)
    for area, ratio in zip(areas, ratios, strict=True):
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            return int(corner[0] * (height - h + 1)), int(corner[1] * (width - w + 1)), h, w
    w = min(width, max(1, round(height * CROP_RATIO[1])))
    h = min(height, max(1, round(width / CROP_RATIO[0])))
    return (height - h) // 2, (width - w) // 2, h, w


def jitter_colours(image: Image.Image, factors: NDArray[np.float64], order: NDArray[np.int64]) -> Image.Image:
    """Shifts brightness, contrast, saturation and hue, in the given order.

    Args:
        image: Mode RGB.
        factors: (4,) shifts of brightness, contrast, saturation (0 is none, -1 takes all) and hue (in turns).
        order: (4,) permutation of 0..3.
    """
    for step in order:
        if step == 3:
            image = functional.adjust_hue(image, float(factors[3]))
        else:
            adjust = (functional.adjust_brightness, functional.adjust_contrast, functional.adjust_saturation)[step]
            image = adjust(image, 1 + float(factors[step]))
    return image
