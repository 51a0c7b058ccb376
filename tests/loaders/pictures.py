"""The pictures that every loader must agree on: sixteen, upright, RGB or grey, without a colour profile."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image
from skimage import data

from mixsiam_hub.images.samples import draw_samples

FULL_COLOUR, HALF_COLOUR = 0, 2
"""Pillow's `subsampling` of a JPEG: colour at full resolution (4:4:4), or at half of it (4:2:0) as in most photos."""


def upright_pictures(folder: Path) -> list[Path]:
    """Writes sixteen pictures: photos that ship inside scikit-image, parts of them, and drawn ones.

    Odd and even sizes, tall and wide ones, four grey ones, three tiny ones, two of several megapixels; PNG and JPEG.

    Args:
        folder: Where; it exists.

    Returns:
        The files, in a fixed order.
    """
    astronaut, coffee, chelsea = (Image.fromarray(load()) for load in (data.astronaut, data.coffee, data.chelsea))
    rocket, camera, coins = (Image.fromarray(load()) for load in (data.rocket, data.camera, data.coins))
    moon, hubble = Image.fromarray(data.moon()), Image.fromarray(data.hubble_deep_field())
    drawn = draw_samples(4, seed=3)
    pictures: dict[str, Image.Image] = {
        "astronaut.png": astronaut,
        "coffee.jpg": coffee,
        "chelsea.png": chelsea,
        "rocket.jpg": rocket,
        "camera_grey.png": camera,
        "coins_grey.jpg": coins,
        "moon_grey.png": moon,
        "tall.png": astronaut.crop((37, 1, 250, 500)),
        "wide.jpg": coffee.crop((0, 90, 599, 211)),
        "tiny.png": chelsea.crop((90, 80, 121, 111)),
        "tiny_grey.png": coins.crop((20, 20, 43, 61)),
        "tiny_drawn.png": draw_samples(1, seed=4).popitem()[1].resize((17, 13), Image.Resampling.BOX),
        "large.jpg": astronaut.resize((2049, 1801), Image.Resampling.BICUBIC),
        "large_noisy.png": _noisy(hubble).resize((1999, 1501), Image.Resampling.BICUBIC),
        **{f"drawn_{name}": image for name, image in list(drawn.items())[:2]},
    }
    for name, image in pictures.items():
        options = {"quality": 92, "subsampling": HALF_COLOUR if name == "large.jpg" else FULL_COLOUR}
        image.save(folder / name, **(options if name.endswith(".jpg") else {}))
    return [folder / name for name in pictures]


def _noisy(image: Image.Image) -> Image.Image:
    """Adds noise, so that a resize which skips pixels shows."""
    noise = np.random.default_rng(0).normal(0, 12, (image.height, image.width, 3))
    return Image.fromarray((np.asarray(image.convert("RGB")) + noise).clip(0, 255).astype(np.uint8))
