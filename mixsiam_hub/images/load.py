"""From whatever holds an image to upright RGB pixels, or to an ImageError that says which image and why."""

from __future__ import annotations

import functools
import io
import logging
import os
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, BinaryIO, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageFile, UnidentifiedImageError
from PIL.JpegImagePlugin import JpegImageFile

from mixsiam_hub.errors import ImageError
from mixsiam_hub.images.formats import (
    PNG_SIGNATURE,
    SCALING,
    TIFF_SIGNATURES,
    check_tiff,
    high_bytes,
    is_wide_grey,
    lab_to_rgb,
    picture_of_png,
)
from mixsiam_hub.images.kinds import MAX_IMAGE_BYTES, ImageSource, describe, path_or_bytes
from mixsiam_hub.per_process import PerProcess
from mixsiam_hub.untrusted import NotRegularError, one_line, open_file

MAX_PIXELS = 178_000_000
"""Width times height that a file may decode to: 0.7 GB as RGB in Pillow, just under the size that Pillow refuses."""

_AT_ONCE_BYTES = 64 << 20

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
_TRANSPOSING = {_TURNS[number] for number in (5, 6, 7, 8)}
# Pillow decodes a PIL image on first use, and two threads that trip this on the same one corrupt it. Many locks,
# chosen by identity, keep different images parallel; a forked child gets its own, none of them held.
_DECODE_LOCKS = PerProcess(lambda: [threading.Lock() for _ in range(61)])
_HEIF_LOCK = threading.Lock()
_T = TypeVar("_T")
_log = logging.getLogger(__name__)


class Digest(Protocol):
    """What `hashlib.sha256()` gives, or the least that is needed of it."""

    def update(self, data: bytes, /) -> None:
        """Takes the next bytes."""


@dataclass
class Draft:
    """Asks for a JPEG at a half, a quarter or an eighth of its size, which costs less to decode.

    Attributes:
        short_px: Least length of the short edge, in pixels; or what tells it, given the upright image's width and
            height, which is then asked before a JPEG is decoded.
        size: (width, height) in pixels of the upright image in full, once it was loaded.
        box: (left, top, right, bottom) of the image in the reduced one, whose last row and column it may fill only in
            part; None where it was not reduced.
    """

    short_px: int | Callable[[int, int], int]
    size: tuple[int, int] = (0, 0)
    box: tuple[float, float, float, float] | None = None


def load_image(
    source: ImageSource, *, name: str | None = None, digest: Digest | None = None, draft: Draft | None = None
) -> Image.Image:
    """Decodes one image to upright RGB.

    The EXIF orientation is applied, transparency is composited on white, grey of 9 to 16 bits keeps its highest 8 (as
    Pillow does for 16-bit colour), and of an animation the first frame is taken. Colour profiles are ignored.

    Args:
        source: A path; an encoded file as bytes, bytearray, memoryview or binary file object (read from its start where
            it can be rewound, left open); a member of an archive (`zipfile.Path`); the `datasets` library's
            {"bytes", "path"}; a PIL image (its current frame; never changed); or a uint8 array: (H, W) grey, (H, W, 3)
            RGB or (H, W, 4) RGBA.
        name: What to call it in an error; by default its path, or what kind of source it is.
        digest: Takes the encoded file, the very bytes that are decoded; nothing of a PIL image or an array.
        draft: For encoded files; other images are given in full. Its size is set.

    Returns:
        An image of mode RGB, at least 1x1. A PIL image that needs no change is returned as it is.

    Raises:
        ImageError: The image is missing, damaged, too large, or of a kind that has no one meaning as 8-bit RGB.
    """
    return _naming(functools.partial(_load, digest=digest, draft=draft), source, name)


