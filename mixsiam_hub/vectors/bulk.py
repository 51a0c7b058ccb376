"""A run over any number of images into a folder of shards: it goes on where an earlier one was stopped."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from hashlib import sha256
from typing import TYPE_CHECKING

from mixsiam_hub.errors import ArgumentError, ImageError
from mixsiam_hub.images.kinds import ImageSource, Unreadable, path_or_bytes
from mixsiam_hub.untrusted import sha256_file
from mixsiam_hub.vectors.embed import model_label
from mixsiam_hub.vectors.shard_writer import FileState, Row, ShardWriter, open_shards
from mixsiam_hub.vectors.shards import DTYPES, ERRORS, ShardManifest

if TYPE_CHECKING:
    from mixsiam_hub.encoder import Batch, ImageEncoder
    from mixsiam_hub.images.sources import Item
    from mixsiam_hub.vectors.ray_engine import RayEncoder

_MISNAMED = Unreadable("its name is no Unicode text, which shards hold names as; rename the file")


@dataclass
class Tally:
    """How far a run is.

    Attributes:
        embedded: Images that became vectors.
        present: Images whose vectors were there.
        errors: Images that could not be read.
    """

    embedded: int = 0
    present: int = 0
    errors: int = 0


def embed_into(
    folder: str | os.PathLike[str],
    encoder: ImageEncoder | RayEncoder,
    images: Iterable[Item],
    *,
    model: str | None = None,
    dtype: str = "float32",
    by_content: bool = False,
    batch_size: int = 32,
    strict: bool = False,
    progress: Callable[[Tally], object] = lambda tally: None,
) -> Tally:
    """Embeds the images that have no vector in a folder yet, or were changed since; the others are not read.

    A kill costs half a minute of work; where the run ends by an error or a signal, what is done goes to the disk first.
    Bad images are listed in `_errors.jsonl`, a JSON object a line with `key` and `reason`, and tried again by the next
    run. A row whose image is bad now goes; rows of images that are not among these stay.

    Args:
        folder: Made where it does not exist; or an address, as `s3://bucket/vectors`.
        encoder: The encoder, or one whose batches a cluster computes.
        images: Of any length, iterated once, in another thread. One whose key is no Unicode is a bad image.
        model: What the encoder was opened by; None for the built-in one.
        dtype: What vectors are stored as: `float32` or `float16`.
        by_content: Read the files that have a vector, to tell by their sha256 whether they changed; else by their size
            and time. Images that are no files, as rows of Parquet, are always told by their sha256.
        batch_size: Images for one run of the network.
        strict: Stop at the first bad image.
        progress: Called after each batch.

    Raises:
        DataError: The folder holds other vectors, or a damaged shard; before any work.
        OutputError: It holds other files, cannot be written, is full, or another run is at it.
        ImageError: A bad image, with strict.
        ArgumentError: Another dtype, or a batch_size below 1.
        MissingExtraError: pyarrow, filelock or, for an address, fsspec is not installed.
    """
    if dtype not in DTYPES:
        raise ArgumentError(f"dtype is {dtype!r}; allowed are {', '.join(DTYPES)}")
    manifest = ShardManifest(encoder.fingerprint, encoder.variant, model_label(encoder, model), encoder.dim, dtype)
    tally = Tally()
    states: dict[str, FileState] = {}
    stopped: BaseException | None = None
    with (
        open_shards(folder, manifest, by_content=by_content) as shards,
        shards.place.replacing(ERRORS) as errors,
    ):

        def list_error(key: str, reason: str) -> None:
            errors.write(json.dumps({"key": key, "reason": reason}).encode() + b"\n")

        todo = _todo(images, shards, by_content, states, tally)
        try:
            for batch in encoder.embed_stream(
                todo, batch_size=batch_size, on_error="raise" if strict else "skip", with_sha256=True
            ):
                for key, row in _rows(batch, states):
                    shards.put(key, row)
                    tally.embedded += 1
                for error in batch.errors.values():
                    # What could not be had this time, as of a disk that is not there, keeps its row.
                    if states.get(error.image) != FileState():
                        states.pop(error.image, None)
                        shards.put(error.image, None)
                    tally.errors += 1
                    list_error(error.image, str(error))
                progress(tally)
        except BaseException as error:  # An error or a signal: first what is done goes to the disk.
            stopped = error
        shards.flush()
    if stopped:
        raise stopped
    return tally


def _todo(
    images: Iterable[Item], shards: ShardWriter, by_content: bool, states: dict[str, FileState], tally: Tally
) -> Iterator[Item]:
    """Yields the images to embed, and notes the state that each of them has before it is read."""
    for item in images:
        source = _MISNAMED if "\0" in item.key or not _is_unicode(item.key) else item.source
        with suppress(Exception):  # Pixels stay as they are; what cannot be read, decoding will say.
            source = path_or_bytes(source)
        state = _state(source, with_sha256=by_content and shards.knows(item.key))
        if not shards.claim(item.key, state):
            tally.present += 1
            continue
        states[item.key] = state
        yield replace(item, source=source)


def _is_unicode(key: str) -> bool:
    try:
        key.encode()
    except UnicodeEncodeError:  # It holds lone surrogates, which stand for bytes that are no UTF-8.
        return False
    return True


def _state(source: ImageSource, *, with_sha256: bool) -> FileState:
    """Returns what is known of an image's file; nothing of pixels, and of a file that cannot be read."""
    if isinstance(source, bytes):
        return FileState(len(source), None, sha256(source).hexdigest())
    if isinstance(source, str):
        with suppress(OSError, ValueError, ImageError):
            stat = os.stat(source)
            return FileState(stat.st_size, stat.st_mtime_ns, sha256_file(source, ImageError) if with_sha256 else None)
    return FileState()


def _rows(batch: Batch, states: dict[str, FileState]) -> Iterator[tuple[str, Row]]:
    for key, vector, facts in zip(batch.keys, batch.vectors, batch.facts, strict=True):
        state = replace(states.pop(key, FileState()), sha256=facts.sha256)
        yield key, Row(vector, facts.height, facts.width, state)
