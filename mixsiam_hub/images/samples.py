"""Pictures for those who have none at hand: the demonstration's and the tests', drawn by rule or cut from photos."""

from __future__ import annotations

import colorsys
import importlib.util
import math
import random
from collections.abc import Callable
from pathlib import Path

from PIL import Image, ImageDraw, ImageOps

from mixsiam_hub.atomic import make_folder
from mixsiam_hub.images.sheet import write_png

Colour = tuple[int, int, int]

_PHOTOS = (
    "astronaut",
    "camera",
    "chelsea",
    "coffee",
    "coins",
    "grass",
    "gravel",
    "hubble_deep_field",
    "moon",
    "rocket",
)
"""Of scikit-image's, those that are in its wheel, in the public domain or given to it."""
_CROPS = 6
_CROP_PX = 128
_OVERSAMPLING = 3  # ImageDraw does not smooth edges: draw larger, then shrink


def draw_samples(count: int = 64, seed: int = 0) -> dict[str, Image.Image]:
    """Draws images of eight families of shapes and textures, so that nearest neighbours can be judged by eye.

    Args:
        count: How many; the families take turns.
        seed: Same seed, same images, whatever the count.

    Returns:
        File name (`disc_03.png`) -> RGB image, edges of odd length from 49 to 199 px; sorted by name.
    """
    samples = {}
    for i in range(count):
        family = list(_FAMILIES)[i % len(_FAMILIES)]
        name = f"{family}_{i // len(_FAMILIES):02d}.png"
        samples[name] = _sample(family, random.Random(f"{seed}/{name}"))
    return dict(sorted(samples.items()))


def photo_crops(seed: int = 0) -> dict[str, Image.Image]:
    """Cuts crops from photos that scikit-image brings: crops of one photo should be one another's neighbours.

    Args:
        seed: Same seed, same crops.

    Returns:
        File name (`coffee_3.png`) -> RGB image of 128 px, six of each photo, sorted by name; none without scikit-image.
    """
    found = importlib.util.find_spec("skimage")  # Not imported: its photos are files.
    folders = [Path(place, "data") for place in (found and found.submodule_search_locations) or ()]
    photos = [path for folder in folders for path in sorted(folder.glob("*")) if path.stem in _PHOTOS]
    crops = {}
    for path in photos:
        with Image.open(path) as opened:
            photo = opened.convert("RGB")
        for number in range(_CROPS):
            crops[f"{path.stem}_{number}.png"] = _crop(photo, random.Random(f"{seed}/{path.stem}/{number}"))
    return crops


def write_samples(folder: Path) -> list[Path]:
    """Writes images for a demonstration into a folder, which is made if need be, and returns their paths.

    They are crops of photos where scikit-image is installed, else drawn.

    Raises:
        OutputError: The folder cannot be made.
    """
    make_folder(folder)
    images = photo_crops() or draw_samples()
    for name, image in images.items():
        write_png(folder / name, image)
    return [folder / name for name in images]


def _crop(photo: Image.Image, draws: random.Random) -> Image.Image:
    """Returns a random square of a photo, of half to four fifths of its shorter side."""
    edge = round(draws.uniform(0.5, 0.8) * min(photo.size))
    left, top = draws.randint(0, photo.width - edge), draws.randint(0, photo.height - edge)
    return photo.crop((left, top, left + edge, top + edge)).resize((_CROP_PX, _CROP_PX), Image.Resampling.LANCZOS)


def _sample(family: str, rng: random.Random) -> Image.Image:
    width = rng.randrange(69, 200, 2)
    height = min(199, max(49, int(width * rng.uniform(0.7, 1.4)))) | 1
    canvas = Image.new("RGB", (width * _OVERSAMPLING, height * _OVERSAMPLING))
    paper, ink = _colours(rng)
    drawn = _FAMILIES[family](canvas.size, paper, ink, rng)
    return drawn.resize((width, height), Image.Resampling.BOX)


def _colours(rng: random.Random) -> tuple[Colour, Colour]:
    """A pale or dark ground and a strong colour on it, of another hue."""
    hue = rng.random()
    ground = (rng.uniform(0.05, 0.22), rng.uniform(0.9, 1)) if rng.random() < 0.7 else (rng.uniform(0.3, 0.6), 0.22)
    strong = (rng.uniform(0.55, 0.85), rng.uniform(0.75, 0.95))
    return _rgb((hue + rng.uniform(0.3, 0.7)) % 1, *ground), _rgb(hue, *strong)


