"""Pictures that loaders disagree on, and for each the plain pictures that a loader may take it for."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageChops, ImageCms, ImageEnhance
from skimage import data

PHOTO_PX = (451, 300)
"""(width, height) of the photo that all of them are made of."""

TURNED_ON_ITS_SIDE = 6
"""EXIF's orientation of a photo that must be turned clockwise by 90 degrees to be upright."""

MARGIN_COLOUR = (255, 0, 255)
"""What the transparent margin of the palette picture hides."""

_WIDE_GAMUT = {"r": (0.60974, 0.31111, 0.01947), "g": (0.20528, 0.62567, 0.06087), "b": (0.14919, 0.06322, 0.74457)}
"""Adobe RGB (1998): XYZ of its primaries, adapted to D50."""
_D50 = (0.9642, 1.0, 0.82491)
_GAMMA = 563 / 256
_ALMOST_LOSSLESS = {"quality": 100, "subsampling": 0}


def odd_pictures(folder: Path) -> dict[str, Path]:
    """Writes one picture of each kind.

    Args:
        folder: Where; it exists.

    Returns:
        What is odd about it -> the file.
    """
    photo, alpha = _photo(), Image.fromarray(_fading())
    vivid = _vivid()
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = TURNED_ON_ITS_SIDE
    files = {
        "EXIF turn": folder / "turned.jpg",
        "alpha": folder / "half_transparent.png",
        "palette alpha": folder / "transparent_margin.png",
        "CMYK": folder / "cmyk.jpg",
        "16-bit grey": folder / "grey_16.png",
        "16-bit colour": folder / "colour_16.png",
        "wide-gamut profile": folder / "wide_gamut.jpg",
    }
    photo.transpose(Image.Transpose.ROTATE_90).save(files["EXIF turn"], exif=exif, **_ALMOST_LOSSLESS)
    Image.merge("RGBA", (*photo.split(), alpha)).save(files["alpha"])
    _with_margin().save(files["palette alpha"], transparency=255)
    photo.convert("CMYK").save(files["CMYK"], **_ALMOST_LOSSLESS)
    Image.fromarray(_in_16_bits(photo.convert("L"))).save(files["16-bit grey"])
    files["16-bit colour"].write_bytes(_png_16(_in_16_bits(photo)))
    vivid.save(files["wide-gamut profile"], icc_profile=_profile(), **_ALMOST_LOSSLESS)
    return files


def readings() -> dict[str, dict[str, Image.Image]]:
    """Returns what is odd -> what a loader may do with it -> the RGB picture it then sees; ours comes first."""
    photo, alpha = _photo(), Image.fromarray(_fading())
    palette, margin = _with_margin(), _with_margin().point(lambda index: 255 * (index == 255), "L")
    vivid = _vivid()
    grey = _in_16_bits(photo.convert("L"))
    cmyk = photo.convert("CMYK")
    black, white = (Image.new("RGB", PHOTO_PX, name) for name in ("black", "white"))
    return {
        "EXIF turn": {"turned": photo, "not turned": photo.transpose(Image.Transpose.ROTATE_90)},
        "alpha": {
            "on white": Image.composite(photo, white, alpha),
            "on black": Image.composite(photo, black, alpha),
            "dropped": photo,
        },
        "palette alpha": {
            "on white": Image.composite(white, palette.convert("RGB"), margin),
            "on black": Image.composite(black, palette.convert("RGB"), margin),
            "dropped": palette.convert("RGB"),
        },
        "CMYK": {"read": cmyk.convert("RGB"), "inverted": ImageChops.invert(cmyk).convert("RGB")},
        "16-bit grey": {
            "high byte": Image.fromarray((grey >> 8).astype(np.uint8)).convert("RGB"),
            "all white": Image.fromarray(grey.clip(0, 255).astype(np.uint8)).convert("RGB"),
        },
        "16-bit colour": {"high byte": photo},
        "wide-gamut profile": {"ignored": vivid, "applied": _to_srgb(vivid)},
    }


def _photo() -> Image.Image:
    return Image.fromarray(data.chelsea())


def _fading() -> NDArray[np.uint8]:
    """(H, W): from opaque on the left to nothing on the right."""
    width, height = PHOTO_PX
    return np.linspace(255, 0, width).astype(np.uint8)[None].repeat(height, 0)


def _with_margin() -> Image.Image:
    """The photo in 255 colours, and a margin of one more, which is to be transparent."""
    width, height = PHOTO_PX
    image = _photo().quantize(255)
    image.putpalette([*image.getpalette()[: 255 * 3], *MARGIN_COLOUR])
    framed = Image.new("P", PHOTO_PX, 255)
    framed.putpalette(image.getpalette())
    framed.paste(image.crop((80, 60, width - 80, height - 60)), (80, 60))
    return framed


def _in_16_bits(image: Image.Image) -> NDArray[np.uint16]:
    """Levels times 256, plus a low byte that is not zero."""
    return np.asarray(image).astype(np.uint16) * 256 + 77


def _png_16(pixels: NDArray[np.uint16]) -> bytes:
    """A PNG of 16 bits a channel, (H, W, 3), which Pillow reads and cannot write."""
    height, width, _ = pixels.shape
    lines = b"".join(b"\0" + line.astype(">u2").tobytes() for line in pixels)
    chunks = {
        b"IHDR": struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0),
        b"IDAT": zlib.compress(lines),
        b"IEND": b"",
    }
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))
        for name, content in chunks.items()
    )


def _vivid() -> Image.Image:
    """The photo in colours so strong that a profile shows."""
    return ImageEnhance.Color(_photo()).enhance(3)


def _to_srgb(image: Image.Image) -> Image.Image:
    source = ImageCms.ImageCmsProfile(io.BytesIO(_profile()))
    return ImageCms.profileToProfile(image, source, ImageCms.createProfile("sRGB"))


def _profile() -> bytes:
    """A colour profile of ICC version 2 for _WIDE_GAMUT."""

    def xyz(values: tuple[float, float, float]) -> bytes:
        return b"XYZ \0\0\0\0" + struct.pack(">3i", *(round(value * 65536) for value in values))

    name = b"wide gamut\0"
    text = b"desc\0\0\0\0" + struct.pack(">I", len(name)) + name + bytes(78)
    curve = b"curv\0\0\0\0" + struct.pack(">IHxx", 1, round(_GAMMA * 256))
    tags = {b"desc": text, b"cprt": b"text\0\0\0\0none\0", b"wtpt": xyz(_D50)}
    tags |= {f"{channel}XYZ".encode(): xyz(values) for channel, values in _WIDE_GAMUT.items()}
    tags |= dict.fromkeys((b"rTRC", b"gTRC", b"bTRC"), curve)
    offset, table, body = 128 + 4 + 12 * len(tags), struct.pack(">I", len(tags)), b""
    for tag, content in tags.items():
        table += struct.pack(">4sII", tag, offset + len(body), len(content))
        body += content + bytes(-len(content) % 4)
    header = struct.pack(">I4xI4s4s4s12x4s", offset + len(body), 0x02100000, b"mntr", b"RGB ", b"XYZ ", b"acsp")
    header += bytes(28) + struct.pack(">3i", *(round(value * 65536) for value in _D50))
    return header + bytes(128 - len(header)) + table + body
