"""Which things hold an image, and how each is read into bytes; nothing here decodes pixels."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mixsiam_hub.errors import ImageError


class Readable(Protocol):
    """A binary file object, or the least that is needed of one."""

    def read(self) -> bytes:
        """Returns the rest of the file."""


class Archived(Protocol):
    """A member of an archive, as `zipfile.Path`."""

    def read_bytes(self) -> bytes:
        """Returns the whole file."""


ImageSource = (
    str
    | os.PathLike[str]
    | bytes
    | bytearray
    | memoryview
    | Readable
    | Archived
    | Mapping[str, Any]
    | Image.Image
    | NDArray[Any]
)

# fmt: off
IMAGE_SUFFIXES = frozenset((
    ".avif", ".bmp", ".gif", ".heic", ".heif", ".hif", ".jfif", ".jp2", ".jpe", ".jpeg", ".jpg", ".pbm", ".pgm", ".png",
    ".ppm", ".tga", ".tif", ".tiff", ".webp",
))
# fmt: on
"""File name endings, in lower case, that count as images when a folder is searched."""


MAX_IMAGE_BYTES = 2**31
"""Of an encoded image that is read whole: no image of load.MAX_PIXELS is larger, and a hostile file may be endless."""


@dataclass(frozen=True)
class Unreadable:
    """Stands for images that were found and cannot be read, so that they are reported as bad images are.

    Attributes:
        reason: What is wrong, without their name.
    """

    reason: str

    def read_bytes(self) -> bytes:
        """Never returns.

        Raises:
            ImageError: Always, with the reason.
        """
        raise ImageError(self.reason)


def is_image_path(path: str | os.PathLike[str]) -> bool:
    """Tells by the suffix alone, in any case, whether a file counts as an image."""
    return os.path.splitext(path)[1].lower() in IMAGE_SUFFIXES


def path_or_bytes(source: ImageSource) -> str | bytes:
    """Returns an encoded image as something that cannot change: its path, or its bytes, which are read now.

    Args:
        source: A path; bytes, bytearray or memoryview; a file object, read from its start where it can be rewound;
            anything with `read_bytes`; or a mapping with `bytes` or, where these are None, `path`.

    Raises:
        ImageError: It is none of these.
        Exception: Whatever reading raises.
    """
    if isinstance(source, Mapping):
        source = _of_mapping(source)
    if isinstance(source, str | os.PathLike):
        return os.fsdecode(source)
    data = source if isinstance(source, bytes | bytearray | memoryview) else _read(source)
    if not isinstance(data, bytes | bytearray | memoryview):
        raise ImageError("the file object gives text; open it with mode 'rb'")
    return bytes(data)


def describe(source: ImageSource) -> str:
    """Names a source in an error: its path where it has one, else what it is."""
    if isinstance(source, Mapping) and isinstance(source.get("path"), str | os.PathLike):
        source = source["path"]
    if isinstance(source, str | os.PathLike):
        return os.fsdecode(source) or "image with an empty path"
    if isinstance(source, bytes | bytearray | memoryview | Mapping):
        return "image from bytes"
    if isinstance(source, np.ndarray):
        return "image from an array"
    if hasattr(source, "read_bytes"):
        return str(source)
    kind = "PIL image" if isinstance(source, Image.Image) else "image from a file object"
    name = getattr(source, "filename", None) or getattr(source, "name", None)
    return f"{kind} {name}" if isinstance(name, str) else kind


def _of_mapping(pair: Mapping[str, Any]) -> ImageSource:
    """Returns what the `datasets` library's pair of bytes and path stands for."""
    encoded, path = pair.get("bytes"), pair.get("path")
    if isinstance(encoded, bytes | bytearray | memoryview):
        return encoded
    if isinstance(path, str | os.PathLike):
        return path
    raise ImageError(f"a mapping must hold an encoded image's 'bytes' or its 'path'; its keys are {list(pair)}")


def _read(source: Any) -> Any:
    if hasattr(source, "read_bytes"):
        return source.read_bytes()
    if not hasattr(source, "read"):
        raise ImageError(
            f"it is a {type(source).__name__}; an image must be a path, bytes, a binary file object, a PIL image or "
            "a uint8 numpy array"
        )
    with contextlib.suppress(AttributeError, OSError, ValueError):  # A stream is read from where it stands.
        source.seek(0)
    return source.read()
