"""Finds the files that inputs stand for: those given, in folders, by globs, in lists and on standard input."""

from __future__ import annotations

import contextlib
import glob
import itertools
import os
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

from mixsiam_hub.errors import DataError
from mixsiam_hub.images import remote
from mixsiam_hub.images.kinds import is_image_path
from mixsiam_hub.untrusted import open_regular

PARQUET_SUFFIX = ".parquet"
TAR_SUFFIX = ".tar"
LIST_SUFFIX = ".txt"
STANDARD_INPUT = "-"
MAX_LINE_BYTES = 2**16
"""Of a list; no system takes a path as long."""


class Search:
    """One search, and what it did not look into.

    Attributes:
        left_out: Files in the folders that were searched which have no image's suffix.
        unreadable: Folders that could not be searched -> why.
    """

    def __init__(self, specs: Sequence[str]) -> None:
        """Takes the inputs.

        Args:
            specs: As `open_source` takes them.

        Raises:
            DataError: There is nothing by one of these names; what holds no image is found out on the way.
        """
        self.left_out = 0
        self.unreadable: dict[str, str] = {}
        self._specs = specs
        for spec in specs:
            if not _is_there(spec):
                raise DataError(self._complaint(spec))

    def files(self, *, lists_once: bool) -> Iterator[str]:
        """Yields paths and addresses as they are found, of images, Parquet files and tars, each once.

        Those of a folder come sorted, each sub-folder's where its name stands among the others.

        Args:
            lists_once: Leave out what a list repeats too; of an endless one that would fill the memory.

        Raises:
            DataError: An input that stands for nothing.
        """
        has_lists = any(map(is_list, self._specs))
        seen: set[str] | None = set() if (lists_once if has_lists else _overlap(self._specs)) else None
        for spec in self._specs:
            is_empty = True
            for path in self._of(spec):
                is_empty = False
                if seen is not None:
                    name = path if is_address(path) else os.path.abspath(path)
                    if name in seen:
                        continue
                    seen.add(name)
                yield path
            if is_empty:
                raise DataError(self._complaint(spec))

    def _of(self, spec: str) -> Iterator[str]:
        try:
            if is_list(spec):
                yield from _lines(spec)
            elif is_address(spec):
                yield from (found for found in remote.matches(spec) if _is_wanted(found) or found == spec)
            elif folder := directory(spec):
                yield from self._in_folder(folder)
            elif os.path.lexists(path := _expanded(spec)):
                yield str(path)
            else:
                yield from self._matches(path)
        except OSError as error:
            raise DataError(f"{spec!r} cannot be searched: {error.strerror or error}") from None

    def _matches(self, pattern: Path) -> list[str]:
        paths: set[str] = set()
        for match in glob.iglob(str(pattern), recursive=True):
            path = Path(match)
            if path.is_dir():
                paths.update(self._walk(path))
            elif _is_wanted(match):
                paths.add(str(path))
        return sorted(paths, key=lambda name: name.replace(os.sep, "\0"))  # By the parts of each path, as in a folder.

    def _in_folder(self, folder: Path) -> Iterator[str]:
        """Yields a folder's images; where it has none its Parquet files, or else its tars."""
        is_empty = True
        for path in self._walk(folder):
            is_empty = False
            yield path
        for suffix in (PARQUET_SUFFIX, TAR_SUFFIX):
            if is_empty:
                for shard in sorted(folder.glob(f"*{suffix}")):
                    if not shard.name.startswith("."):
                        is_empty = False
                        self.left_out -= 1  # The walk took it for no image.
                        yield str(shard)

    def _walk(self, folder: Path) -> Iterator[str]:
        """Yields visible images below a folder; links to folders are followed, each real folder once.

        What is held are the names in the folders between the given one and the one that it is in.
        """
        seen: set[str] = set()
        open_folders = [self._scan(str(folder), seen)]
        while open_folders:
            entry = next(open_folders[-1], None)
            if entry is None:
                open_folders.pop()
            elif entry.endswith(os.sep):
                open_folders.append(self._scan(entry[: -len(os.sep)], seen))
            else:
                yield entry

    def _scan(self, folder: str, seen: set[str]) -> Iterator[str]:
        """Yields the visible images and sub-folders in a folder, sorted; a sub-folder with a separator at its end."""
        real = os.path.realpath(folder)
        if real in seen:
            return
        seen.add(real)
        found: list[tuple[str, bool]] = []
        try:
            with os.scandir(folder) as entries:
                for entry in entries:
                    if entry.name.startswith("."):
                        continue
                    is_folder = _is_folder(entry)
                    if is_folder or is_image_path(entry.name):
                        found.append((entry.name, is_folder))
                    else:
                        self.left_out += 1
        except OSError as error:
            self.unreadable[folder] = error.strerror or str(error)
            return
        before = "" if folder == os.curdir else os.path.join(folder, "")
        for name, is_folder in sorted(found):
            yield f"{before}{name}{os.sep if is_folder else ''}"

    def _complaint(self, spec: str) -> str:
        """Says why an input stands for no image."""
        if self.unreadable:
            return "; ".join(f"{folder} cannot be searched: {reason}" for folder, reason in self.unreadable.items())
        if is_list(spec):
            return f"{'standard input' if spec == STANDARD_INPUT else spec} names no image; give it one path a line"
        try:
            os.lstat(_expanded(spec))
        except FileNotFoundError:
            pass
        except OSError as error:  # A name too long, a folder that is locked or is a file.
            return f"{spec!r} cannot be searched: {error.strerror}"
        advice = "give a file, a folder with images, or a glob like 'in/**/*.jpg'"
        return f"{spec!r} matches no image; {advice}"


