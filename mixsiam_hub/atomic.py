"""Files and folders that appear whole or not at all: written under a name of their own, then renamed."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import BinaryIO

from mixsiam_hub.errors import OutputError

_PREFIX = ".mixsiam-"
"""Of the temporary folder that a new one is built in."""


@contextmanager
def replacing(path: str | os.PathLike[str], *, durable: bool = False) -> Iterator[BinaryIO]:
    """Gives a file to write, which takes the place of `path` if all goes well and is removed if not.

    The temporary file is made at once, so entering this is also the test whether `path` can be written. A link at
    `path` is replaced, never followed.

    Args:
        path: Where the file will be.
        durable: Return only once the content is on the disk, so that it outlives a power cut.

    Raises:
        OutputError: The place cannot be written, or the disk is full.
    """
    path = Path(path)
    if not path.name:
        raise OutputError(f"{path} cannot be written: it is a folder; give the name of a file")
    # 40 characters: in UTF-8 a name may be longer in bytes than its place's 255.
    temporary = path.with_name(f".{path.name[:40]}.{os.urandom(8).hex()}.tmp")
    try:
        with suppress(FileNotFoundError):
            os.lstat(path)  # Now and not at the rename, of a name too long.
        if path.is_dir():
            raise IsADirectoryError(None, "it is a folder; give the name of a file")
        with open(temporary, "xb") as file:  # Exclusively: never through a link that somebody put there.
            yield file
            if durable:
                file.flush()
                os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        if error.filename not in (None, str(temporary), str(path)):
            raise  # Of another file, which the caller had open meanwhile.
        raise OutputError(f"{path} cannot be written: {error.strerror or error}") from error
    finally:
        with suppress(OSError):  # It was never made; the error on its way says more.
            temporary.unlink(missing_ok=True)


def write_bytes(path: str | os.PathLike[str], content: bytes) -> None:
    """Writes a file whole or not at all.

    Raises:
        OutputError: It cannot be written.
    """
    with replacing(path) as file:
        file.write(content)


def write_text(path: str | os.PathLike[str], content: str) -> None:
    """Writes a file of UTF-8 whole or not at all.

    Raises:
        OutputError: It cannot be written.
    """
    write_bytes(path, content.encode())


def make_folder(path: str | os.PathLike[str]) -> None:
    """Makes a folder and those above it, where they do not exist.

    Raises:
        OutputError: It cannot be made.
    """
    try:
        Path(path).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{path} cannot be made a folder: {error.strerror or error}") from error


@contextmanager
def new_folder(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Gives an empty folder to fill, which becomes `path` if all goes well and is removed if not.

    It is made on the disk that `path` is on. Folders above `path` are made at the end.

    Args:
        path: A folder that does not exist, or is empty; `.` is one too.

    Raises:
        OutputError: The place is taken or cannot be written, or the disk is full.
    """
    target, above = _vacant(path)
    try:
        with TemporaryDirectory(prefix=_PREFIX, dir=above) as temporary:
            built = Path(temporary, "built")
            built.mkdir()  # With the permissions that folders get; those of the one around it are its maker's alone.
            yield built
            if target.is_dir():  # Filled and not replaced: somebody's shell may be in it.
                for entry in built.iterdir():
                    entry.rename(target / entry.name)
            else:
                make_folder(target.parent)
                built.rename(target)
    except OSError as error:
        if error.filename is not None and _PREFIX not in str(error.filename):
            raise  # Of another file, which the caller had open meanwhile.
        raise OutputError(f"{path} cannot be written: {error.strerror or error}") from error


def check_new_folder(path: str | os.PathLike[str]) -> None:
    """Refuses what `new_folder` would refuse, before there is anything to write; leaves nothing behind.

    Raises:
        OutputError: The place is taken or cannot be written.
    """
    _, above = _vacant(path)
    try:
        with TemporaryDirectory(prefix=_PREFIX, dir=above):
            pass
    except OSError as error:
        raise OutputError(f"{path} cannot be written: {error.strerror or error}") from error


def _vacant(path: str | os.PathLike[str]) -> tuple[Path, Path]:
    """Returns the absolute path of a place that is free, and the nearest folder that exists: the place or one above."""
    try:
        target = Path(path).resolve()
        if target.is_dir():
            if any(target.iterdir()):
                raise OutputError(f"{path} is a folder with files in it; choose another, or empty it")
            return target, target
        if target.exists():
            raise OutputError(f"{path} is a file; choose the name of a folder")
        return target, next(above for above in target.parents if above.exists())
    except (
        OSError,
        RuntimeError,
        ValueError,
    ) as error:  # Links in a circle; a null character.
        raise OutputError(f"{path} cannot be written: {getattr(error, 'strerror', None) or error}") from error
