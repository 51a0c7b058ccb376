"""Images in tars, as WebDataset shards hold them: files of one name up to its first dot are one sample."""

from __future__ import annotations

import hashlib
import os
from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mixsiam_hub.errors import DataError, ImageError
from mixsiam_hub.images.kinds import MAX_IMAGE_BYTES, is_image_path
from mixsiam_hub.images.names import Names
from mixsiam_hub.images.sources import Item
from mixsiam_hub.images.tar_headers import Member, Reader, read_members
from mixsiam_hub.untrusted import open_file, open_regular

_MAX_CLASS_BYTES = 200
_UNKNOWN = -1


@dataclass(frozen=True)
class TarImage:
    """An image in a tar, read when it is asked for.

    Attributes:
        path: The tar.
        offset: Where the image begins in it, in bytes.
        size: Of the image, in bytes.
    """

    path: str
    offset: int
    size: int

    def read_bytes(self) -> bytes:
        """Returns the encoded image.

        Raises:
            ImageError: It is too long, or the tar has become shorter since it was searched.
            OSError: The tar is gone or locked.
        """
        if self.size > MAX_IMAGE_BYTES:
            raise ImageError(f"it has {self.size} bytes; at most {MAX_IMAGE_BYTES} are read")
        with open_file(self.path) as file:
            file.seek(self.offset)
            data = file.read(self.size)
        if len(data) < self.size:
            raise ImageError(f"{self.path} has become shorter since it was searched")
        return data


@dataclass(frozen=True, eq=False)
class TarStore:
    """The images in tars; their headers are read once, and each image where it lies.

    Attributes:
        paths: The tars.
        names: Of the images in them, n.
        offsets: (n,) int64, where each begins in its tar, in bytes.
        sizes: (n,) int64, in bytes.
        ends: (tars,) int64: how many images there are up to the end of each tar.
        numbers: (n,) int32: places in `classes`, from the `.cls` of each sample; -1 where there is none.
        classes: Names of classes.
        left_out: Members that are no image: other files, links, files with holes, and a name's second file.
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
        """Reads the headers.

        Args:
            paths: At least one.

        Raises:
            DataError: A file that is no tar, or damaged; or there is no image in any of them.
        """
        scan = _Scan()
        names = Names.of(scan.names(paths))
        if not len(names):
            raise DataError(f"{', '.join(scan.paths[:3])}: no image inside; an image is known by its suffix")
        return cls(
            scan.paths,
            names,
            np.array(scan.offsets, np.int64),
            np.array(scan.sizes, np.int64),
            np.array(scan.ends, np.int64),
            np.array(scan.numbers, np.int32),
            list(scan.classes),
            scan.left_out,
        )

    @property
    def has_labels(self) -> bool:
        """Whether every image has a class."""
        return bool((self.numbers != _UNKNOWN).all())

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> Item:
        name = self.names[index]
        path = self.paths[int(np.searchsorted(self.ends, index, "right"))]
        source = TarImage(path, int(self.offsets[index]), int(self.sizes[index]))
        return Item(f"{path}#{name}", source, self.label(index))

    def label(self, index: int) -> str | None:
        """The text in the `.cls` of its sample."""
        number = int(self.numbers[index])
        return None if number == _UNKNOWN else self.classes[number]

    def identity(self) -> bytes:
        """Digest of the tars' names, and of the names and sizes of the images."""
        digest = hashlib.sha256()
        for path in self.paths:
            digest.update(os.path.basename(path).encode("utf-8", "surrogateescape") + b"\0")
        for numbers in (self.ends, self.names.ends, self.sizes):
            digest.update(numbers.astype("<i8").tobytes())
        digest.update(self.names.joined)
        return digest.digest()


class _Scan:
    """What was read of the headers so far; the attributes are as in TarStore."""

    def __init__(self) -> None:
        self.paths: list[str] = []
        self.offsets, self.sizes, self.ends, self.numbers = array("q"), array("q"), array("q"), array("i")
        self.classes: dict[str, int] = {}
        self.left_out = 0

    def names(self, paths: Iterable[str]) -> Iterator[str]:
        """Yields the names of the images, and records what else there is to know of each."""
        for path in paths:
            self.paths.append(path)
            with open_regular(path, DataError) as file:
                yield from self._of_tar(file, path, os.fstat(file.fileno()).st_size)
            self.ends.append(len(self.offsets))

    def _of_tar(self, file: Reader, path: str, size_bytes: int) -> Iterator[str]:
        seen: set[str] = set()
        sample, first, number = "", len(self.offsets), _UNKNOWN
        for member in read_members(file, path, size_bytes):
            if is_hidden(member.name):
                continue
            if sample != (sample := _sample(member.name)):
                first, number = len(self.offsets), _UNKNOWN
            if member.name == f"{sample}.cls" and member.is_file:
                number = self._class_number(file, member)
                for index in range(first, len(self.offsets)):
                    self.numbers[index] = number
            elif is_image(member) and member.name not in seen:
                seen.add(member.name)
                self.offsets.append(member.offset)
                self.sizes.append(member.size)
                self.numbers.append(number)
                yield member.name
            else:
                self.left_out += 1

    def _class_number(self, file: Reader, member: Member) -> int:
        if member.size > _MAX_CLASS_BYTES:
            return _UNKNOWN
        file.seek(member.offset)
        name = file.read(member.size).decode("utf-8", "replace").strip()
        if name in ("", "-1") or not name.isprintable():
            return _UNKNOWN
        return self.classes.setdefault(name, len(self.classes))


def images_in(members: Iterable[Member]) -> Iterator[Member]:
    """Yields the images among a tar's members, of several under one name the first, as TarStore has them."""
    seen: set[str] = set()
    for member in members:
        if is_image(member) and member.name not in seen:
            seen.add(member.name)
            yield member


def is_image(member: Member) -> bool:
    """Tells an image, by the suffix, from what else lies in a tar."""
    return member.is_file and is_image_path(member.name) and not is_hidden(member.name)


def is_hidden(name: str) -> bool:
    """Tells whether a member, or a folder that it lies in, is hidden, as those are that macOS adds."""
    return any(part.startswith(".") and part != "." for part in name.split("/"))


def _sample(name: str) -> str:
    """Returns a name up to the first dot behind its last slash."""
    folder, slash, file = name.rpartition("/")
    return folder + slash + file.partition(".")[0]
