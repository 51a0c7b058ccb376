"""Indices of tars far away: what is in them is found by fetching each once, and kept in the user's cache folder."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from threading import Event
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from mixsiam_hub.errors import DataError
from mixsiam_hub.images.kinds import MAX_IMAGE_BYTES
from mixsiam_hub.images.names import Names
from mixsiam_hub.images.remote import open_address, read_range, version
from mixsiam_hub.images.tar_headers import Reader
from mixsiam_hub.images.tar_index import TarIndex
from mixsiam_hub.user_cache import ArrayCache, cache_folder

AT_ONCE = 8
"""Tars that are fetched at a time; their servers are waited for, not the CPU."""
_FORM = "1"
"""Of what is kept; another when it changes."""


def index_remote(addresses: Sequence[str]) -> dict[str, TarIndex]:
    """Returns what is in each of these tars, with a progress bar on a terminal.

    Args:
        addresses: Of the tars. One that was indexed before, and not replaced since, is not fetched.

    Raises:
        DataError: One cannot be fetched, or not in parts; is damaged, or no tar.
        MissingExtraError: fsspec is not installed.
    """
    if not addresses:
        return {}
    given_up = Event()
    pool = ThreadPoolExecutor(min(AT_ONCE, len(addresses)))
    try:
        found = pool.map(partial(_index, given_up), addresses)
        bar = tqdm(found, "indexing", len(addresses), unit="tar", leave=False, disable=None)
        return dict(zip(addresses, bar, strict=True))
    finally:  # Or an error, or a signal: nobody waits then for the others, which may be long.
        given_up.set()
        pool.shutdown(cancel_futures=True)


class _UntilGivenUp:
    """A tar that is fetched for as long as it is wanted."""

    def __init__(self, file: Reader, given_up: Event) -> None:
        self._file = file
        self._given_up = given_up

    def seek(self, offset: int, /) -> object:
        """As the file's."""
        return self._file.seek(offset)

    def read(self, size: int, /) -> bytes:
        """As the file's, until the tar is no longer wanted."""
        if self._given_up.is_set():
            raise DataError("the search was given up")
        return self._file.read(size)


def _index(given_up: Event, address: str) -> TarIndex:
    cache = ArrayCache(cache_folder() / "tars")
    size_bytes, versions = version(address)
    key = (_FORM, address, *versions)
    if kept := cache.get(*key):
        names = Names(kept["joined"].tobytes(), kept["ends"])
        offsets, sizes, numbers = (kept[name] for name in ("offsets", "sizes", "numbers"))
        return TarIndex(names, offsets, sizes, numbers, kept["classes"].tolist(), int(kept["left_out"]))
    with open_address(address) as file:
        index = TarIndex.of(_UntilGivenUp(file, given_up), address, size_bytes)
    if (longest := int(index.sizes.max(initial=0))) > MAX_IMAGE_BYTES:
        raise DataError(f"{address}: an image has {longest} bytes; at most {MAX_IMAGE_BYTES} are fetched")
    if len(index.offsets):  # Said now, not image by image, each of which would fetch the whole tar.
        read_range(address, int(index.offsets[0]), 1, DataError)
    arrays: dict[str, NDArray[Any]] = {
        "joined": np.frombuffer(index.names.joined, np.uint8),
        "ends": index.names.ends,
        "offsets": index.offsets,
        "sizes": index.sizes,
        "numbers": index.numbers,
        "classes": np.array(index.classes, np.str_),
        "left_out": np.array(index.left_out),
    }
    cache.put(arrays, *key)
    return index
