"""Vectors as a bare matrix, for tools that read .npy: it names no encoder, so this package does not read it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mixsiam_hub.atomic import replacing
from mixsiam_hub.errors import DataError
from mixsiam_hub.untrusted import quote

if TYPE_CHECKING:
    from mixsiam_hub.vectors.table import VectorFile


def keys_path(path: Path) -> Path:
    """Returns where the keys of a matrix are listed."""
    return path.with_suffix(".keys.txt")


@contextmanager
def matrix_writer(path: Path) -> Iterator[Callable[[VectorFile], None]]:
    """Tries whether a matrix can be written, before it is computed, and gives what writes it.

    `v.npy` holds (N, D) float32, and `v.keys.txt` beside it the N keys, a line each, as the bytes that a file name is.
    Each of them is written whole or not at all, the keys first.

    Args:
        path: Where to, ending in .npy. Existing files are replaced at the end.

    Raises:
        OutputError: A place that cannot be written.
        DataError: While writing: a key with a line break.
    """
    with replacing(path) as matrix, replacing(keys_path(path)) as keys:

        def write(data: VectorFile) -> None:
            odd = next((key for key in data.ids if "\n" in key or "\r" in key), None)
            if odd is not None:
                raise DataError(f"{quote(odd)} has a line break, which a list of keys cannot hold; write .npz instead")
            np.save(matrix, data.vectors)
            keys.write("".join(f"{key}\n" for key in data.ids).encode("utf-8", "surrogateescape"))

        yield write