def _rgb(hue: float, saturation: float, value: float) -> Colour:
    red, green, blue = colorsys.hsv_to_rgb(hue, saturation, value)
    return round(red * 255), round(green * 255), round(blue * 255)


def _place(size: tuple[int, int], rng: random.Random) -> tuple[float, float, float]:
    """Centre x, centre y and radius of a shape that stays inside."""
    short = min(size)
    radius = short * rng.uniform(0.22, 0.42)
    return rng.uniform(radius, size[0] - radius), rng.uniform(radius, size[1] - radius), radius


def _disc(size: tuple[int, int], paper: Colour, ink: Colour, rng: random.Random) -> Image.Image:
    image = Image.new("RGB", size, paper)
    x, y, radius = _place(size, rng)
    ImageDraw.Draw(image).ellipse((x - radius, y - radius, x + radius, y + radius), fill=ink)
    return image


def _ring(size: tuple[int, int], paper: Colour, ink: Colour, rng: random.Random) -> Image.Image:
    image = Image.new("RGB", size, paper)
    x, y, radius = _place(size, rng)
    box = (x - radius, y - radius, x + radius, y + radius)
    ImageDraw.Draw(image).ellipse(box, outline=ink, width=round(radius * rng.uniform(0.2, 0.4)))
    return image


def _cross(size: tuple[int, int], paper: Colour, ink: Colour, rng: random.Random) -> Image.Image:
    image = Image.new("RGB", size, paper)
    x, y, radius = _place(size, rng)
    draw, angle = ImageDraw.Draw(image), rng.uniform(-0.3, 0.3)
    for turn in (angle, angle + math.pi / 2):
        dx, dy = radius * math.cos(turn), radius * math.sin(turn)
        draw.line((x - dx, y - dy, x + dx, y + dy), ink, round(radius * 0.5))
    return image


def _polygon(size: tuple[int, int], paper: Colour, ink: Colour, rng: random.Random) -> Image.Image:
    image = Image.new("RGB", size, paper)
    ImageDraw.Draw(image).regular_polygon(_place(size, rng), rng.choice((3, 4, 5)), rng.uniform(0, 360), fill=ink)
    return image


def _stripes(size: tuple[int, int], paper: Colour, ink: Colour, rng: random.Random) -> Image.Image:
    side = 2 * max(size)
    image = Image.new("RGB", (side, side), paper)
    draw, period = ImageDraw.Draw(image), min(size) / rng.uniform(3, 7)
    for i in range(math.ceil(side / period)):
        draw.rectangle((i * period, 0, (i + 0.5) * period, side), fill=ink)
    turned = image.rotate(rng.choice((0, 45, 90, 135)) + rng.uniform(-10, 10), Image.Resampling.BICUBIC)
    left, top = (side - size[0]) // 2, (side - size[1]) // 2
    return turned.crop((left, top, left + size[0], top + size[1]))


def _checks(size: tuple[int, int], paper: Colour, ink: Colour, rng: random.Random) -> Image.Image:
    image = Image.new("RGB", size, paper)
    draw, edge = ImageDraw.Draw(image), min(size) / rng.uniform(2.5, 6)
    for row in range(math.ceil(size[1] / edge)):
        for column in range(row % 2, math.ceil(size[0] / edge), 2):
            draw.rectangle((column * edge, row * edge, (column + 1) * edge - 1, (row + 1) * edge - 1), fill=ink)
    return image


def _gradient(size: tuple[int, int], paper: Colour, ink: Colour, rng: random.Random) -> Image.Image:
    ramp = Image.linear_gradient("L").rotate(rng.choice((0, 90, 180, 270))).resize(size, Image.Resampling.BICUBIC)
    return ImageOps.colorize(ramp, ink, paper)


def _clouds(size: tuple[int, int], paper: Colour, ink: Colour, rng: random.Random) -> Image.Image:
    cells = rng.randrange(5, 14)
    grid = Image.frombytes("L", (cells, cells), rng.randbytes(cells * cells))
    return ImageOps.colorize(grid.resize(size, Image.Resampling.BICUBIC), ink, paper)


_FAMILIES: dict[str, Callable[[tuple[int, int], Colour, Colour, random.Random], Image.Image]] = {
    "disc": _disc,
    "ring": _ring,
    "cross": _cross,
    "polygon": _polygon,
    "stripes": _stripes,
    "checks": _checks,
    "gradient": _gradient,
    "clouds": _clouds,
}
