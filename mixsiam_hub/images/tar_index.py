"""Which images a tar holds, by its headers: files of one name up to its first dot are one sample, as in WebDataset."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from mixsiam_hub.images.kinds import is_image_path
from mixsiam_hub.images.names import Names
from mixsiam_hub.images.tar_headers import Member, Reader, read_members

NO_CLASS = -1
_MAX_CLASS_BYTES = 200


class TarIndex(NamedTuple):
    """Which images one tar holds, and where.

    Attributes:
        names: Of the images, n.
        offsets: (n,) int64, where each begins, in bytes.
        sizes: (n,) int64, in bytes.
        numbers: (n,) int32: places in `classes`, from the `.cls` of each sample; -1 where there is none.
        classes: Names of classes.
        left_out: Members that are no image: other files, links, files with holes, and a name's second file.
    """

    names: Names
    offsets: NDArray[np.int64]
    sizes: NDArray[np.int64]
    numbers: NDArray[np.int32]
    classes: list[str]
    left_out: int

    @classmethod
    def of(cls, file: Reader, path: str, size_bytes: int | None) -> TarIndex:
        """Reads the headers of a tar, and the classes between them.

        Args:
            file: The tar, at its start.
            path: What to call it in errors.
            size_bytes: Its length; None where that is not known.

        Raises:
            DataError: It is damaged, or no tar.
        """
        scan = _Scan()
        names = Names.of(scan.names(file, path, size_bytes))
        offsets, sizes = np.array(scan.offsets, np.int64), np.array(scan.sizes, np.int64)
        return cls(names, offsets, sizes, np.array(scan.numbers, np.int32), list(scan.classes), scan.left_out)


class _Scan:
    """What was read of a tar's headers so far; the attributes are as in TarIndex."""

    def __init__(self) -> None:
        self.offsets, self.sizes, self.numbers = array("q"), array("q"), array("i")
        self.classes: dict[str, int] = {}
        self.left_out = 0

    def names(self, file: Reader, path: str, size_bytes: int | None) -> Iterator[str]:
        """Yields the names of the images, and records what else there is to know of each."""
        seen: set[str] = set()
        sample, first, number = "", 0, NO_CLASS
        for member in read_members(file, path, size_bytes):
            if is_hidden(member.name):
                continue
            if sample != (sample := _sample(member.name)):
                first, number = len(self.offsets), NO_CLASS
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
            return NO_CLASS
        file.seek(member.offset)
        name = file.read(member.size).decode("utf-8", "replace").strip()
        if name in ("", "-1") or not name.isprintable():
            return NO_CLASS
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
