"""Training images: where they come from, how they are split, and their classes."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from mixsiam_hub.errors import DataError, missing_extra
from mixsiam_hub.images.sources import ImageSet, Item, open_source
from mixsiam_hub.training.streams import Purpose, permutation

DIGITS = "digits"
HELD_OUT = 10
"""`DATA::val` is one image in so many; `DATA::train` is the rest."""


class Digits:
    """scikit-learn's 1,797 handwritten digits of 8 x 8 px."""

    has_labels = True

    def __init__(self) -> None:
        """Loads them.

        Raises:
            MissingExtraError: scikit-learn is not installed.
        """
        try:
            from sklearn.datasets import load_digits
        except ImportError:
            missing_extra("scikit-learn", "train")
        digits = load_digits()
        self._pixels = np.round(digits.images * (255 / 16)).astype(np.uint8)  # (1797, 8, 8)
        self._classes = [str(digit) for digit in digits.target.tolist()]

    def __len__(self) -> int:
        return len(self._pixels)

    def __getitem__(self, index: int) -> Item:
        return Item(f"{DIGITS}#{index}", self._pixels[index], self.label(index))

    def label(self, index: int) -> str:
        """The digit."""
        return self._classes[index]

    def identity(self) -> bytes:
        """Digest of all pixels."""
        return hashlib.sha256(self._pixels.tobytes()).digest()


def open_images(spec: str) -> ImageSet:
    """Opens a data set.

    Args:
        spec: `digits`, or what `open_source` takes: a folder of images, nested as you like, tars, or Parquet files.
            With `::train` or `::val` behind it, one part of a fixed split: nine tenths and the held-out tenth.

    Raises:
        DataError: Nothing there, no images in it, no `image` column, or an unknown part.
    """
    where, _, part = spec.partition("::")
    if part not in ("", "train", "val"):
        raise DataError(f"{spec}: the part behind :: is {part!r}; allowed are train and val")
    images = ImageSet.of(DIGITS, Digits()) if where == DIGITS else open_source(where)
    if part:
        order = permutation(len(images), 0, Purpose.SPLIT)
        held_out = len(order) // HELD_OUT
        images = images.take(np.sort(order[:held_out] if part == "val" else order[held_out:]))
    return replace(images, name=spec)


def sample(images: ImageSet, n: int, seed: int = 0) -> ImageSet:
    """Returns n of the images in random order, the same ones for the same seed; all of them where there are no more."""
    return images.take(permutation(len(images), seed, Purpose.SAMPLE)[:n])


def open_for_training(data: str, val_data: str) -> tuple[ImageSet, ImageSet | None]:
    """Opens a recipe's `data` and `val_data`.

    Raises:
        DataError: As `open_images`; `data` is empty; validation images are given and one of the two has no labels, or
            they have no class in common.
    """
    if not data:
        raise DataError("the recipe names no data; add --data DIR: a folder of images, Parquet files, or digits")
    if val_data == "split":
        if "::" in data:
            raise DataError(f"val_data is 'split', but {data} is part of a split already; give val_data itself")
        train, val = open_images(f"{data}::train"), open_images(f"{data}::val")
        return train, val if val.labels is not None else None
    if not val_data:
        return open_images(data), None
    val = open_images(val_data)
    if val.labels is None:
        raise DataError(f"val_data {val_data} has no labels, which the kNN needs; leave val_data out")
    train = open_images(data)
    if train.labels is None:
        raise DataError(f"data {data} has no labels, which the kNN of val_data needs too; leave val_data out")
    common_classes(train, val)
    return train, val


def common_classes(train: ImageSet, test: ImageSet) -> list[str]:
    """Returns the names of the classes of both sets, sorted: a class is known by its name, and its number is its place.

    Args:
        train: Labelled images.
        test: Labelled images, to be classified by the others.

    Raises:
        DataError: One names its classes and the other numbers them, or no class is in both.
    """
    known, asked = set(train.labels or ()), set(test.labels or ())
    numbered = [all(name.isdecimal() for name in names) for names in (known, asked)]
    if numbered[0] != numbered[1]:
        by_number, by_name = (train, test) if numbered[0] else (test, train)
        raise DataError(
            f"{by_number.name} has numbers for its classes and {by_name.name} has names; give both the same kind"
        )
    if not known & asked:
        raise DataError(
            f"{train.name} and {test.name} have no class in common: {_some(known)}, and {_some(asked)}; check that "
            "both have one folder a class, of the same names"
        )
    return sorted(known | asked)


def class_numbers(images: ImageSet, classes: Sequence[str]) -> NDArray[np.int64]:
    """Returns the place in `classes` of each image's class, (n,); the images must be labelled."""
    places = {name: place for place, name in enumerate(classes)}
    return np.array([places[name] for name in images.labels or ()], np.int64)


def _some(names: set[str]) -> str:
    shown = ", ".join(sorted(names)[:3])
    return shown if len(names) <= 3 else f"{shown} and {len(names) - 3} more"
