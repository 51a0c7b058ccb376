"""Vectors as a bare matrix, for tools that read .npy: it names no encoder, so this package does not read it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mixsiam_hub.atomic import replacing
from mixsiam_hub.images.kinds import Unreadable

if TYPE_CHECKING:
    from mixsiam_hub.images.sources import Item
    from mixsiam_hub.vectors.table import VectorFile

_MISNAMED = Unreadable("its name has a line break, which a list of keys cannot hold; rename it, or write .npz")


def keys_path(path: Path) -> Path:
    """Returns where the keys of a matrix are listed."""
    return path.with_suffix(".keys.txt")


def with_listable_keys(images: Iterable[Item]) -> Iterator[Item]:
    """Yields images; one whose key is not a single line comes as a bad image, so that it cannot cost the others."""
    for item in images:
        yield replace(item, source=_MISNAMED) if {"\n", "\r"} & set(item.key) else item


@contextmanager
def matrix_writer(path: Path) -> Iterator[Callable[[VectorFile], None]]:
    """Tries whether a matrix can be written, before it is computed, and gives what writes it.

    `v.npy` holds (N, D) float32, and `v.keys.txt` beside it the N keys, a line each, as the bytes that a file name is.
    Each of them is written whole or not at all, the keys first.

    Args:
        path: Where to, ending in .npy. Existing files are replaced at the end. What is written has only keys of one
            line, as of `with_listable_keys`.

    Raises:
        OutputError: A place that cannot be written.
    """
    with replacing(path) as matrix, replacing(keys_path(path)) as keys:

        def write(data: VectorFile) -> None:
            np.save(matrix, data.vectors)
            keys.write("".join(f"{key}\n" for key in data.ids).encode("utf-8", "surrogateescape"))

        yield write
