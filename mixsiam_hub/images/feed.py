"""Images as they are found, for what reads each once: the first comes before the search has ended."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import suppress

from mixsiam_hub.errors import DataError
from mixsiam_hub.images.finding import PARQUET_SUFFIX, STANDARD_INPUT, TAR_SUFFIX, Search, is_address, shard_suffix
from mixsiam_hub.images.kinds import MAX_IMAGE_BYTES, Unreadable
from mixsiam_hub.images.parquet import ParquetStore
from mixsiam_hub.images.remote import RemoteImage, open_address
from mixsiam_hub.images.sources import Item
from mixsiam_hub.images.tar import TarImage
from mixsiam_hub.images.tar_headers import read_members
from mixsiam_hub.images.tar_index import images_in
from mixsiam_hub.untrusted import open_regular


def stream_source(specs: str | Sequence[str], column: str | None = None) -> Iterator[Item]:
    """Yields the images that one or several inputs stand for, in the order and by the keys of `open_source`.

    What is held of them is the names in one line of folders; of a tar or a Parquet file, its own index. Other than with
    `open_source`, an input may be the address of an image or a tar, a list and standard input may go on for ever (so
    that what they repeat is repeated), and a folder or shard that cannot be read comes as an item of its name, which
    fails as a bad image does.

    Args:
        specs: As `open_source` takes them, or addresses that fsspec knows, as `s3://bucket/shard.tar`.
        column: The Parquet column of encoded images; None for `image`.

    Raises:
        DataError: There is nothing by the name of an input, said at once; or an input that stands for no image, said
            when it was searched.
        MissingExtraError: Parquet, and pyarrow is not installed; an address, and fsspec is not.
    """
    return _items(Search([specs] if isinstance(specs, str) else list(specs)), column)


def count_source(specs: Sequence[str], column: str | None = None) -> int | None:
    """Counts the images that `stream_source` yields, without reading one; shards that cannot be read count as none.

    Args:
        specs: As `stream_source` takes them.
        column: As there.

    Returns:
        How many; None where only reading tells: of standard input, and of a tar far away.

    Raises:
        DataError: As `stream_source`.
    """
    count = 0
    if STANDARD_INPUT in specs:
        return None
    for path in Search(specs).files(lists_once=False):
        suffix = shard_suffix(path)
        if suffix and is_address(path):
            return None
        with suppress(DataError):
            if suffix == TAR_SUFFIX:
                count += sum(1 for _ in _of_tar(path))
            else:
                count += len(ParquetStore([path], column)) if suffix == PARQUET_SUFFIX else 1
    return count


def _items(search: Search, column: str | None) -> Iterator[Item]:
    for path in search.files(lists_once=False):
        suffix = shard_suffix(path)
        try:
            if suffix == TAR_SUFFIX:
                yield from _of_remote_tar(path) if is_address(path) else _of_tar(path)
            elif suffix == PARQUET_SUFFIX:
                yield from _of_parquet(path, column)
            else:
                yield Item(path, RemoteImage(path) if is_address(path) else path)
        except DataError as error:
            yield Item(path, Unreadable(str(error).removeprefix(path).lstrip(": ")))
    for folder, reason in search.unreadable.items():
        yield Item(folder, Unreadable(f"cannot be searched: {reason}"))


def _of_parquet(path: str, column: str | None) -> Iterator[Item]:
    if is_address(path):
        raise DataError("Parquet is not read from far away; copy the file here and give its path")
    store = ParquetStore([path], column)
    for row in range(len(store)):
        yield store[row]


def _of_tar(path: str) -> Iterator[Item]:
    with open_regular(path, DataError) as file:
        size_bytes = os.fstat(file.fileno()).st_size
        for member in images_in(read_members(file, path, size_bytes)):
            yield Item(f"{path}#{member.name}", TarImage(path, member.offset, member.size))


def _of_remote_tar(address: str) -> Iterator[Item]:
    with open_address(address) as file:
        for member in images_in(read_members(file, address, None)):
            if member.size > MAX_IMAGE_BYTES:
                raise DataError(f"{address}: an image has {member.size} bytes; at most {MAX_IMAGE_BYTES} are fetched")
            file.seek(member.offset)
            data = file.read(member.size)
            if len(data) < member.size:
                raise DataError(f"{address} is cut off: it ends within {member.name!r}; fetch it again")
            yield Item(f"{address}#{member.name}", data)
