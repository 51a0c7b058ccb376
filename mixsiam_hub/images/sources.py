"""Where images come from: files, folders, globs and Parquet, each image as an Item with a name of its own."""

from __future__ import annotations

import glob
import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol, overload

import numpy as np
from numpy.typing import NDArray

from mixsiam_hub.errors import DataError
from mixsiam_hub.images.kinds import ImageSource, is_image_path

PARQUET_SUFFIX = ".parquet"


@dataclass(frozen=True)
class Item:
    """One image on its way through this package.

    Attributes:
        key: Its name, unique in its source: the path as it was given, `FILE.parquet#ROW`, or its place in a sequence.
        source: What `load_image` takes.
        label: The name of its class, or None.
    """

    key: str
    source: ImageSource
    label: str | None = None


class Store(Protocol):
    """Images by index, read when they are asked for. It pickles, so that other processes can read too."""

    @property
    def has_labels(self) -> bool:
        """Whether every image has a class."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Item: ...

    def label(self, index: int) -> str | None:
        """Returns the class of an image without reading it."""

    def identity(self) -> bytes:
        """Returns what changes when an image is added, removed, renamed or replaced by one of another size."""


@dataclass(frozen=True)
class ImageSet(Sequence[Item]):
    """Images in a fixed order.

    Attributes:
        name: As given, for logs and reports.
        store: Where they are.
        indices: (n,) int64: which images of the store belong to this set, in order.
        left_out: Files in the folders that were searched which have no image's suffix.
        unreadable: Folders that could not be searched -> why.
    """

    name: str
    store: Store
    indices: NDArray[np.int64]
    left_out: int = 0
    unreadable: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, name: str, store: Store) -> ImageSet:
        """Returns the whole of a store."""
        return cls(name, store, np.arange(len(store)))

    def __len__(self) -> int:
        return len(self.indices)

    @overload
    def __getitem__(self, position: int) -> Item: ...

    @overload
    def __getitem__(self, position: slice) -> ImageSet: ...

    def __getitem__(self, position: int | slice) -> Item | ImageSet:
        if isinstance(position, slice):
            return self.take(np.arange(len(self))[position])
        return self.store[int(self.indices[position])]

    def take(self, positions: NDArray[np.int64]) -> ImageSet:
        """Returns the images at these positions, (m,) int64, in their order."""
        return replace(self, indices=self.indices[positions])

    @property
    def labels(self) -> list[str] | None:
        """The class of each image, by name; None where some have none."""
        if not self.store.has_labels:
            return None
        return [str(self.store.label(index)) for index in self.indices.tolist()]

    @property
    def identity(self) -> str:
        """A sha256 in hex of which images these are, by names and sizes, wherever they lie on this machine."""
        digest = hashlib.sha256(self.store.identity())
        digest.update(np.ascontiguousarray(self.indices, "<i8").tobytes())
        return digest.hexdigest()


@dataclass(frozen=True)
class FileStore:
    """Image files.

    Attributes:
        paths: As given, or below the folder that was given.
        root: The folder whose sub-folders are classes; "" where there is none.
    """

    paths: Sequence[str]
    root: str = ""

    @property
    def has_labels(self) -> bool:
        """Whether every image lies in a sub-folder of the root, and there are at least two of these."""
        return bool(self.root) and None not in (found := {self._folder(path) for path in self.paths}) and len(found) > 1

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Item:
        path = self.paths[index]
        return Item(path, path, self._folder(path) if self.root else None)

    def label(self, index: int) -> str | None:
        """The first sub-folder's name."""
        return self._folder(self.paths[index])

    def identity(self) -> bytes:
        """Names below the root, and sizes in bytes; -1 for a file that is gone."""
        digest = hashlib.sha256()
        for path in self.paths:
            name = os.path.relpath(path, self.root) if self.root else os.path.basename(path)
            try:
                size = os.stat(path).st_size
            except OSError:
                size = -1
            digest.update(f"{name}\0{size}\n".encode("utf-8", "surrogateescape"))
        return digest.digest()

    def _folder(self, path: str) -> str | None:
        first, slash, _ = os.path.relpath(path, self.root).partition(os.sep)
        return first if slash else None


@dataclass(frozen=True)
class _Joined:
    """Several stores behind one another. Classes of different stores may differ in what they mean: there are none."""

    stores: Sequence[Store]

    @property
    def has_labels(self) -> bool:
        return False

    def __len__(self) -> int:
        return sum(map(len, self.stores))

    def __getitem__(self, index: int) -> Item:
        for store in self.stores:
            if index < len(store):
                return store[index]
            index -= len(store)
        raise IndexError(index)

    def label(self, index: int) -> str | None:
        return None

    def identity(self) -> bytes:
        return hashlib.sha256(b"".join(store.identity() for store in self.stores)).digest()


