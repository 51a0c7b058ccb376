"""TIFF and PNG files packed by hand, so that what a test expects of them does not come from Pillow."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence

import numpy as np

SHORT, LONG, RATIONAL = 3, 4, 5
_FORMATS = {SHORT: "H", LONG: "I", RATIONAL: "I"}


def tiff(samples: np.ndarray, tags: dict[int, Sequence[int]], *, order: str = "<", zipped: bool = False) -> bytes:
    """Packs a TIFF of one strip, or of one strip a plane.

    Args:
        samples: (H, W, channels) integers of as many bits as tag 258 says.
        tags: Number -> values; size, samples a pixel and where the strips lie are added. Tags 318, 529 and 532 are
            rational: numerator and denominator in turn.
        order: `<` little-endian or `>` big-endian.
        zipped: Compressed by deflate.
    """
    height, width, channels = samples.shape
    bits = tags[258][0]
    planes = np.moveaxis(samples, -1, 0)[..., None] if tags.get(284) == [2] else samples[None]
    strips = [_packed(plane, bits, order) for plane in planes]
    if zipped:
        strips = [zlib.compress(strip) for strip in strips]
    offsets = [8 + sum(map(len, strips[:i])) for i in range(len(strips))]
    entries = {256: [width], 257: [height], 259: [8 if zipped else 1], 277: [channels], 278: [height], **tags}
    entries |= {258: [bits] * channels, 273: offsets, 279: [len(strip) for strip in strips]}
    return _file(b"".join(strips), entries, order)


def png(
    rows: bytes, size: tuple[int, int], depth: int, colour: int, chunks: Sequence[tuple[bytes, bytes]] = ()
) -> bytes:
    """Packs a PNG.

    Args:
        rows: Unfiltered, each of whole bytes.
        size: (width, height).
        depth: Bits a sample.
        colour: PNG's colour type.
        chunks: Kind and content of those between the header and the pixels.
    """
    length = len(rows) // size[1]
    filtered = b"".join(b"\0" + rows[i : i + length] for i in range(0, len(rows), length))
    header = struct.pack(">IIBBBBB", *size, depth, colour, 0, 0, 0)
    parts = [(b"IHDR", header), *chunks, (b"IDAT", zlib.compress(filtered)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(_chunk(*part) for part in parts)


def packed_rows(samples: np.ndarray, bits: int) -> bytes:
    """(H, W, channels) integers as rows of whole bytes, the highest bit first; 16 bits big-endian."""
    if bits == 16:
        return samples.astype(">u2").tobytes()
    flat = samples.reshape(len(samples), -1, 1).astype(np.int64)
    single = (flat >> np.arange(bits - 1, -1, -1) & 1).astype(np.uint8)
    return np.packbits(single.reshape(len(samples), -1), axis=1).tobytes()


def _packed(plane: np.ndarray, bits: int, order: str) -> bytes:
    return plane.astype(f"{order}u2").tobytes() if bits == 16 else packed_rows(plane, bits)


def _file(pixels: bytes, entries: dict[int, Sequence[int]], order: str) -> bytes:
    pixels += b"\0" * (len(pixels) % 2)
    directory_at = 8 + len(pixels)
    extra_at = directory_at + 2 + 12 * len(entries) + 4
    directory, extra = struct.pack(f"{order}H", len(entries)), b""
    for tag, values in sorted(entries.items()):
        kind = RATIONAL if tag in (318, 529, 532) else LONG if tag in (273, 279) else SHORT
        raw = struct.pack(f"{order}{len(values)}{_FORMATS[kind]}", *values)
        place = raw.ljust(4, b"\0") if len(raw) <= 4 else struct.pack(f"{order}I", extra_at + len(extra))
        extra += raw if len(raw) > 4 else b""
        directory += struct.pack(f"{order}HHI", tag, kind, len(values) // (2 if kind == RATIONAL else 1)) + place
    start = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(f"{order}I", directory_at)
    return start + pixels + directory + b"\0\0\0\0" + extra


def _chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
