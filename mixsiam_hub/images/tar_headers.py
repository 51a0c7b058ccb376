"""What lies where in a tar, from its headers alone: no header can make the reader wait, go back or fill the memory."""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

from mixsiam_hub.errors import DataError
from mixsiam_hub.untrusted import one_line, quote

MAX_EXTENSION_BYTES = 2**20
"""Of a header that only holds a long name or other attributes of the member behind it."""

_BLOCK = tarfile.BLOCKSIZE
_FILES = (tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.CONTTYPE)
_WITHOUT_DATA = (
    tarfile.LNKTYPE,
    tarfile.SYMTYPE,
    tarfile.CHRTYPE,
    tarfile.BLKTYPE,
    tarfile.DIRTYPE,
    tarfile.FIFOTYPE,
)
_PAX = (tarfile.XHDTYPE, tarfile.SOLARIS_XHDTYPE)
_SKIPPED = (tarfile.XGLTYPE, tarfile.GNUTYPE_LONGLINK)


class Reader(Protocol):
    """A binary file; that it can be read on is enough, as positions never decrease."""

    def seek(self, offset: int, /) -> object:
        """Goes to a position."""

    def read(self, size: int, /) -> bytes:
        """Returns so many bytes, fewer only at the end."""


@dataclass(frozen=True)
class Member:
    """What a tar holds under a name.

    Attributes:
        name: As the tar gives it.
        offset: Where its content begins, in bytes.
        size: Of its content, in bytes.
        is_file: Whether that content is a file's, whole: not a link, a device, or a file stored with holes.
    """

    name: str
    offset: int
    size: int
    is_file: bool


def read_members(file: Reader, path: str, size_bytes: int | None) -> Iterator[Member]:
    """Yields the members of a tar in order, folders left out; between two of them the file may be read on.

    Args:
        file: The tar, uncompressed.
        path: What to call it in errors.
        size_bytes: Its length; None where that is not known.

    Raises:
        DataError: It is damaged, no tar, or says of itself what cannot be.
    """
    at = 0
    long_name, pax = "", dict[str, str]()
    while True:
        file.seek(at)
        block = file.read(_BLOCK)
        if not block.strip(b"\0"):  # Zeros mark the end, and some writers leave even these out.
            return
        try:
            header = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
            size = 0 if header.type in _WITHOUT_DATA else int(pax.get("size", header.size))
        except Exception as error:  # Of a damaged number tarfile raises what its parser trips over.
            reason = f"{one_line(error)}; fetch it again, or unpack it if it is compressed"
            raise DataError(f"{path} cannot be read as a tar, at byte {at}: {reason}") from None
        start = at + _BLOCK
        if header.type == tarfile.GNUTYPE_SPARSE:
            start = _behind_map(file, block, start)
        if size < 0 or (size_bytes is not None and start + size > size_bytes):
            raise DataError(
                f"{path} is cut off or damaged: at byte {at} it says that {quote(header.name)} has {size} bytes, "
                "more than follow or fewer than none; fetch it again"
            )
        at = start + -(-size // _BLOCK) * _BLOCK
        if header.type == tarfile.GNUTYPE_LONGNAME:
            long_name = _text(_extension(file, start, size, path).partition(b"\0")[0])
        elif header.type in _PAX:
            pax = _attributes(_extension(file, start, size, path), path)
        elif header.type not in _SKIPPED:
            is_file = header.type in _FILES and not any(key.startswith("GNU.sparse") for key in pax)
            if header.type != tarfile.DIRTYPE:
                yield Member(pax.get("path") or long_name or header.name, start, size, is_file)
            long_name, pax = "", {}


def _behind_map(file: Reader, block: bytes, start: int) -> int:
    """Returns where the content of a file with holes begins: its map may go on in further blocks."""
    goes_on = block[482:483]
    while goes_on.strip(b"\0"):
        file.seek(start)
        goes_on = file.read(_BLOCK)[504:505]
        start += _BLOCK
    return start


def _extension(file: Reader, start: int, size: int, path: str) -> bytes:
    if size > MAX_EXTENSION_BYTES:
        raise DataError(f"{path} is damaged: a name in it has {size} bytes; at most {MAX_EXTENSION_BYTES} are read")
    file.seek(start)
    return file.read(size)


def _attributes(body: bytes, path: str) -> dict[str, str]:
    """Parses lines of the form `LENGTH KEY=VALUE`, the length that of the whole line, its end included."""
    found = {}
    while body.strip(b"\0"):
        digits = body[:10].partition(b" ")[0]
        length = int(digits) if digits.isdigit() else 0
        if not len(digits) + 3 <= length <= len(body):
            raise DataError(f"{path} is damaged: a header says that an attribute is {quote(digits)} bytes long")
        key, _, value = body[len(digits) + 1 : length - 1].partition(b"=")
        found[_text(key)] = _text(value.partition(b"\0")[0])
        body = body[length:]
    return found


def _text(encoded: bytes) -> str:
    return encoded.decode("utf-8", "surrogateescape")
