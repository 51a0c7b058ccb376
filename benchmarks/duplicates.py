"""Near duplicates: the cosine of copies to their original, that of other images, and the threshold between the two.

Copies are made of some images of a set, and each copy is looked up among all images of the set: behind the head, by the
first 64 numbers of that, and by the pooled features. What counts for a threshold is how many copies it finds and how
many pairs of different images reach it, too. Such a pair is a false one unless it shows the same picture twice: those
most alike are listed at the end, for you to look at.
"""

from __future__ import annotations

import argparse
import io
import math
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from machine import command_and_machine
from numpy.typing import NDArray
from PIL import Image, ImageEnhance, ImageOps

from mixsiam_hub import ImageEncoder
from mixsiam_hub.errors import MixsiamError
from mixsiam_hub.images.load import load_image
from mixsiam_hub.images.preprocess import load_pixels
from mixsiam_hub.images.sources import ImageSet
from mixsiam_hub.model.config import ModelConfig
from mixsiam_hub.model.figures import FIRST_DIM
from mixsiam_hub.model.hub import resolve
from mixsiam_hub.training.data import open_images, sample
from mixsiam_hub.training.recipe import data_name
from mixsiam_hub.vectors.cosine import row_cosines
from mixsiam_hub.vectors.nearest import nearest, nearest_others

THRESHOLDS = (0.5, 0.6, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95, 0.97, 0.98, 0.99)
MILLION = 1_000_000
QUALITY = 50
LISTED = 10
"""Pairs of images that are listed as the most alike."""

Vectors = NDArray[np.float32]


def jpeg(image: Image.Image) -> Image.Image:
    """Returns the image after JPEG of QUALITY."""
    file = io.BytesIO()
    image.save(file, "JPEG", quality=QUALITY)
    return Image.open(file)


