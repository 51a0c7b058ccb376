"""From whatever holds an image to upright RGB pixels, or to an ImageError that says which image and why."""

from __future__ import annotations

import functools
import io
import logging
import os
import threading
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, UnidentifiedImageError

from mixsiam_hub.errors import ImageError
from mixsiam_hub.per_process import PerProcess

ImageSource = str | os.PathLike[str] | bytes | BinaryIO | Image.Image | NDArray[Any]

MAX_PIXELS = 178_000_000
"""Width times height that a file may decode to: 0.7 GB as RGB in Pillow, just under the size that Pillow refuses."""

# fmt: off
IMAGE_SUFFIXES = frozenset((
    ".avif", ".bmp", ".gif", ".heic", ".heif", ".hif", ".jfif", ".jp2", ".jpe", ".jpeg", ".jpg", ".pbm", ".pgm", ".png",
    ".ppm", ".tga", ".tif", ".tiff", ".webp",
))
# fmt: on
"""File name endings, in lower case, that count as images when a folder is searched."""

_HEIC_BRANDS = frozenset((b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"))
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
# Pillow decodes a PIL image on first use, and two threads that trip this on the same one corrupt it. Many locks,
# chosen by identity, keep different images parallel; a forked child gets its own, none of them held.
_DECODE_LOCKS = PerProcess(lambda: [threading.Lock() for _ in range(61)])
_HEIF_LOCK = threading.Lock()
_log = logging.getLogger(__name__)


def is_image_path(path: str | os.PathLike[str]) -> bool:
    """Tells by the suffix alone, in any case, whether a file counts as an image."""
    return Path(path).suffix.lower() in IMAGE_SUFFIXES


def take(source: ImageSource) -> ImageSource:
    """STUB until package A lands."""
    if isinstance(source, np.ndarray):
        return source.copy()
    if isinstance(source, Image.Image):
        c = source.copy()
        c.format = source.format
        return c
    if isinstance(source, str | bytes | os.PathLike):
        return source
    return _read(source)


def load_image(source: ImageSource, *, name: str | None = None, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Decodes one image to upright RGB.

    The EXIF orientation is applied, transparency is composited on white, 16-bit grey keeps its high byte (as Pillow
    does for 16-bit colour), and of an animation the first frame is taken. Colour profiles are ignored.

    Args:
        source: A path, an encoded file's bytes, a binary file object (read from its start, left open), a PIL image
            (never changed), or a uint8 array: (H, W) grey, (H, W, 3) RGB or (H, W, 4) RGBA.
        max_pixels: Largest width times height, checked on the header before anything is decoded; not for arrays.

    Returns:
        An image of mode RGB, at least 1x1. A PIL image that needs no change is returned as it is.

    Raises:
        ImageError: The image is missing, damaged, too large, or of a kind that has no one meaning as 8-bit RGB.
    """
    try:
        if isinstance(source, np.ndarray):
            return _to_rgb(_from_array(source))
        if isinstance(source, Image.Image):
            locks = _DECODE_LOCKS.get()
            with locks[id(source) % len(locks)]:
                return _decode(source, max_pixels)
        with _open(source) as image:
            return _decode(image, max_pixels)
    except ImageError as error:
        raise ImageError(f"{name or describe(source)}: {error}") from error.__cause__
    except Exception as error:  # Pillow's plugins raise whatever their parsers trip over
        raise ImageError(f"{name or describe(source)}: {_reason(error)}") from error


def describe(source: ImageSource) -> str:
    """Names a source in an error: its path where it has one, else what it is."""
    if isinstance(source, str | os.PathLike):
        return os.fspath(source) or "image with an empty path"
    if isinstance(source, bytes):
        return "image from bytes"
    if isinstance(source, np.ndarray):
        return "image from an array"
    kind = "PIL image" if isinstance(source, Image.Image) else "image from a file object"
    name = getattr(source, "filename", None) or getattr(source, "name", None)
    return f"{kind} {name}" if isinstance(name, str) else kind


def _open(source: str | os.PathLike[str] | bytes | BinaryIO) -> Image.Image:
    """Opens an encoded image without decoding it."""
    file: str | os.PathLike[str] | io.BytesIO
    if isinstance(source, str | os.PathLike):
        file = source
    else:
        file = io.BytesIO(source if isinstance(source, bytes) else _read(source))
    try:
        return Image.open(file)
    except UnidentifiedImageError:
        head = _head(file)
        if not head:
            raise ImageError("the file is empty") from None
        if head[4:8] != b"ftyp" or head[8:12] not in _HEIC_BRANDS:
            raise
    with _HEIF_LOCK:
        _register_heif()
    return Image.open(file)


def _read(file: BinaryIO) -> bytes:
    if not hasattr(file, "read"):
        raise ImageError(
            f"it is a {type(file).__name__}; an image must be a path, bytes, a binary file object, a PIL image or "
            "a uint8 numpy array"
        )
    if file.seekable():
        file.seek(0)
    data = file.read()
    if not isinstance(data, bytes):
        raise ImageError("the file object gives text; open it with mode 'rb'")
    return data


def _head(file: str | os.PathLike[str] | io.BytesIO) -> bytes:
    if isinstance(file, io.BytesIO):
        return file.getvalue()[:12]
    with open(file, "rb") as opened:
        return opened.read(12)


@functools.cache
def _register_heif() -> None:
    try:
        import pillow_heif
    except ImportError:
        raise ImageError("HEIC needs pillow-heif; run: pip install 'mixsiam-hub[heic]'") from None
    pillow_heif.register_heif_opener()


def _from_array(array: NDArray[Any]) -> Image.Image:
    shape = array.shape
    allowed = array.ndim == 2 or (array.ndim == 3 and shape[2] in (3, 4))
    if array.dtype != np.uint8 or not allowed or 0 in shape:
        raise ImageError(
            f"it has shape {shape} and dtype {array.dtype}; an array must be uint8 of shape (H, W), (H, W, 3) or "
            "(H, W, 4), with H and W of at least 1"
        )
    return Image.fromarray(array)


def _decode(image: Image.Image, max_pixels: int) -> Image.Image:
    width, height = image.size
    if width * height == 0:
        raise ImageError(f"it has no pixels: {width}x{height}")
    if width * height > max_pixels:
        raise ImageError(
            f"{width}x{height} is {width * height} pixels and max_pixels is {max_pixels}; shrink it, or raise the "
            "limit if you trust the file"
        )
    if image.format == "EPS":
        raise ImageError("EPS is a program, which Ghostscript would run, and not pixels; convert it to PNG first")
    image.load()
    turn = _TURNS.get(_orientation(image))
    rgb = _to_rgb(image)
    if turn is None:
        return rgb
    turned = rgb.transpose(turn)
    turned.info.clear()  # else its EXIF would say that it is still to be turned
    return turned


def _orientation(image: Image.Image) -> Any:
    try:
        return image.getexif().get(ExifTags.Base.Orientation)
    except Exception as error:  # broken metadata are no reason to refuse sound pixels
        _log.debug("unreadable EXIF ignored: %s", error)
        return None


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16"):
        return _high_bytes(image).convert("RGB")
    if image.mode in ("I", "F", "LAB"):
        raise ImageError(f"mode {image.mode} has no fixed range as 8-bit RGB; convert it to mode L or RGB first")
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        canvas = Image.new("RGB", image.size, "white")
        canvas.paste(rgba, mask=rgba.getchannel("A"))
        return canvas
    return image if image.mode == "RGB" else image.convert("RGB")


def _high_bytes(image: Image.Image) -> Image.Image:
    """16-bit grey to 8-bit grey; a PNG's transparent grey value becomes white."""
    pixels = np.asarray(image)
    grey = (pixels >> 8).astype(np.uint8)
    transparent = image.info.get("transparency")
    if isinstance(transparent, int):
        grey[pixels == transparent] = 255
    return Image.fromarray(grey)


def _reason(error: Exception) -> str:
    if isinstance(error, FileNotFoundError):
        return "no such file"
    if isinstance(error, IsADirectoryError):
        return "is a folder, not an image"
    if isinstance(error, PermissionError):
        return "may not be read (permission denied)"
    if isinstance(error, UnidentifiedImageError):
        return "is not an image that Pillow can read"
    if isinstance(error, Image.DecompressionBombError | Image.DecompressionBombWarning):
        return f"is larger than Pillow's own limit; set PIL.Image.MAX_IMAGE_PIXELS if you trust the file ({error})"
    return f"cannot be decoded: {error or type(error).__name__}"
