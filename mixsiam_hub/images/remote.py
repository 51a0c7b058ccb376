"""Files that are far away, by their addresses (`s3://`, `gs://`, `hf://`, `https://`), read through fsspec."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from mixsiam_hub.errors import DataError, ImageError, missing_extra
from mixsiam_hub.images.kinds import MAX_IMAGE_BYTES
from mixsiam_hub.images.tar_headers import Reader
from mixsiam_hub.untrusted import parsing

_SKIPPED_AT_ONCE = 2**20
_VERSIONS = (
    "ETag",
    "etag",
    "md5Hash",
    "blob_id",
    "mtime",
    "created",
    "LastModified",
    "Last-Modified",
    "last_modified",
    "updated",
)
"""How the file systems of fsspec call what tells two versions of a file apart."""


@dataclass(frozen=True)
class RemoteImage:
    """An image far away, fetched when it is asked for.

    Attributes:
        address: Where it is.
    """

    address: str

    def read_bytes(self) -> bytes:
        """Fetches the encoded image.

        Raises:
            ImageError: It cannot be fetched, or is too long.
            MissingExtraError: fsspec is not installed.
        """
        with open_address(self.address, ImageError) as file:
            data = file.read(MAX_IMAGE_BYTES + 1)
        if len(data) > MAX_IMAGE_BYTES:
            raise ImageError(f"it has more than {MAX_IMAGE_BYTES} bytes, which is the most that is fetched")
        return data


class _Forward:
    """A file that is only ever read on, by as much as was asked for."""

    def __init__(self, file: Reader, start: int) -> None:
        self._file = file
        self._at = start

    def seek(self, offset: int, /) -> object:
        """Reads up to a position; where the file ends before, all later reads are empty."""
        while self._at < offset and self.read(min(offset - self._at, _SKIPPED_AT_ONCE)):
            pass
        return self._at

    def read(self, size: int, /) -> bytes:
        """Returns so many bytes, fewer only at the end."""
        parts = []
        while size and (part := self._file.read(min(size, _SKIPPED_AT_ONCE))):
            parts.append(part)
            size -= len(part)
            self._at += len(part)
        return b"".join(parts)


@contextmanager
def open_address(address: str, error: type[DataError | ImageError] = DataError, start: int = 0) -> Iterator[Reader]:
    """Opens a file to be read on.

    Args:
        address: Of the file.
        error: What to raise.
        start: Where reading begins, in bytes; what lies before is not fetched where the server sends parts of a file.

    Raises:
        DataError: Or of kind `error`: it is not there, may not be read, or needs a package that is not installed.
        MissingExtraError: fsspec is not installed.
    """
    with parsing(address, error), fsspec().open(address, "rb") as file:
        can_start = start > 0 and file.seekable()
        if can_start:
            file.seek(start)
        forward = _Forward(file, start if can_start else 0)
        forward.seek(start)
        yield forward


def read_range(address: str, start: int, size: int, error: type[DataError | ImageError] = ImageError) -> bytes:
    """Fetches a part of a file.

    Args:
        address: Of the file.
        start: Of the part, in bytes.
        size: Of the part, in bytes.
        error: What to raise.

    Raises:
        ImageError: Or of kind `error`: it cannot be fetched.
        MissingExtraError: fsspec is not installed.
    """
    with parsing(address, error):
        system, path = fsspec().core.url_to_fs(address)
        data: bytes = system.cat_file(path, start=start, end=start + size)
    if len(data) != size:
        raise error(f"{address} has another length by now, or its server sends no parts of files; copy it here")
    return data


def version(address: str) -> tuple[int | None, list[str]]:
    """Returns a file's length in bytes, None where the server does not say, and what changes when it is replaced.

    Raises:
        DataError: It is not there, may not be read, or needs a package that is not installed.
        MissingExtraError: fsspec is not installed.
    """
    with parsing(address, DataError):
        system, path = fsspec().core.url_to_fs(address)
        info = system.info(path)
    size = info.get("size")
    return size, [f"{name}={info[name]}" for name in ("size", *_VERSIONS) if info.get(name)]


def matches(address: str) -> list[str]:
    """Returns the addresses that one with `*` in it stands for, sorted; any other as it is.

    Raises:
        DataError: What is there cannot be listed.
        MissingExtraError: fsspec is not installed.
    """
    if "*" not in address:
        return [address]
    with parsing(address, DataError):
        system, pattern = fsspec().core.url_to_fs(address)
        return sorted(system.unstrip_protocol(path) for path in system.glob(pattern))


def fsspec() -> Any:
    """Returns the module fsspec.

    Raises:
        MissingExtraError: It is not installed.
    """
    try:
        import fsspec
    except ImportError:
        missing_extra("fsspec", "bulk")
    return fsspec