def take(source: ImageSource, *, name: str | None = None) -> ImageSource:
    """Returns a source as it is now, so that its owner may go on to change, move or close it.

    Args:
        source: As `load_image` takes it.
        name: What to call it in an error.

    Returns:
        A path or bytes, still to be decoded; a copy of an array; or a PIL image's upright RGB pixels.

    Raises:
        ImageError: It cannot be read, or it is a PIL image that cannot be decoded.
    """
    return _naming(_take, source, name)


def _naming(read: Callable[[ImageSource], _T], source: ImageSource, name: str | None) -> _T:
    """Reads a source; whatever goes wrong becomes an ImageError that names it."""
    try:
        return read(source)
    except Exception as error:  # Pillow's plugins raise whatever their parsers trip over.
        complaint = f"{name or describe(source)}: {_reason(error)}"
        _log.debug(complaint, exc_info=True)
    raise ImageError(complaint)  # Not from within: an error that it is chained to would keep the decoder's pixels.


def _take(source: ImageSource) -> ImageSource:
    if isinstance(source, np.ndarray):
        return source.copy()
    if isinstance(source, Image.Image):
        upright = _load(source)
        return upright.copy() if upright is source else upright
    return path_or_bytes(source)


def _load(source: ImageSource, digest: Digest | None = None, draft: Draft | None = None) -> Image.Image:
    if isinstance(source, np.ndarray):
        return _to_rgb(_from_array(source))
    if isinstance(source, Image.Image):
        locks = _DECODE_LOCKS.get()
        with locks[id(source) % len(locks)]:
            return _decode(source)
    found = path_or_bytes(source)
    # By name Pillow would map some files into memory, and shear those that are turned: it gets an open file.
    with (
        open_file(found) if isinstance(found, str) else io.BytesIO(found) as file,
        _open(_digested(file, digest) if digest else file) as image,
    ):
        return _decode(image, draft)


def _digested(file: BinaryIO, digest: Digest) -> BinaryIO:
    """Gives a file to a digest, and returns it to be read from its start: from memory, unless it is a large one."""
    size = file.seek(0, os.SEEK_END)
    if size > MAX_IMAGE_BYTES:
        raise ImageError(f"it has {size} bytes, more than {MAX_IMAGE_BYTES}; an image file has less")
    file.seek(0)
    if size <= _AT_ONCE_BYTES:
        data = file.read(_AT_ONCE_BYTES)
        digest.update(data)
        return io.BytesIO(data)
    while data := file.read(1 << 20):
        digest.update(data)
    file.seek(0)
    return file


def _open(file: BinaryIO) -> Image.Image:
    """Opens an encoded image without decoding it."""
    head = file.read(12)
    file.seek(0)
    if not head:
        raise ImageError("the file is empty")
    if head.startswith(PNG_SIGNATURE):
        return Image.open(io.BytesIO(picture_of_png(file.read())))
    try:
        return Image.open(file)
    except UnidentifiedImageError:
        if head.startswith(TIFF_SIGNATURES):
            raise ImageError("is a TIFF of a kind that Pillow cannot read; save it as 8-bit grey or RGB") from None
        if head[4:8] != b"ftyp" or head[8:12] not in _HEIC_BRANDS:
            raise
    with _HEIF_LOCK:
        _register_heif()
    return Image.open(file)


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
            f"(H, W, 4), with H and W of at least 1. Other numbers are scaled by {SCALING}"
        )
    return Image.fromarray(array)


