"""PNG and TIFF files that Pillow refuses without need, or reads wrong without saying so."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from PIL.ExifTags import Base

from mixsiam_hub.errors import ImageError

SCALING = "np.uint8(np.interp(a, (a.min(), a.max()), (0, 255)))"
"""How an array `a` of any range becomes 8-bit grey: Pillow's own conversion would clip it."""

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
TIFF_SIGNATURES = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")

_GREY, _COLOUR, _PALETTE = 0, 2, 3  # PNG's colour types.
_NEEDED_CHUNKS = frozenset((b"tRNS", b"eXIf"))
_TURNING_TEXTS = frozenset((b"XML:com.adobe.xmp", b"Raw profile type exif", b"exif"))
"""Keywords of PNG texts in which Pillow looks for the orientation."""
_MAX_INFLATED_BYTES = 2**20
_MAX_TEXT_BYTES = 2**26
"""Pillow's own limits for texts of PNG, compressed and not."""

_WHITE_IS_ZERO, _RGB, _COLOUR_MAP, _SEPARATED, _YCBCR, _LAB = 0, 2, 3, 5, 6, 8  # TIFF's photometric interpretations.
_FULL_RANGE = (0, 255, 128, 255, 128, 255)
_BT601 = (0.299, 0.587, 0.114)
_D50 = (0.3457, 0.3585)


def picture_of_png(data: bytes) -> bytes:
    """Returns a PNG with only the chunks that make the picture: Pillow refuses long profiles and texts.

    The transparent grey of 2 and 4 bits is scaled as Pillow scales the pixels that it is compared with.

    Args:
        data: The file; where it is damaged the rest stays as it is, so that Pillow says what is wrong.

    Raises:
        ImageError: Its transparent colour has 16 bits: Pillow keeps 8 of the pixels' and compares them with 16.
    """
    parts = [PNG_SIGNATURE]
    depth = colour = -1
    at = len(PNG_SIGNATURE)
    while at + 12 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, at)
        body, end = memoryview(data)[at + 8 : at + 8 + length], at + 12 + length
        if end > len(data):
            break
        if kind == b"IHDR" and length >= 10:
            depth, colour = body[8], body[9]
        if kind == b"tRNS" and colour in (_GREY, _COLOUR):
            parts.append(_transparent_colour(body, depth, colour))
        elif not kind[0] & 0x20 or kind in _NEEDED_CHUNKS or _may_turn(kind, body):  # 0x20 marks what may be left out.
            parts.append(data[at:end])
        at = end
    parts.append(data[at:])
    return b"".join(parts)


def check_tiff(image: Image.Image) -> None:
    """Refuses a TIFF whose pixels Pillow would misread; any other image passes.

    Raises:
        ImageError: With the reason.
    """
    if (tags := _tiff_tags(image)) and (fault := _tiff_fault(tags, image.mode)):
        raise ImageError(f"{fault}, and Pillow would read it wrong; save it as 8-bit grey or RGB first")


def is_wide_grey(image: Image.Image) -> bool:
    """Tells grey of 9 to 16 bits from other modes; Pillow before 11 has mode I for it in PNG, and all have in PGM."""
    return image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM"))


def high_bytes(image: Image.Image) -> Image.Image:
    """Returns grey of 9 to 16 bits as 8-bit grey; a PNG's transparent grey value becomes white.

    Args:
        image: For which `is_wide_grey`, decoded.
    """
    pixels: NDArray[Any] = np.asarray(image)
    bits, white_is_zero = 16, False
    if tags := _tiff_tags(image):
        bits = max(tags.get(Base.BitsPerSample, (16,)))
        white_is_zero = tags.get(Base.PhotometricInterpretation, _WHITE_IS_ZERO) == _WHITE_IS_ZERO
    grey = (pixels >> (bits - 8)).astype(np.uint8)
    if white_is_zero:
        grey = 255 - grey
    transparent = image.info.get("transparency")
    if isinstance(transparent, int):
        grey[pixels == transparent] = 255
    return Image.fromarray(grey)


def lab_to_rgb(image: Image.Image) -> Image.Image:
    """Returns CIE L*a*b* of white point D50, 8 bits each, as sRGB."""
    from PIL import ImageCms  # Not needed to begin with.

    lab, srgb = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
    # Optimised, littlecms interpolates in a coarse table and is off by up to 30 levels.
    exact = ImageCms.Flags.NOOPTIMIZE
    converted = ImageCms.profileToProfile(image, lab, srgb, outputMode="RGB", flags=exact)
    if converted is None:
        raise ImageError("LAB cannot be converted")
    return converted


