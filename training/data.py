"""Training images: where they come from, and the stream of batches of views made of them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from glob import glob
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch.utils.data import DataLoader, Dataset, Sampler

from mixsiam_hub.errors import DataError, ImageError, missing_extra
from mixsiam_hub.images.load import load_image
from mixsiam_hub.images.sources import expand
from mixsiam_hub.training.augment import Augmentation, draw_view
from mixsiam_hub.training.mixing import draw_lam
from mixsiam_hub.training.streams import Purpose, permutation, stream

HELD_OUT = 10
"""`DATA::val` is one image in so many; `DATA::train` is the rest."""


class Reader(Protocol):
    """Gives one image by its index; raises ImageError where it is corrupt."""

    def __call__(self, index: int) -> Image.Image: ...


@dataclass(frozen=True)
class ImageSet:
    """Images by index, with labels where they are known. Labels are for evaluation alone.

    Attributes:
        name: As given, for logs and reports.
        read: Gives the upright RGB image of an index into the whole source.
        indices: (n,) int64: the images that belong to this set.
        labels: (n,) int64 classes in the order of `indices`, or None.
    """

    name: str
    read: Reader
    indices: NDArray[np.int64]
    labels: NDArray[np.int64] | None = None

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, position: int) -> Image.Image:
        return self.read(int(self.indices[position]))

    def take(self, positions: NDArray[np.int64]) -> ImageSet:
        """Returns the subset at these positions."""
        labels = None if self.labels is None else self.labels[positions]
        return replace(self, indices=self.indices[positions], labels=labels)

    def sample(self, n: int, seed: int = 0) -> ImageSet:
        """Returns n of the images, the same ones for the same seed; all of them where there are no more."""
        return self.take(np.sort(permutation(len(self), seed, Purpose.SAMPLE)[:n]))


def open_images(spec: str) -> ImageSet:
    """Opens a data set.

    Args:
        spec: `digits`; a Parquet file, or a folder or glob of them; a folder of images, nested as you like. With
            `::train` or `::val` behind it, one part of a fixed split: nine tenths and the held-out tenth. In a folder
            whose every image lies in a sub-folder the first sub-folder's name is the label; in Parquet it is the
            column `label`, if that holds a class from 0 on for every image (-1 stands for an unknown one).

    Raises:
        DataError: Nothing there, no images in it, no `image` column, or an unknown part.
    """
    where, _, part = spec.partition("::")
    if part not in ("", "train", "val"):
        raise DataError(f"{spec}: the part behind :: is {part!r}; allowed are train and val")
    if where == "digits":
        images = _digits()
    else:
        paths = _parquet_files(where)
        images = _parquet(where, paths) if paths else _folder(where)
    if part:
        order = permutation(len(images), 0, Purpose.SPLIT)
        held_out = len(order) // HELD_OUT
        images = images.take(np.sort(order[:held_out] if part == "val" else order[held_out:]))
    return replace(images, name=spec)


def open_for_training(data: str, val_data: str) -> tuple[ImageSet, ImageSet | None]:
    """Opens a recipe's `data` and `val_data`.

    Raises:
        DataError: As `open_images`; `data` is empty; validation images are given and one of the two has no labels.
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
    return train, val


def _digits() -> ImageSet:
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        missing_extra("scikit-learn", "train")
    digits = load_digits()
    pixels = np.round(digits.images * (255 / 16)).astype(np.uint8)
    return ImageSet(
        "digits",
        lambda index: Image.fromarray(pixels[index]).convert("RGB"),
        np.arange(len(pixels)),
        digits.target.astype(np.int64),
    )


def _parquet_files(where: str) -> list[Path]:
    path = Path(where).expanduser()
    if path.is_dir():
        return sorted(path.glob("*.parquet"))
    return [Path(match) for match in sorted(glob(str(path)))] if where.endswith(".parquet") else []


def _parquet(name: str, paths: Sequence[Path]) -> ImageSet:
    """Hub-style Parquet: `image` is a struct of bytes and path, or bytes. Held in memory compressed."""
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError:
        missing_extra("pyarrow", "bulk")
    try:
        names = pq.read_schema(paths[0]).names
        columns = [column for column in ("image", "label") if column in names]
        table = pa.concat_tables([pq.read_table(path, columns=columns) for path in paths])
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{name}: cannot be read as Parquet: {error}") from error
    if "image" not in columns:
        raise DataError(f"{paths[0]}: no column 'image'; it has {', '.join(names)}")
    column = table.column("image")
    if pa.types.is_struct(column.type):
        if column.type.get_field_index("bytes") < 0:
            raise DataError(f"{paths[0]}: column 'image' has no field 'bytes'; it is {column.type}")
        column = pa.chunked_array([chunk.field("bytes") for chunk in column.chunks])
    if not pa.types.is_binary(column.type) and not pa.types.is_large_binary(column.type):
        raise DataError(f"{paths[0]}: column 'image' holds {column.type}; it must hold encoded images as bytes")

    def read(index: int) -> Image.Image:
        encoded = column[index].as_py()
        if encoded is None:
            raise ImageError(f"{name}: row {index} holds no image")
        try:
            return load_image(encoded)
        except ImageError as error:
            raise ImageError(f"{name}: row {index}: {error}") from error

    labels = None
    if "label" in columns:
        found = table.column("label")
        if pa.types.is_integer(found.type) and not found.null_count and (found.to_numpy() >= 0).all():
            labels = found.to_numpy().astype(np.int64)
    return ImageSet(name, read, np.arange(len(table)), labels)


