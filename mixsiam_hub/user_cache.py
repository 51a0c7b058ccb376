"""Where this package keeps what it can compute again."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any
from zipfile import BadZipFile

from mixsiam_hub.atomic import make_folder, replacing
from mixsiam_hub.errors import OutputError

if TYPE_CHECKING:
    from numpy.typing import NDArray

MAX_BYTES = 4 * 2**30
"""Of one folder of arrays; what was not used for longest goes first."""


def cache_folder() -> Path:
    """Returns `mixsiam-hub` in the user's cache folder: XDG_CACHE_HOME, or `.cache` in the home. It may not exist."""
    return Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")) / "mixsiam-hub"


class ArrayCache:
    """A folder of arrays by what determines them. All of it may be deleted; what is damaged counts as absent.

    Attributes:
        folder: It; made when something is put there.
    """

    def __init__(self, folder: Path) -> None:
        """Takes the folder."""
        self.folder = folder

    def get(self, *key: str) -> dict[str, NDArray[Any]] | None:
        """Returns the arrays that were put there under a key, by their names, or None."""
        import numpy as np

        path = self._path(*key)
        with suppress(OSError, ValueError, KeyError, EOFError, BadZipFile), np.load(path, allow_pickle=False) as found:
            arrays = dict(found)
            path.touch()
            return arrays
        return None

    def put(self, arrays: Mapping[str, NDArray[Any]], *key: str) -> None:
        """Keeps arrays of numbers, by name, under a key; where they cannot be written they are not kept."""
        import numpy as np

        by_name: dict[str, Any] = dict(arrays)
        with suppress(OutputError, OSError):
            make_folder(self.folder)
            with replacing(self._path(*key)) as file:
                np.savez(file, **by_name)
            self._prune()

    def _path(self, *key: str) -> Path:
        return self.folder / f"{hashlib.sha256(json.dumps(key).encode()).hexdigest()}.npz"

    def _prune(self) -> None:
        left = MAX_BYTES
        for path in sorted(self.folder.glob("*.npz"), key=lambda path: path.stat().st_mtime, reverse=True):
            left -= path.stat().st_size
            if left < 0:
                path.unlink()