def _transparent_colour(body: memoryview, depth: int, colour: int) -> bytes:
    """Returns the chunk tRNS: only as many low bits count as a sample has, and Pillow scales 2 and 4 bits to 8."""
    if depth == 16 and colour == _COLOUR:
        raise ImageError("its transparent colour has 16 bits, which Pillow cannot compare; save it with 8 bits first")
    most = 2**depth - 1
    scale = {2: 85, 4: 17}.get(depth, 1)
    values = [(value & most) * scale for (value,) in struct.iter_unpack(">H", body[: len(body) // 2 * 2])]
    content = b"tRNS" + struct.pack(f">{len(values)}H", *values)
    return struct.pack(">I", len(content) - 4) + content + struct.pack(">I", zlib.crc32(content))


def _may_turn(kind: bytes, body: memoryview) -> bool:
    """Whether Pillow looks for the orientation in this chunk, and takes one of its length."""
    if kind not in (b"tEXt", b"zTXt", b"iTXt"):
        return False
    keyword, _, rest = bytes(body).partition(b"\0")
    if keyword not in _TURNING_TEXTS:
        return False
    if kind == b"zTXt":
        return _is_short(rest[1:])
    if kind == b"iTXt" and rest[:1] == b"\1":
        return _is_short(rest[2:].split(b"\0", 2)[-1])
    return len(rest) <= _MAX_TEXT_BYTES


def _is_short(compressed: bytes) -> bool:
    inflating = zlib.decompressobj()
    try:
        inflating.decompress(compressed, _MAX_INFLATED_BYTES)
    except zlib.error:
        return False
    return not inflating.unconsumed_tail


def _tiff_tags(image: Image.Image) -> Mapping[int, Any] | None:
    tags: Mapping[int, Any] | None = getattr(image, "tag_v2", None) if image.format == "TIFF" else None
    return tags


def _tiff_fault(tags: Mapping[int, Any], mode: str) -> str | None:
    """Says what about a TIFF's layout Pillow does not heed."""
    kind = tags.get(Base.PhotometricInterpretation, _WHITE_IS_ZERO)
    bits = max(tags.get(Base.BitsPerSample, (1,)))
    is_raw = tags.get(Base.Compression, 1) == 1
    samples = tags.get(Base.SamplesPerPixel, 1)
    if mode == "L" and 2 in tags.get(Base.SampleFormat, (1,)):
        return "its pixels are signed numbers"
    if tags.get(Base.PlanarConfiguration, 1) == 2 and samples > 1:
        if bits > 8 and is_raw:
            return f"its colours are separate planes of {bits} bits without compression"
        if kind == _LAB:
            return "its L, a and b are separate planes"
        if kind == _RGB and samples > 3 + len(tags.get(Base.ExtraSamples, ())):
            return "it has a fourth plane and does not say what it holds"
    if kind == _COLOUR_MAP:
        return _colour_map_fault(tags.get(Base.ColorMap, ()), bits)
    if kind == _SEPARATED and tags.get(Base.InkSet, 1) != 1:
        return "its inks are others than cyan, magenta, yellow and black"
    if kind == _YCBCR and is_raw:
        return _ycbcr_fault(tags)
    if kind == _LAB and not np.allclose(np.array(tags.get(Base.WhitePoint, _D50), float), _D50, atol=2e-3):
        return "its white point is not D50"
    return None


def _colour_map_fault(colours: tuple[int, ...], bits: int) -> str | None:
    if len(colours) != 3 * 2**bits:
        return f"its colour map holds {len(colours)} numbers, where {bits} bits need {3 * 2**bits}"
    if 0 < max(colours) < 256:
        return "its colour map has 8 bits, where a TIFF's has 16"
    return None


def _ycbcr_fault(tags: Mapping[int, Any]) -> str | None:
    if tuple(tags.get(Base.YCbCrSubSampling, (2, 2))) != (1, 1):
        return "it is YCbCr with fewer colour than brightness samples, without compression"
    given = [*tags.get(Base.ReferenceBlackWhite, _FULL_RANGE), *tags.get(Base.YCbCrCoefficients, _BT601)]
    if not np.allclose(np.array(given, float), [*_FULL_RANGE, *_BT601], atol=1e-3):
        return "it is YCbCr of another range or other coefficients than JPEG's"
    return None
