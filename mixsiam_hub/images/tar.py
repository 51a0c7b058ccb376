"""Images in tars, as WebDataset shards hold them, each read where it lies."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mixsiam_hub.errors import DataError, ImageError
from mixsiam_hub.images.finding import is_address
from mixsiam_hub.images.kinds import MAX_IMAGE_BYTES
from mixsiam_hub.images.names import Names
from mixsiam_hub.images.remote import read_range
from mixsiam_hub.images.remote_tars import index_remote
from mixsiam_hub.images.sources import Item
from mixsiam_hub.images.tar_index import NO_CLASS, TarIndex
from mixsiam_hub.untrusted import open_file, open_regular


@dataclass(frozen=True)
class TarImage:
    """An image in a tar, read when it is asked for.

    Attributes:
        path: The tar's, or its address.
        offset: Where the image begins in it, in bytes.
        size: Of the image, in bytes.
    """

    path: str
    offset: int
    size: int

    def read_bytes(self) -> bytes:
        """Returns the encoded image.

        Raises:
            ImageError: It is too long, the tar has become shorter since it was searched, or cannot be had from afar.
            OSError: The tar is gone or locked.
        """
        if self.size > MAX_IMAGE_BYTES:
            raise ImageError(f"it has {self.size} bytes; at most {MAX_IMAGE_BYTES} are read")
        if is_address(self.path):
            return read_range(self.path, self.offset, self.size)
        with open_file(self.path) as file:
            file.seek(self.offset)
            data = file.read(self.size)
        if len(data) < self.size:
            raise ImageError(f"{self.path} has become shorter since it was searched")
        return data


@dataclass(frozen=True, eq=False)
class TarStore:
    """The images in tars, here or far away; their headers are read once, and each image where it lies.

    Attributes:
        paths: The tars, and addresses of tars.
        names: Of the images in them, n.
        offsets: (n,) int64, where each begins in its tar, in bytes.
        sizes: (n,) int64, in bytes.
        ends: (tars,) int64: how many images there are up to the end of each tar.
        numbers: (n,) int32: places in `classes`; -1 where an image has none.
        classes: Names of classes.
        left_out: Members that are no image.
    """

    paths: Sequence[str]
    names: Names
    offsets: NDArray[np.int64]
    sizes: NDArray[np.int64]
    ends: NDArray[np.int64]
    numbers: NDArray[np.int32]
    classes: Sequence[str]
    left_out: int

    @classmethod
    def of(cls, paths: Iterable[str]) -> TarStore:
        """Reads the headers; of a tar far away, all of it, unless that was done before.

        Args:
            paths: At least one.

        Raises:
            DataError: A file that is no tar, or damaged; or there is no image in any of them.
            MissingExtraError: An address, and fsspec is not installed.
        """
        paths = list(paths)
        far = index_remote([path for path in paths if is_address(path)])
        tars = [far[path] if is_address(path) else _index(path) for path in paths]
        names = Names.joined_of([tar.names for tar in tars])
        if not len(names):
            raise DataError(f"{', '.join(paths[:3])}: no image inside; an image is known by its suffix")
        classes: dict[str, int] = {}
        numbers = []
        for tar in tars:
            places = [classes.setdefault(name, len(classes)) for name in tar.classes]
            numbers.append(np.array([*places, NO_CLASS], np.int32)[tar.numbers])  # NO_CLASS, -1, takes the last.
        return cls(
            paths,
            names,
            np.concatenate([tar.offsets for tar in tars]),
            np.concatenate([tar.sizes for tar in tars]),
            np.cumsum([len(tar.names) for tar in tars]),
            np.concatenate(numbers),
            list(classes),
            sum(tar.left_out for tar in tars),
        )

    @property
    def has_labels(self) -> bool:
        """Whether every image has a class."""
        return bool((self.numbers != NO_CLASS).all())

    @property
    def is_far(self) -> bool:
        """Whether some of the tars are far away, where reading on is fast and reading here and there is slow."""
        return any(map(is_address, self.paths))

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> Item:
        source = TarImage(self.paths[int(self.tar_of(index))], int(self.offsets[index]), int(self.sizes[index]))
        return Item(f"{source.path}#{self.names[index]}", source, self.label(index))

    def tar_of(self, index: ArrayLike) -> Any:
        """Returns the place in `paths` of the tar that an image lies in, of several an array, (n,) int64."""
        return np.searchsorted(self.ends, index, "right")

    def label(self, index: int) -> str | None:
        """The text in the `.cls` of its sample."""
        number = int(self.numbers[index])
        return None if number == NO_CLASS else self.classes[number]

    def identity(self) -> bytes:
        """Digest of the tars' names, and of the names and sizes of the images."""
        digest = hashlib.sha256()
        for path in self.paths:
            digest.update(os.path.basename(path).encode("utf-8", "surrogateescape") + b"\0")
        for numbers in (self.ends, self.names.ends, self.sizes):
            digest.update(numbers.astype("<i8").tobytes())
        digest.update(self.names.joined)
        return digest.digest()


def _index(path: str) -> TarIndex:
    with open_regular(path, DataError) as file:
        return TarIndex.of(file, path, os.fstat(file.fileno()).st_size)