def half(image: Image.Image) -> Image.Image:
    """Returns it at half its width and height."""
    return image.resize((max(1, image.width // 2), max(1, image.height // 2)), Image.Resampling.LANCZOS)


def cropped(image: Image.Image, share: float) -> Image.Image:
    """Returns it without this share of its width on the left and right, and of its height above and below."""
    x, y = image.width * share, image.height * share
    return image.crop((round(x), round(y), round(image.width - x), round(image.height - y)))


COPIES: Mapping[str, Callable[[Image.Image], Image.Image]] = {
    f"JPEG, quality {QUALITY}": jpeg,
    "half the size": half,
    f"half the size, then quality {QUALITY}": lambda image: jpeg(half(image)),
    "cropped, 1/20 off each side": lambda image: cropped(image, 1 / 20),
    "cropped, 1/10 off each side": lambda image: cropped(image, 1 / 10),
    "greyscale": lambda image: image.convert("L"),
    "20 % brighter": lambda image: ImageEnhance.Brightness(image).enhance(1.2),
    "mirrored": ImageOps.mirror,
}


@dataclass(frozen=True)
class Space:
    """The vectors of one way to embed.

    Attributes:
        name: Of the way.
        originals: (N, K), one of each image.
        copies: Kind of copy -> (C, K), of the first C images.
    """

    name: str
    originals: Vectors
    copies: Mapping[str, Vectors]

    def first(self, dim: int) -> Space:
        """Returns the same with only the first `dim` numbers of each vector."""
        copies = {kind: vectors[:, :dim] for kind, vectors in self.copies.items()}
        return Space(f"embedding, the first {dim} numbers", self.originals[:, :dim], copies)


@dataclass(frozen=True)
class Found:
    """What looking up copies of one kind gave.

    Attributes:
        own: (C,) cosine of each copy to its original.
        first: (C,) bool, whether no image is nearer to the copy than its original.
        other: (C,) cosine of each copy to the best other image.
    """

    own: NDArray[np.float64]
    first: NDArray[np.bool_]
    other: NDArray[np.float64]


def embed(encoder: ImageEncoder, images: ImageSet, copied: int, config: ModelConfig) -> list[Space]:
    """Embeds all images, and copies of the first ones, in each way that the encoder has.

    Raises:
        ImageError: One of them cannot be read.
    """
    ways = {f"pooled features, {config.features_dim} numbers": True}
    if config.head_dim:
        ways = {f"embedding, {config.head_dim} numbers": False, **ways}
    spaces = []
    for name, pooled in ways.items():
        copies = {
            kind: encoder.embed(
                (change(load_image(item.source, name=item.key)) for item in images[:copied]), pooled=pooled
            )
            for kind, change in COPIES.items()
        }
        spaces.append(Space(name, encoder.embed(images, pooled=pooled), copies))
    if config.head_dim and config.head_dim > FIRST_DIM:
        spaces.insert(1, spaces[0].first(FIRST_DIM))
    return spaces


def look_up(copies: Vectors, originals: Vectors) -> Found:
    """Looks copies up among all originals, at least two; row i of the copies is of original i."""
    indices, cosines = nearest(copies, originals, 2)
    first = indices[:, 0] == np.arange(len(copies))
    other = np.where(first, cosines[:, 1], cosines[:, 0]).astype(np.float64)
    return Found(row_cosines(copies, originals[: len(copies)]), first, other)


def pair_cosines(vectors: Vectors) -> Vectors:
    """Returns the cosines of all pairs of different rows, (N (N - 1) / 2,), ascending."""
    units = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    pairs = np.concatenate([units[row + 1 :] @ unit for row, unit in enumerate(units)])
    pairs.sort()
    return pairs


def threshold(pairs: Vectors, allowed: int) -> float:
    """Returns the lowest cosine, in thousandths, that at most `allowed` of the pairs reach.

    Args:
        pairs: Their cosines, ascending; more than are allowed.
        allowed: False pairs.
    """
    return math.floor(1000 * float(pairs[-1 - allowed]) + 1) / 1000


def print_cosines(space: Space, found: Mapping[str, Found]) -> None:
    """Prints how near copies are, and how near the best other image is: the most similar one."""
    own = "to its original: mean, 5 % quantile, smallest"
    other = "to the best other image: mean, 99 % quantile, largest"
    _print_header("copy", own, "original found first", other)
    for kind, cosines in found.items():
        _print_row(
            kind,
            _cosines(cosines.own.mean(), np.quantile(cosines.own, 0.05), cosines.own.min()),
            f"{cosines.first.mean():.1%}",
            _cosines(cosines.other.mean(), np.quantile(cosines.other, 0.99), cosines.other.max()),
        )


def print_thresholds(pairs: Vectors, found: Mapping[str, Found]) -> None:
    """Prints what each threshold finds, those that were computed among the others."""
    computed = {threshold(pairs, 0): "no false pair"}
    if len(pairs) >= MILLION:
        computed[threshold(pairs, len(pairs) // MILLION)] = "at most one in a million"
    _print_header("threshold", "false pairs", "in a million pairs", *found)
    for value in sorted({*THRESHOLDS, *computed}):
        false = len(pairs) - int(np.searchsorted(pairs, value))
        name = f"**{value:g}**, {computed[value]}" if value in computed else f"{value:g}"
        shares = [f"{(cosines.own >= value).mean():.1%}" for cosines in found.values()]
        _print_row(name, false, f"{false / len(pairs) * MILLION:.1f}", *shares)


def print_most_alike(originals: Vectors, images: ImageSet, config: ModelConfig) -> None:
    """Prints the pairs with the largest cosines, and how far apart the pixels are that the network sees."""
    indices, cosines = nearest_others(originals, range(len(originals)), LISTED)
    found = {
        (min(row, other), max(row, other)): float(cosine)
        for row in range(len(originals))
        for other, cosine in zip(indices[row].tolist(), cosines[row], strict=True)
    }
    _print_header("cosine", "images", "mean difference in grey levels")
    for pair, cosine in sorted(found.items(), key=lambda entry: -entry[1])[:LISTED]:
        items = [images[index] for index in pair]
        a, b = (load_pixels(item.source, config.preprocessing, name=item.key).astype(float) for item in items)
        _print_row(f"{cosine:.3f}", ", ".join(f"`{Path(item.key).name}`" for item in items), f"{abs(a - b).mean():.1f}")


def _cosines(*values: np.floating) -> str:
    return ", ".join(f"{value:.3f}" for value in values)


def _print_header(*cells: str) -> None:
    _print_row(*cells)
    print("|" + " --- |" * len(cells))


def _print_row(*cells: object) -> None:
    print(f"| {' | '.join(map(str, cells))} |")


def main() -> None:
    """Prints the tables in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", help="images, as `mixsiam train --data` takes them: a folder, or a Parquet set")
    parser.add_argument("--model", help="model folder or Hub id; default: the built-in encoder")
    parser.add_argument("--images", type=int, default=2000, help="of the set, at most (default: %(default)s)")
    parser.add_argument("--copied", type=int, default=500, help="of these, at most (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="which images these are (default: %(default)s)")
    arguments = parser.parse_args()
    try:
        config = resolve(arguments.model).config
        images = sample(open_images(arguments.data), arguments.images, arguments.seed)
        if len(images) < 3:
            sys.exit(f"{arguments.data} has {len(images)} images; give at least 3")
        spaces = embed(ImageEncoder.from_pretrained(arguments.model), images, arguments.copied, config)
    except MixsiamError as error:
        sys.exit(str(error))
    pairs = len(images) * (len(images) - 1) // 2
    print(f"{command_and_machine()}\n")
    print(f"{len(images)} images of {data_name(arguments.data)}, {pairs} pairs; copies of ", end="")
    print(f"{min(arguments.copied, len(images))} of them")
    for space in spaces:
        print(f"\n## {space.name}\n")
        found = {kind: look_up(vectors, space.originals) for kind, vectors in space.copies.items()}
        print_cosines(space, found)
        print()
        print_thresholds(pair_cosines(space.originals), found)
    print(f"\n## Most alike by {spaces[0].name}: is one of these pairs the same picture? Then it is no false one\n")
    print_most_alike(spaces[0].originals, images, config)


if __name__ == "__main__":
    main()