def _folder(where: str) -> ImageSet:
    root = Path(where).expanduser()
    if not root.is_dir():
        raise DataError(
            f"{where}: no such folder or Parquet file; data is a folder of images, Parquet files, or 'digits'"
        )
    paths = expand([str(root)])
    parts = [path.relative_to(root).parts for path in paths]
    labels = None
    if len({p[0] for p in parts}) > 1 and all(len(p) > 1 for p in parts):
        labels = np.unique([p[0] for p in parts], return_inverse=True)[1].astype(np.int64)
    return ImageSet(where, lambda index: load_image(paths[index]), np.arange(len(paths)), labels)


class Batch(NamedTuple):
    """One step's input.

    Attributes:
        x1: First views, (n, S, S, 3) uint8 RGB.
        x2: Second views of the same images.
        lam: Weight of x1 in the mixture, (n, 1, 1, 1) or (n, 1, S, S) float32.
        skipped: Corrupt images left out, so that n + skipped is the recipe's batch size.
    """

    x1: torch.Tensor
    x2: torch.Tensor
    lam: torch.Tensor
    skipped: int


class Views(Dataset[tuple[NDArray[np.uint8], NDArray[np.uint8], NDArray[np.float32]] | None]):
    """(x1, x2, lam) of an (epoch, position), a pure function of the seed; None for a corrupt image."""

    def __init__(self, images: ImageSet, how: Augmentation, mixture: str, lam_alpha: float, seed: int) -> None:
        self.images = images
        self.how = how
        self.mixture = mixture
        self.lam_alpha = lam_alpha
        self.seed = seed

    def __getitem__(
        self, key: tuple[int, int]
    ) -> tuple[NDArray[np.uint8], NDArray[np.uint8], NDArray[np.float32]] | None:
        epoch, position = key
        try:
            image = self.images[position]
        except ImageError:
            return None
        index = int(self.images.indices[position])
        x1 = draw_view(image, self.how, stream(self.seed, Purpose.VIEW_1, epoch, index))
        x2 = draw_view(image, self.how, stream(self.seed, Purpose.VIEW_2, epoch, index))
        rng = stream(self.seed, Purpose.MIXTURE, epoch, index)
        return x1, x2, draw_lam(self.mixture, self.lam_alpha, self.how.size_px, rng)


class Order(Sampler[list[tuple[int, int]]]):
    """Batches of (epoch, position) from a step on: each epoch shuffled anew, its last incomplete batch left out."""

    def __init__(self, images: int, batch_size: int, epochs: int, seed: int, first_step: int = 0) -> None:
        self.images = images
        self.batch_size = batch_size
        self.epochs = epochs
        self.seed = seed
        self.first_step = first_step

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        steps = self.images // self.batch_size
        epoch = -1
        for step in range(self.first_step, self.epochs * steps):
            if step // steps != epoch:
                epoch = step // steps
                order = permutation(self.images, self.seed, Purpose.ORDER, epoch)
            start = step % steps * self.batch_size
            yield [(epoch, int(position)) for position in order[start : start + self.batch_size]]

    def __len__(self) -> int:
        return self.epochs * (self.images // self.batch_size) - self.first_step


def collate(samples: Sequence[tuple[NDArray[np.uint8], NDArray[np.uint8], NDArray[np.float32]] | None]) -> Batch:
    """Stacks the readable samples of a batch."""
    good = [sample for sample in samples if sample is not None]
    if not good:
        empty = torch.zeros(0)
        return Batch(empty, empty, empty, len(samples))
    x1, x2, lam = (torch.from_numpy(np.stack(column)) for column in zip(*good, strict=True))
    return Batch(x1, x2, lam, len(samples) - len(good))


def make_loader(views: Views, order: Order, workers: int) -> Iterable[Batch]:
    """Returns the batches of a whole run, or of what is left of it."""
    return DataLoader(
        views,
        batch_sampler=order,
        num_workers=workers,
        collate_fn=collate,
        multiprocessing_context="fork" if workers else None,
        pin_memory=torch.cuda.is_available(),
    )


def normalise(pixels: torch.Tensor, mean: Sequence[float], std: Sequence[float]) -> torch.Tensor:
    """Turns (N, S, S, 3) uint8 pixels into the network's input, (N, 3, S, S) float32 in channels_last memory."""
    scale = 1 / (255 * torch.tensor(std, device=pixels.device))
    shift = torch.tensor(mean, device=pixels.device) / torch.tensor(std, device=pixels.device)
    return (pixels * scale - shift).permute(0, 3, 1, 2)
