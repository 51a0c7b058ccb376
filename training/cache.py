"""Features of images, kept for the next evaluation of the same network on the very same images."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
import PIL
import torch
from numpy.typing import NDArray

from mixsiam_hub.atomic import make_folder, replacing
from mixsiam_hub.errors import ImageError, OutputError
from mixsiam_hub.images.kinds import ImageSource, path_or_bytes
from mixsiam_hub.images.sources import ImageSet
from mixsiam_hub.untrusted import sha256_file
from mixsiam_hub.user_cache import cache_folder

MAX_BYTES = 4 * 2**30
"""Of the whole folder; what was not used for longest goes first."""


class Cache:
    """A folder of features by what determines them. All of it may be deleted; what is damaged is computed again."""

    def __init__(self, folder: Path | None = None) -> None:
        """Takes the folder; None for `mixsiam-hub/features` in the user's cache folder."""
        self.folder = folder or cache_folder() / "features"

    def get(self, *key: str) -> NDArray[np.float32] | None:
        """Returns the features, (n, D), that were put there under a key, or None."""
        path = self._path(key)
        with suppress(OSError, ValueError):
            features: NDArray[np.float32] = np.load(path, allow_pickle=False)
            path.touch()
            return features
        return None

    def put(self, features: NDArray[np.float32], *key: str) -> None:
        """Keeps features, (n, D), under a key."""
        with suppress(OutputError, OSError):
            make_folder(self.folder)
            with replacing(self._path(key)) as file:
                np.save(file, features, allow_pickle=False)
            self._prune()

    def _path(self, key: Sequence[str]) -> Path:
        versions = [PIL.__version__, torch.__version__]  # Another Pillow may decode to other pixels.
        return self.folder / f"{hashlib.sha256(json.dumps([*key, *versions]).encode()).hexdigest()}.npy"

    def _prune(self) -> None:
        left = MAX_BYTES
        for path in sorted(self.folder.glob("*.npy"), key=lambda path: path.stat().st_mtime, reverse=True):
            left -= path.stat().st_size
            if left < 0:
                path.unlink()


def content_digest(images: ImageSet) -> str:
    """Returns a sha256 in hex of the encoded images themselves, in order."""
    digest = hashlib.sha256()
    for item in images:
        digest.update(_digest(item.source).encode())
    return digest.hexdigest()


def _digest(source: ImageSource) -> str:
    if isinstance(source, np.ndarray):
        return hashlib.sha256(repr(source.shape).encode() + source.tobytes()).hexdigest()
    try:
        found = path_or_bytes(source)
        return sha256_file(found, ImageError) if isinstance(found, str) else hashlib.sha256(found).hexdigest()
    except (ImageError, OSError) as error:  # One that cannot be read is left out of the features too.
        return str(error)
