"""Where images come from: whatever holds them becomes one set of Items, each with a name of its own, by index."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby
from typing import Protocol, overload

import numpy as np
from numpy.typing import NDArray

from mixsiam_hub.errors import DataError
from mixsiam_hub.images.finding import PARQUET_SUFFIX, TAR_SUFFIX, Search, directory, is_address, shard_suffix
from mixsiam_hub.images.kinds import ImageSource


@dataclass(frozen=True)
class Item:
    """One image on its way through this package.

    Attributes:
        key: Its name, unique in its source: the path as it was given, `FILE.parquet#ROW`, `FILE.tar#NAME`, or its place
            in a sequence.
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
        left_out: Files in the folders and tars that were searched which have no image's suffix.
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

    def check_searched(self) -> None:
        """Raises DataError if some folders could not be searched."""
        for folder, reason in self.unreadable.items():
            raise DataError(f"{folder} cannot be searched: {reason}")

    @property
    def identity(self) -> str:
        """A sha256 in hex of which images these are, by names and sizes, wherever they lie on this machine."""
        digest = hashlib.sha256(self.store.identity())
        digest.update(np.ascontiguousarray(self.indices, "<i8").tobytes())
        return digest.hexdigest()


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


def open_source(specs: str | Sequence[str], column: str | None = None) -> ImageSet:
    """Finds the images that one or several inputs stand for, in their order and each file once.

    Args:
        specs: Each a file, taken whatever its suffix; a folder, searched to any depth for image suffixes, hidden files
            and folders left out; a Parquet file or a tar, or a folder that holds such and no images; a list of such
            files, one path a line, in a `.txt` or, for `-`, on standard input; or a glob (`**` and `~` work), whose
            matches count by suffix as a folder's do. A name that exists is never read as a glob. A tar may be far away
            (an address that fsspec knows, as `s3://bucket/shard.tar`): it is fetched once, to see what is in it.
            Of a single folder whose every image lies in a sub-folder, the first sub-folder's name is the class.
        column: The Parquet column of encoded images; None for `image`.

    Raises:
        DataError: An input that stands for no image, a Parquet file without that column, a damaged tar, the address
            of anything but a tar, or a column and no Parquet file.
        MissingExtraError: Parquet, and pyarrow is not installed; an address, and fsspec is not.
    """
    given = [specs] if isinstance(specs, str) else list(specs)
    search = Search(given)
    root = directory(given[0]) if len(given) == 1 else None
    stores: list[Store] = []
    suffixes: set[str] = set()
    for suffix, paths in groupby(search.files(lists_once=True), shard_suffix):
        stores.append(_store(suffix, paths, search, str(root) if root else "", column))
        suffixes.add(suffix)
    if column is not None and PARQUET_SUFFIX not in suffixes:
        raise DataError(f"{', '.join(given)}: no Parquet file, so that there is no column {column!r}; leave it out")
    images = ImageSet.of(", ".join(given), stores[0] if len(stores) == 1 else _Joined(stores))
    return replace(images, left_out=search.left_out, unreadable=search.unreadable)


def _store(suffix: str, paths: Iterable[str], search: Search, root: str, column: str | None) -> Store:
    """Opens files of one kind that were found together."""
    from mixsiam_hub.images.files import FileStore  # The stores need this module first.
    from mixsiam_hub.images.parquet import ParquetStore
    from mixsiam_hub.images.tar import TarStore

    if suffix == PARQUET_SUFFIX:
        return ParquetStore(map(_local, paths), column)
    if suffix == TAR_SUFFIX:
        tars = TarStore.of(paths)
        search.left_out += tars.left_out
        return tars
    return FileStore.of(map(_local, paths), root)


def _local(path: str) -> str:
    if is_address(path):
        raise DataError(f"{path}: of what is far away only tars are read in any order; copy it here and give its path")
    return path