def is_list(spec: str) -> bool:
    """Tells whether an input is a list of paths: a file of that suffix, or standard input."""
    return spec == STANDARD_INPUT or (spec.endswith(LIST_SUFFIX) and os.path.isfile(_expanded(spec)))


def is_address(spec: str) -> bool:
    """Tells an address, as `s3://bucket/shard.tar`, from a path."""
    return re.match("[a-z][a-z0-9+.-]*://", spec) is not None


def shard_suffix(path: str) -> str:
    """Returns the suffix of a file that holds many images; "" for any other."""
    name = path.partition("?")[0] if is_address(path) else path  # A signed address goes on behind the file's name.
    suffix = os.path.splitext(name)[1]
    return suffix if suffix in (PARQUET_SUFFIX, TAR_SUFFIX) else ""


def directory(spec: str) -> Path | None:
    """Returns the folder that an input names, or None."""
    path = _expanded(spec)
    return path if os.path.isdir(path) else None


def _expanded(spec: str) -> Path:
    """Returns the path, `~` expanded where there is such a user; a file of that very name comes first."""
    path = Path(spec)
    try:
        return path if os.path.lexists(path) else path.expanduser()
    except RuntimeError:  # No such user.
        return path


def _is_wanted(match: str) -> bool:
    return is_image_path(match) or shard_suffix(match) != ""


def _is_folder(entry: os.DirEntry[str]) -> bool:
    with contextlib.suppress(OSError):  # A link that leads to itself.
        return entry.is_dir()
    return False


def _is_there(spec: str) -> bool:
    if is_list(spec) or is_address(spec) or os.path.lexists(path := _expanded(spec)):
        return True
    return next(glob.iglob(str(path), recursive=True), None) is not None


def _overlap(specs: Sequence[str]) -> bool:
    """Tells whether two inputs may stand for the same file: one lies in the other, by their names."""
    places = sorted(map(_place, specs))
    return any(second.startswith(first) for first, second in itertools.pairwise(places))


def _place(spec: str) -> str:
    """Returns the folder or file in which all lies that an input stands for, with a separator behind it."""
    path = _expanded(spec)
    if not os.path.lexists(path):
        path = Path(*itertools.takewhile(lambda part: not glob.has_magic(part), path.parts))
    return os.path.join(os.path.abspath(path), "")


def _lines(spec: str) -> Iterator[str]:
    if spec == STANDARD_INPUT:
        yield from _paths(sys.stdin.buffer, "standard input")
    else:
        with open_regular(_expanded(spec), DataError) as file:
            yield from _paths(file, spec)


def _paths(file: BinaryIO, name: str) -> Iterator[str]:
    """Yields the lines that are not empty, each as soon as it is there."""
    number = 0
    while line := file.readline(MAX_LINE_BYTES):
        number += 1
        path = line.rstrip(b"\r\n")
        if len(line) == MAX_LINE_BYTES or b"\0" in path:
            raise DataError(f"{name}, line {number}: is no path; give a text file with one path a line")
        if path:
            yield os.fsdecode(path)
