"""Images to batches of pixels, decoded in threads while the batch before them is being used."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mixsiam_hub.errors import ImageError
from mixsiam_hub.images.load import ImageSource
from mixsiam_hub.images.preprocess import load_pixels
from mixsiam_hub.model.config import Preprocessing


@dataclass(frozen=True, eq=False)
class DecodedBatch:
    """Up to batch_size consecutive images, resized and cropped.

    Attributes:
        indices: (n,) int64, positions of the good images in the input, ascending.
        pixels: (n, S, S, 3) uint8 RGB.
        errors: Position of each bad image -> what is wrong with it.
    """

    indices: NDArray[np.int64]
    pixels: NDArray[np.uint8]
    errors: dict[int, ImageError]


def as_iterable(images: ImageSource | Iterable[ImageSource]) -> Iterable[ImageSource]:
    """Tells one image from many: whatever is no image by itself is taken as an iterable of images.

    An array is one image unless it has 4 dimensions, (N, H, W, 3). So (H, W, 3) is one colour image, never H grey ones.
    """
    if isinstance(images, np.ndarray):
        return images if images.ndim == 4 else [images]
    single = isinstance(images, str | bytes | os.PathLike | Image.Image) or hasattr(images, "read")
    if single or not isinstance(images, Iterable):
        return [cast(ImageSource, images)]
    return cast(Iterable[ImageSource], images)


def decode_batches(
    images: Iterable[ImageSource], pre: Preprocessing, *, batch_size: int, on_error: str, workers: int
) -> Iterator[DecodedBatch]:
    """Yields batches in the order of `images`, and decodes one batch ahead: at most 2 * batch_size images are held.

    Args:
        images: Sources as `load_image` takes them.
        pre: How they become pixels.
        batch_size: Images taken for one batch, good and bad.
        on_error: `raise` stops at the first bad image in order, `skip` reports it in its batch.
        workers: Decoding threads; Pillow decodes and resizes outside the interpreter's lock.

    Raises:
        ImageError: With `raise`.
    """
    numbered = enumerate(images)
    pool = ThreadPoolExecutor(workers, thread_name_prefix="mixsiam-decode")

    def submit() -> list[tuple[int, Future[Any]]]:
        return [(index, pool.submit(_load, index, image, pre)) for index, image in islice(numbered, batch_size)]

    try:
        current = submit()
        while current:
            following = submit()
            yield _gather(current, pre, on_error)
            current = following
    finally:
        pool.shutdown(cancel_futures=True)


def _load(index: int, image: ImageSource, pre: Preprocessing) -> NDArray[np.uint8]:
    try:
        return load_pixels(image, pre)
    except ImageError as error:
        if isinstance(image, str | os.PathLike):
            raise
        raise ImageError(f"image {index}: {error}") from error  # It has no name of its own.


def _gather(tasks: list[tuple[int, Future[Any]]], pre: Preprocessing, on_error: str) -> DecodedBatch:
    indices, pixels, errors = [], [], {}
    for index, task in tasks:
        try:
            pixels.append(task.result())
            indices.append(index)
        except ImageError as error:
            if on_error == "raise":
                raise
            errors[index] = error
    size = pre.input_px
    stacked = np.stack(pixels) if pixels else np.empty((0, size, size, 3), np.uint8)
    return DecodedBatch(np.array(indices, np.int64), stacked, errors)
