"""Image files by index, of which only the names are held."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

from mixsiam_hub.images.names import Names
from mixsiam_hub.images.sources import Item


@dataclass(frozen=True, eq=False)
class FileStore:
    """Image files.

    Attributes:
        names: Their paths, or what of these stands behind `root`.
        root: The folder whose sub-folders are classes; "" where there is none.
    """

    names: Names
    root: str = ""

    @classmethod
    def of(cls, paths: Iterable[str], root: str = "") -> FileStore:
        """Takes files as they are found.

        Args:
            paths: As given; below the root, where there is one.
            root: As above.
        """
        start = len(_before(root))
        return cls(Names.of(path[start:] for path in paths), root)

    @cached_property
    def has_labels(self) -> bool:
        """Whether every image lies in a sub-folder of the root, and there are at least two of these."""
        found: set[str] = set()
        for name in self.names if self.root else ():
            if not (label := _folder(name)):
                return False
            found.add(label)
        return len(found) > 1

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> Item:
        name = self.names[index]
        path = _before(self.root) + name
        return Item(path, path, _folder(name) if self.root else None)

    def label(self, index: int) -> str | None:
        """The first sub-folder's name."""
        return _folder(self.names[index])

    def identity(self) -> bytes:
        """Names below the root, and sizes in bytes; -1 for a file that is gone."""
        digest = hashlib.sha256()
        for name in self.names:
            try:
                size = os.stat(_before(self.root) + name).st_size
            except OSError:
                size = -1
            known = name if self.root else os.path.basename(name)
            digest.update(f"{known}\0{size}\n".encode("utf-8", "surrogateescape"))
        return digest.digest()


def _before(root: str) -> str:
    """Returns what stands before a file's name below the root: `photos/`; nothing for the current folder."""
    return "" if root in ("", os.curdir) else os.path.join(root, "")


def _folder(name: str) -> str | None:
    first, slash, _ = name.partition(os.sep)
    return first if slash else None