def _decode(image: Image.Image, draft: Draft | None = None) -> Image.Image:
    width, height = image.size
    if width * height == 0:
        raise ImageError(f"it has no pixels: {width}x{height}")
    if width * height > MAX_PIXELS:
        raise ImageError(f"{width}x{height} is {width * height} pixels, more than {MAX_PIXELS}; shrink it first")
    if image.format == "EPS":
        raise ImageError("EPS is a program, which Ghostscript would run, and not pixels; convert it to PNG first")
    check_tiff(image)
    reduced = None
    if draft and isinstance(image, JpegImageFile):
        short_px = draft.short_px
        if callable(short_px):
            short_px = short_px(*_upright((width, height), _TURNS.get(_orientation(image))))
        reduced = image.draft(None, (short_px, short_px))
    _load_pixels(image)
    turn = _TURNS.get(_orientation(image))
    if draft:
        # Pillow 10 turns a TIFF itself while it loads it.
        draft.size = _upright((width, height) if reduced else image.size, turn)
        draft.box = _turned_box(reduced[1], image.size, turn) if reduced else None
    rgb = _to_rgb(image)
    if turn is None:
        return rgb
    turned = rgb.transpose(turn)
    turned.info.clear()  # Else its EXIF would say that it is still to be turned.
    return turned


def _upright(size: tuple[int, int], turn: Image.Transpose | None) -> tuple[int, int]:
    """Returns the (width, height) of an image once it is turned."""
    width, height = size
    return (height, width) if turn in _TRANSPOSING else (width, height)


def _turned_box(
    box: tuple[float, float, float, float], size: tuple[int, int], turn: Image.Transpose | None
) -> tuple[float, float, float, float]:
    """Returns where a box from the corner of an image of `size` lies once it is turned."""
    (width, height), (right, bottom) = size, box[2:]
    return {
        None: (0, 0, right, bottom),
        Image.Transpose.FLIP_LEFT_RIGHT: (width - right, 0, width, bottom),
        Image.Transpose.ROTATE_180: (width - right, height - bottom, width, height),
        Image.Transpose.FLIP_TOP_BOTTOM: (0, height - bottom, right, height),
        Image.Transpose.TRANSPOSE: (0, 0, bottom, right),
        Image.Transpose.ROTATE_270: (height - bottom, 0, height, right),
        Image.Transpose.TRANSVERSE: (height - bottom, width - right, height, width),
        Image.Transpose.ROTATE_90: (0, width - right, bottom, width),
    }[turn]


def _load_pixels(image: Image.Image) -> None:
    """Decodes, without its file's name for as long as that takes: see `_load`."""
    if not isinstance(image, ImageFile.ImageFile):
        image.load()
        return
    name, image.filename = image.filename, ""
    try:
        image.load()
    finally:
        image.filename = name


def _orientation(image: Image.Image) -> Any:
    try:
        return image.getexif().get(ExifTags.Base.Orientation)
    except Exception as error:  # Broken metadata are no reason to refuse sound pixels.
        _log.debug("unreadable EXIF ignored: %s", error)
        return None


def _to_rgb(image: Image.Image) -> Image.Image:
    if is_wide_grey(image):
        return high_bytes(image).convert("RGB")
    if image.mode in ("I", "F"):
        raise ImageError(
            f"mode {image.mode} has no fixed range; for a = np.asarray(image) the 8-bit grey array is {SCALING}"
        )
    if image.mode == "LAB":
        return lab_to_rgb(image)
    if image.has_transparency_data:
        rgba = (image.convert("LA") if image.mode == "La" else image).convert("RGBA")
        canvas = Image.new("RGB", image.size, "white")
        canvas.paste(rgba, mask=rgba.getchannel("A"))
        return canvas
    return image if image.mode == "RGB" else image.convert("RGB")


def _reason(error: Exception) -> str:
    if isinstance(error, ImageError | NotRegularError):
        return str(error)
    if isinstance(error, FileNotFoundError):
        return "no such file"
    if isinstance(error, PermissionError):
        return "may not be read (permission denied)"
    if isinstance(error, UnidentifiedImageError):
        return "is not an image that Pillow can read"
    if isinstance(error, Image.DecompressionBombError | Image.DecompressionBombWarning):
        return f"is larger than Pillow's limit, PIL.Image.MAX_IMAGE_PIXELS; shrink it first ({error})"
    if isinstance(error, OSError) and error.strerror:
        return f"cannot be read: {error.strerror}"
    return f"cannot be decoded: {one_line(error) or type(error).__name__}"
