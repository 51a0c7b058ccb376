"""Where a folder of shards lies: on this machine, or far away, as `s3://bucket/vectors`. Both take files whole."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from operator import itemgetter
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any, BinaryIO, Protocol

from mixsiam_hub.atomic import check_new_folder, make_folder, replacing
from mixsiam_hub.errors import DataError, OutputError, missing_extra
from mixsiam_hub.images.finding import is_address
from mixsiam_hub.images.remote import fsspec
from mixsiam_hub.untrusted import one_line, open_regular, parsing
from mixsiam_hub.vectors.parquet_file import pyarrow

Stamp = tuple[int, int]
"""What changes when a file is written: its size in bytes and the time, in nanoseconds."""


class Place(Protocol):
    """A folder of files, without folders in it. Its text is what it is called by."""

    def stamps(self) -> dict[str, Stamp]:
        """Returns the stamp of each file by its name, in their order; hidden files have none, nor has a new folder.

        Raises:
            DataError: It cannot be listed.
        """

    def stamp(self, name: str) -> Stamp | None:
        """Returns the stamp of a file; None where it is not there.

        Raises:
            DataError: The place cannot be asked.
        """

    def open(self, name: str) -> AbstractContextManager[BinaryIO]:
        """Opens a file, which can be read from anywhere.

        Raises:
            DataError: It cannot be opened.
        """

    def replacing(self, name: str) -> AbstractContextManager[BinaryIO]:
        """Gives a file to write, which takes the place of this one if all goes well; else nothing changes.

        Raises:
            OutputError: It cannot be written.
        """

    def check(self) -> None:
        """Refuses what cannot be made a folder; leaves nothing behind.

        Raises:
            OutputError: It cannot.
        """

    def writing(self) -> AbstractContextManager[None]:
        """Makes the folder, and keeps other runs out of it where the place can do that.

        Raises:
            OutputError: It cannot be made, or another run is at it.
            MissingExtraError: filelock is not installed.
        """


def place_of(folder: str | os.PathLike[str]) -> Place:
    """Returns the place that a path or an address leads to.

    Raises:
        DataError: An address that neither pyarrow nor fsspec knows, or one without access.
        MissingExtraError: pyarrow is not installed, or, for an address, fsspec.
    """
    pyarrow()
    return RemotePlace(folder) if isinstance(folder, str) and is_address(folder) else LocalPlace(Path(folder))


class LocalPlace:
    """A folder on this machine."""

    def __init__(self, path: Path) -> None:
        """Takes a folder that need not exist yet."""
        self.path = path

    def __str__(self) -> str:
        return str(self.path)

    def stamps(self) -> dict[str, Stamp]:
        """As `Place`."""
        if not self.path.is_dir():
            return {}
        with parsing(self.path, DataError):
            names = sorted(name for name in os.listdir(self.path) if not name.startswith("."))
        return {name: stamp for name in names if (stamp := self.stamp(name))}

    def stamp(self, name: str) -> Stamp | None:
        """As `Place`."""
        try:
            stat = (self.path / name).stat()
        except FileNotFoundError:
            return None
        return stat.st_size, stat.st_mtime_ns

    def open(self, name: str) -> AbstractContextManager[BinaryIO]:
        """As `Place`."""
        return open_regular(self.path / name, DataError)

    def replacing(self, name: str) -> AbstractContextManager[BinaryIO]:
        """As `Place`; what was written outlives a power cut."""
        return replacing(self.path / name, durable=True)

    def check(self) -> None:
        """As `Place`."""
        if not self.path.is_dir():
            check_new_folder(self.path)

    @contextmanager
    def writing(self) -> Iterator[None]:
        """As `Place`, by a lock that the system lets go of when this process ends."""
        make_folder(self.path)
        try:
            import filelock
        except ImportError:
            missing_extra("filelock", "bulk")
        lock = filelock.FileLock(self.path / ".lock", timeout=0)
        try:
            lock.acquire()
        except filelock.Timeout:
            raise OutputError(
                f"another run is writing to {self.path}; wait until it ends, or give another folder"
            ) from None
        except OSError as error:
            raise OutputError(f"{self.path} cannot be written: {error.strerror or error}") from error
        try:
            for leftover in self.path.glob(".*.tmp"):  # Of a run that was killed.
                leftover.unlink()
            yield
        finally:
            lock.release()


class RemotePlace:
    """A folder behind an address: s3:// and gs:// by pyarrow's own file systems, others by fsspec's.

    No lock is held there, since none would die with its process.
    """

    def __init__(self, address: str) -> None:
        """Connects; as `place_of`."""
        self._address = address.rstrip("/")
        with parsing(address, DataError):
            self._system, self._path = _file_system(self._address)

    def __str__(self) -> str:
        return self._address

    def stamps(self) -> dict[str, Stamp]:
        """As `Place`."""
        from pyarrow.fs import FileSelector

        with parsing(self._address, DataError):
            found = self._system.get_file_info(FileSelector(self._path, allow_not_found=True))
        files = sorted(((file.base_name, file) for file in found if file.is_file), key=itemgetter(0))
        return {name: (file.size, file.mtime_ns or 0) for name, file in files if not name.startswith(".")}

    def stamp(self, name: str) -> Stamp | None:
        """As `Place`."""
        with parsing(f"{self._address}/{name}", DataError):
            file = self._system.get_file_info(f"{self._path}/{name}")
        return (file.size, file.mtime_ns or 0) if file.is_file else None

    @contextmanager
    def open(self, name: str) -> Iterator[BinaryIO]:
        """As `Place`."""
        with parsing(f"{self._address}/{name}", DataError):
            file = self._system.open_input_file(f"{self._path}/{name}")
        with file:
            yield file

    @contextmanager
    def replacing(self, name: str) -> Iterator[BinaryIO]:
        """As `Place`: it is written here first, and sent when it is whole."""
        with TemporaryFile() as file:
            yield file
            file.seek(0)
            content = file.read()
            try:
                with self._system.open_output_stream(f"{self._path}/{name}") as stream:
                    stream.write(content)  # All at once: a stream that is closed after a part of it would keep that.
            except Exception as error:  # No list of what file systems raise would be complete.
                reason = one_line(error) or type(error).__name__
                raise OutputError(f"{self._address}/{name} cannot be written: {reason}") from error

    def check(self) -> None:
        """As `Place`: that the place can be listed. Whether it can be written shows when the manifest is."""
        self.stamps()

    @contextmanager
    def writing(self) -> Iterator[None]:
        """As `Place`; a bucket has no folders to be made."""
        yield


def _file_system(address: str) -> tuple[Any, str]:
    """Returns a pyarrow.fs.FileSystem, and the path in it."""
    from pyarrow import ArrowInvalid, fs

    try:
        system, path = fs.FileSystem.from_uri(address)
    except ArrowInvalid:  # Of a kind that it does not know.
        found, path = fsspec().core.url_to_fs(address)
        system = fs.PyFileSystem(fs.FSSpecHandler(found))
    return system, path
