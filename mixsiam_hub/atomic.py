"""Files that appear whole or not at all: written beside their place under a name of their own, then renamed."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from mixsiam_hub.errors import OutputError


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
    # 40 characters: in UTF-8 a name may be longer in bytes than its place's 255.
    temporary = path.with_name(f".{path.name[:40]}.{secrets.token_hex(8)}.tmp")
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
