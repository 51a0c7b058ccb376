"""The keyed image stream: images in order, decoded ahead in threads, each batch with its keys, pixels and errors."""

from __future__ import annotations

import functools
import os
import queue
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, wait
from contextlib import suppress
from dataclasses import dataclass
from typing import cast

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mixsiam_hub.errors import ImageError
from mixsiam_hub.images.kinds import ImageSource
from mixsiam_hub.images.load import take
from mixsiam_hub.images.preprocess import DECODES, ImageFacts, load_pixels_and_facts
from mixsiam_hub.images.sources import Item
from mixsiam_hub.model.config import Preprocessing

Pixels = NDArray[np.uint8]
_Loaded = tuple[Pixels, ImageFacts]
_Outcome = Future["_Loaded | ImageError"]
_WAIT_S = 1.0


@dataclass(frozen=True, eq=False)
class DecodedBatch:
    """Up to batch_size consecutive images, resized and cropped.

    Attributes:
        indices: (n,) int64, positions of the good images in the input, ascending.
        keys: Names of the good images, n.
        pixels: (n, S, S, 3) uint8 RGB.
        errors: Position of each bad image -> what is wrong with it; `ImageError.image` is its key.
        facts: What the good images are, n.
    """

    indices: NDArray[np.int64]
    keys: list[str]
    pixels: Pixels
    errors: dict[int, ImageError]
    facts: list[ImageFacts]


def as_iterable(images: ImageSource | Item | Iterable[ImageSource | Item]) -> Iterable[ImageSource | Item]:
    """Tells one image from many: whatever is no image by itself is taken as an iterable of images.

    An array of numbers is one image unless it has 4 dimensions, (N, H, W, 3). So (H, W, 3) is one colour image, never H
    grey ones. An array of paths, and whatever else holds several, is many.
    """
    if isinstance(images, np.ndarray) and images.dtype.kind not in "OUS":
        return images if images.ndim == 4 else [images]
    one = isinstance(images, Item | str | bytes | bytearray | memoryview | os.PathLike | Image.Image | Mapping)
    if one or hasattr(images, "read") or hasattr(images, "read_bytes") or not isinstance(images, Iterable):
        return [cast(ImageSource, images)]
    return cast("Iterable[ImageSource | Item]", images)


def decode_batches(
    images: Iterable[ImageSource | Item],
    pre: Preprocessing,
    *,
    batch_size: int,
    workers: int,
    on_error: str = "skip",
    with_sha256: bool = False,
    decode: str = DECODES[0],
) -> Iterator[DecodedBatch]:
    """Yields batches in the order of `images`, decoded ahead: at most 2 * batch_size images are held.

    `images` is iterated in a thread of its own, so a batch is handed out as soon as its last image is decoded, however
    long the next one takes to come. What is live or may change (arrays, PIL images, file objects) is copied in that
    thread before the next image is asked for; paths and bytes are read by the decoding threads.

    Args:
        images: Items, or sources as `load_image` takes them, which go by their paths or their positions.
        pre: How they become pixels.
        batch_size: Images taken for one batch, good and bad.
        workers: Decoding threads; Pillow decodes and resizes outside the interpreter's lock.
        on_error: `raise` stops at the first bad image in order, `skip` reports it in its batch.
        with_sha256: The facts hold the sha256 of each encoded file.
        decode: One of `preprocess.DECODES`.

    Raises:
        ImageError: With `raise`, once the images before it were handed out.
        Exception: Whatever iterating `images` raises, likewise.
    """
    load = functools.partial(load_pixels_and_facts, pre=pre, with_sha256=with_sha256, decode=decode)
    decoded = _DecodeAhead(images, load, 2 * batch_size, workers)
    try:
        while True:
            batch: list[_Decoded] = []
            end: BaseException | None = None
            while len(batch) < batch_size and end is None:
                image = decoded.next()
                if isinstance(image, BaseException):
                    end = image
                elif isinstance(image.outcome, ImageError) and on_error == "raise":
                    end = image.outcome
                else:
                    batch.append(image)
            if batch:
                yield _stack(batch, pre)
                decoded.release(len(batch))
            if isinstance(end, StopIteration):
                return
            if end is not None:
                raise end
    finally:
        decoded.close()