def open_source(specs: str | Sequence[str]) -> ImageSet:
    """Finds the images that one or several inputs stand for, in their order and each file once.

    Args:
        specs: Each a file, taken whatever its suffix; a folder, searched to any depth for image suffixes, hidden files
            and folders left out; a Parquet file, or a folder that holds Parquet files and no images; or a glob (`**`
            and `~` work), whose matches count by suffix as a folder's do. A name that exists is never read as a glob.
            Of a single folder whose every image lies in a sub-folder, the first sub-folder's name is the class.

    Raises:
        DataError: An input that stands for no image, or a Parquet file without a column of images.
        MissingExtraError: Parquet, and pyarrow is not installed.
    """
    given = [specs] if isinstance(specs, str) else list(specs)
    search = _Search()
    for spec in given:
        try:
            found = search.add(spec)
        except OSError as error:
            raise DataError(f"{spec!r} cannot be searched: {error.strerror or error}") from None
        if not found:
            raise DataError(search.complaint(spec))
    root = _directory(given[0]) if len(given) == 1 else None
    stores = search.stores(str(root) if root else "")
    images = ImageSet.of(", ".join(given), stores[0] if len(stores) == 1 else _Joined(stores))
    return replace(images, left_out=search.left_out, unreadable=search.unreadable)


class _Search:
    """What was found so far: files in order, each once, and what was not looked into."""

    def __init__(self) -> None:
        self.left_out = 0
        self.unreadable: dict[str, str] = {}
        self._found: dict[str, Path] = {}

    def add(self, spec: str) -> bool:
        """Adds the files that an input stands for; False where there are none."""
        matches = self._matches(spec)
        for path in matches:
            self._found.setdefault(os.path.abspath(path), path)
        return bool(matches)

    def stores(self, root: str) -> list[Store]:
        """Returns the files as stores, Parquet files that stand together as one."""
        stores: list[Store] = []
        run: list[Path] = []
        for path in [*self._found.values(), None]:
            if run and (path is None or _is_parquet(path) != _is_parquet(run[0])):
                stores.append(_store(run, root))
                run = []
            if path is not None:
                run.append(path)
        return stores

    def complaint(self, spec: str) -> str:
        """Says why an input stands for no image."""
        if self.unreadable:
            return "; ".join(f"{folder} cannot be searched: {reason}" for folder, reason in self.unreadable.items())
        try:
            os.lstat(_expanded(spec))
        except FileNotFoundError:
            pass
        except OSError as error:  # A name too long, a folder that is locked or is a file.
            return f"{spec!r} cannot be searched: {error.strerror}"
        advice = "give a file, a folder with images, or a glob like 'in/**/*.jpg'"
        return f"{spec!r} matches no image; {advice}"

    def _matches(self, spec: str) -> list[Path]:
        if folder := _directory(spec):
            return self._in_folder(folder)
        path = _expanded(spec)
        if os.path.lexists(path):
            return [path]
        paths: set[Path] = set()
        for match in map(Path, glob.iglob(str(path), recursive=True)):
            if match.is_dir():
                paths.update(self._walk(match))
            elif is_image_path(match) or _is_parquet(match):
                paths.add(match)
        return sorted(paths)

    def _in_folder(self, folder: Path) -> list[Path]:
        return sorted(self._walk(folder)) or sorted(
            path for path in folder.glob(f"*{PARQUET_SUFFIX}") if not path.name.startswith(".")
        )

    def _walk(self, folder: Path) -> Iterator[Path]:
        """Yields visible images below a folder; links to folders are followed, each real folder once."""
        seen: set[str] = set()
        for root, folders, files in os.walk(folder, followlinks=True, onerror=self._note):
            real = os.path.realpath(root)
            if real in seen:
                folders.clear()
                continue
            seen.add(real)
            folders[:] = sorted(name for name in folders if not name.startswith("."))
            visible = [Path(root, name) for name in files if not name.startswith(".")]
            images = [path for path in visible if is_image_path(path)]
            self.left_out += len(visible) - len(images)
            yield from images

    def _note(self, error: OSError) -> None:
        self.unreadable[str(error.filename)] = error.strerror or str(error)


def _store(paths: Sequence[Path], root: str) -> Store:
    if not _is_parquet(paths[0]):
        return FileStore([str(path) for path in paths], root)
    from mixsiam_hub.images.parquet import ParquetStore

    return ParquetStore([str(path) for path in paths])


def _is_parquet(path: Path) -> bool:
    return path.suffix == PARQUET_SUFFIX


def _directory(spec: str) -> Path | None:
    path = _expanded(spec)
    return path if os.path.isdir(path) else None


def _expanded(spec: str) -> Path:
    """Returns the path, `~` expanded where there is such a user; a file of that very name comes first."""
    path = Path(spec)
    try:
        return path if os.path.lexists(path) else path.expanduser()
    except RuntimeError:  # No such user.
        return path