@dataclass(frozen=True, eq=False)
class _Decoded:
    """One image's outcome: (S, S, 3) pixels and facts, or what is wrong with it."""

    index: int
    key: str
    outcome: tuple[Pixels, ImageFacts] | ImageError


class _DecodeAhead:
    """Iterates images in one thread and decodes them in others, in order, a bounded number at a time.

    The threads are daemons: an image or a source that hangs keeps neither Ctrl-C nor the end of the program waiting.
    """

    def __init__(
        self, images: Iterable[ImageSource | Item], load: Callable[..., _Loaded], held: int, workers: int
    ) -> None:
        self._load = load
        self._unstarted = workers
        self._slots = threading.Semaphore(held)
        self._tasks: queue.SimpleQueue[tuple[_Outcome, Item] | None] = queue.SimpleQueue()
        self._ordered: queue.SimpleQueue[tuple[int, str, _Outcome] | BaseException] = queue.SimpleQueue()
        self._is_closed = False
        _start(self._feed, iter(images))

    def next(self) -> _Decoded | BaseException:
        """Returns the next image in order, or what iterating ended with: StopIteration, or the source's own error."""
        # Python sees a signal that comes just before a wait only when that ends: so none is long.
        entry = None
        while entry is None:
            with suppress(queue.Empty):
                entry = self._ordered.get(timeout=_WAIT_S)
        if isinstance(entry, BaseException):
            return entry
        index, key, outcome = entry
        while not outcome.done():
            wait([outcome], _WAIT_S)
        return _Decoded(index, key, outcome.result())

    def release(self, count: int) -> None:
        """Makes room for more images."""
        self._slots.release(count)

    def close(self) -> None:
        """Stops the threads once they have finished what they are at."""
        self._is_closed = True
        self._slots.release()
        self._tasks.put(None)

    def _feed(self, images: Iterator[ImageSource | Item]) -> None:
        index = 0
        try:
            while self._slots.acquire() and not self._is_closed:
                item = _as_item(index, next(images))
                outcome: _Outcome = Future()
                try:
                    self._tasks.put((outcome, Item(item.key, take(item.source, name=item.key))))
                except ImageError as error:
                    outcome.set_result(named_error(item.key, error))
                self._ordered.put((index, item.key, outcome))
                if self._unstarted:  # One more for each image, so that few images start few threads.
                    self._unstarted -= 1
                    _start(self._work)
                index += 1
        except BaseException as error:  # The source's end, or its own error: raised again where the images are used.
            self._ordered.put(error)

    def _work(self) -> None:
        while (task := self._tasks.get()) and not self._is_closed:
            outcome, item = task
            try:
                outcome.set_result(self._load(item.source, name=item.key))
            except ImageError as error:
                outcome.set_result(named_error(item.key, error))
            except BaseException as error:  # A fault of ours, or no memory left: raised where the image is used.
                outcome.set_exception(error)
        self._tasks.put(None)  # For the next thread.


def _start(target: Callable[..., None], *arguments: object) -> None:
    threading.Thread(target=target, args=arguments, name="mixsiam-decode", daemon=True).start()


def _as_item(index: int, image: ImageSource | Item) -> Item:
    if isinstance(image, Item):
        return image
    return Item(os.fsdecode(image) if isinstance(image, str | os.PathLike) else f"image {index}", image)


def named_error(key: str, error: ImageError) -> ImageError:
    """Returns the error without the frames it passed: they hold pixels, and a run may keep thousands of errors."""
    named = ImageError(str(error))
    named.image = key
    return named


def _stack(batch: list[_Decoded], pre: Preprocessing) -> DecodedBatch:
    size = pre.input_px
    good = [(image, *image.outcome) for image in batch if not isinstance(image.outcome, ImageError)]
    pixels = np.empty((len(good), size, size, 3), np.uint8)
    for place, (_, decoded, _) in zip(pixels, good, strict=True):
        place[:] = decoded
    return DecodedBatch(
        indices=np.array([image.index for image, _, _ in good], np.int64),
        keys=[image.key for image, _, _ in good],
        pixels=pixels,
        errors={image.index: image.outcome for image in batch if isinstance(image.outcome, ImageError)},
        facts=[facts for _, _, facts in good],
    )
