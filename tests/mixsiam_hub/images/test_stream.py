"""The stream hands out each image in order, under its key, as it was when its source gave it; no batch comes late."""

from __future__ import annotations

import gc
import hashlib
import io
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from encoding import encoded, photo
from PIL import Image, ImageSequence

from mixsiam_hub.errors import ImageError
from mixsiam_hub.images import load
from mixsiam_hub.images.load import load_image
from mixsiam_hub.images.preprocess import load_pixels
from mixsiam_hub.images.sources import Item
from mixsiam_hub.images.stream import DecodedBatch, as_iterable, decode_batches
from mixsiam_hub.model.config import Preprocessing

PRE = Preprocessing(8)
PATIENCE_S = 30


def flat(value: int) -> np.ndarray:
    return np.full((9, 11, 3), value, np.uint8)


def decoded(images: object, batch_size: int = 4, on_error: str = "raise", workers: int = 3) -> list[DecodedBatch]:
    return list(decode_batches(images, PRE, batch_size=batch_size, workers=workers, on_error=on_error))


def levels(batches: list[DecodedBatch]) -> list[int]:
    """The grey level of each flat image."""
    return [int(pixels[0, 0, 0]) for batch in batches for pixels in batch.pixels]


def follow(batches: Iterator[DecodedBatch], seen: list[int]) -> None:
    for batch in batches:
        seen += levels([batch])


def wait_until(holds: Callable[[], bool]) -> None:
    end = time.monotonic() + PATIENCE_S
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_order_keys_and_positions(tmp_path: Path) -> None:
    path = tmp_path / "five.png"
    Image.fromarray(flat(5)).save(path)
    images = [flat(0), Item("mine", flat(1), "a class"), encoded(Image.fromarray(flat(2))), flat(3), flat(4), path]
    batches = decoded(images)
    assert [batch.indices.tolist() for batch in batches] == [[0, 1, 2, 3], [4, 5]]
    keys = ["image 0", "mine", "image 2", "image 3", "image 4", str(path)]
    assert [key for batch in batches for key in batch.keys] == keys
    assert levels(batches) == [0, 1, 2, 3, 4, 5]
    assert [batch.pixels.shape for batch in batches] == [(4, 8, 8, 3), (2, 8, 8, 3)]
    assert decoded([]) == []


@pytest.mark.parametrize("workers", [1, 8])
def test_large_and_small_images_keep_their_order(workers: int) -> None:
    images = [np.full((600 if i % 3 == 0 else 9, 500, 3), i, np.uint8) for i in range(40)]
    assert levels(decoded(images, 7, workers=workers)) == list(range(40))


def test_a_batch_does_not_wait_for_the_images_of_the_next() -> None:
    received = threading.Event()
    came_in_time = []

    def source() -> Iterator[np.ndarray]:
        yield from map(flat, range(4))
        came_in_time.append(received.wait(PATIENCE_S))
        yield from map(flat, range(4, 6))

    batches = decode_batches(source(), PRE, batch_size=4, workers=2)
    assert levels([next(batches)]) == [0, 1, 2, 3]
    received.set()
    assert levels(list(batches)) == [4, 5]
    assert came_in_time == [True]


def test_a_source_that_raises_has_delivered_what_came_before() -> None:
    def source() -> Iterator[np.ndarray]:
        yield from map(flat, range(40))
        raise ConnectionError("the camera is gone")

    seen: list[int] = []
    with pytest.raises(ConnectionError, match="the camera is gone"):
        follow(decode_batches(source(), PRE, batch_size=16, workers=2), seen)
    assert seen == list(range(40))


def test_no_more_than_two_batches_are_held() -> None:
    pulled = 0

    def source() -> Iterator[np.ndarray]:
        nonlocal pulled
        for i in range(100):
            pulled += 1
            yield flat(i)

    batches = decode_batches(source(), PRE, batch_size=5, workers=2)
    next(batches)
    wait_until(lambda: pulled == 10)
    time.sleep(0.1)
    assert pulled == 10
    next(batches)  # Gives back the places of the first batch.
    wait_until(lambda: pulled == 15)
    batches.close()


def test_bad_images_are_skipped_and_named() -> None:
    images = [flat(0), b"junk", flat(2), np.zeros((2, 2)), 7, flat(5)]
    batches = decoded([Item(f"key {i}", image) for i, image in enumerate(images)], on_error="skip")
    assert [batch.indices.tolist() for batch in batches] == [[0, 2], [5]]
    assert levels(batches) == [0, 2, 5]
    errors = batches[0].errors | batches[1].errors
    assert {index: error.image for index, error in errors.items()} == {1: "key 1", 3: "key 3", 4: "key 4"}
    assert str(errors[1]) == "key 1: is not an image that Pillow can read"
    assert str(errors[4]).startswith("key 4: it is a int")


def test_the_first_bad_image_raises_once_those_before_it_were_handed_out() -> None:
    seen: list[int] = []
    images = [*map(flat, range(5)), b"junk", b"junk"]
    with pytest.raises(ImageError, match=r"^image 5: ") as caught:
        follow(decode_batches(images, PRE, batch_size=4, workers=3, on_error="raise"), seen)
    assert seen == [0, 1, 2, 3, 4]
    assert caught.value.image == "image 5"


def test_each_frame_of_an_animation_is_itself() -> None:
    frames = [Image.fromarray(flat(20 * i)) for i in range(12)]
    data = encoded(frames[0], "WEBP", save_all=True, append_images=frames[1:], lossless=True)
    animation = Image.open(io.BytesIO(data))
    assert levels(decoded(ImageSequence.Iterator(animation))) == [20 * i for i in range(12)]


def test_a_buffer_that_its_owner_fills_again() -> None:
    def source() -> Iterator[np.ndarray]:
        buffer = flat(0)
        for i in range(12):
            buffer[:] = i
            yield buffer

    assert levels(decoded(source())) == list(range(12))


def test_a_file_that_its_owner_closes_or_fills_again() -> None:
    def source() -> Iterator[io.BytesIO]:
        shared = io.BytesIO()
        for i in range(12):
            shared.seek(0)
            shared.truncate()
            Image.fromarray(flat(i)).save(shared, "PNG")
            yield shared
            with io.BytesIO(shared.getvalue()) as file:
                yield file

    assert levels(decoded(source())) == [i // 2 for i in range(24)]


def test_a_pil_image_that_its_owner_closes_or_paints() -> None:
    def source() -> Iterator[Image.Image]:
        for i in range(6):
            with Image.open(io.BytesIO(encoded(Image.fromarray(flat(i))))) as image:
                yield image
            canvas = Image.fromarray(flat(i))
            yield canvas
            canvas.paste("white", (0, 0, *canvas.size))

    assert levels(decoded(source())) == [i // 2 for i in range(12)]


def living_pictures() -> int:
    gc.collect()
    return sum(issubclass(type(thing), Image.Image | np.ndarray) for thing in gc.get_objects())


def test_errors_keep_no_pixels() -> None:
    cut = encoded(photo(400, 300), "JPEG")
    cut = cut[: len(cut) // 2]
    before = living_pictures()
    errors = [error for batch in decoded([cut] * 40, on_error="skip") for error in batch.errors.values()]
    for read in (load_image, lambda data: load_pixels(data, PRE)):
        for _ in range(20):
            try:
                read(cut)
            except ImageError as error:
                errors.append(error)
    assert len(errors) == 80
    assert living_pictures() <= before + 2


def test_leaving_early_ends_the_threads() -> None:
    before = set(threading.enumerate())
    batches = decode_batches((flat(i % 250) for i in range(10**9)), PRE, batch_size=4, workers=3)
    next(batches)
    started = set(threading.enumerate()) - before
    batches.close()
    assert started
    for thread in started:
        thread.join(PATIENCE_S)
    assert not any(thread.is_alive() for thread in started)


def test_facts_are_of_the_upright_image_and_the_bytes_that_were_decoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    turned = Image.Exif()
    turned[0x0112] = 6
    data = encoded(photo(40, 30), "JPEG", exif=turned)
    path = tmp_path / "a.jpg"
    path.write_bytes(data)
    images = [path, data, io.BytesIO(data), flat(0), Image.fromarray(flat(1)), b"junk"]
    for at_once_bytes in (1 << 20, 100):
        monkeypatch.setattr(load, "_AT_ONCE_BYTES", at_once_bytes)
        (batch,) = decode_batches(images, PRE, batch_size=6, workers=2, with_sha256=True)
        assert [(fact.height, fact.width) for fact in batch.facts] == [(40, 30)] * 3 + [(9, 11)] * 2
        assert [fact.sha256 for fact in batch.facts] == [hashlib.sha256(data).hexdigest()] * 3 + [None] * 2
        (plain,) = decode_batches(images, PRE, batch_size=6, workers=2)
        np.testing.assert_array_equal(batch.pixels, plain.pixels)
        assert [fact.sha256 for fact in plain.facts] == [None] * 5


def test_a_file_of_holes_is_never_read_whole(tmp_path: Path) -> None:
    path = tmp_path / "holes.png"
    path.write_bytes(encoded(photo(), "BMP"))
    os.truncate(path, 1 << 40)
    (batch,) = decode_batches([path], PRE, batch_size=1, workers=1, with_sha256=True)
    assert "1099511627776 bytes, more than 2147483648" in str(batch.errors[0])
    assert levels(decoded([path])) != []


def test_one_image_or_many() -> None:
    one = [Path("a.png"), "a.png", b"abc", bytearray(b"abc"), memoryview(b"abc"), io.BytesIO(), {"bytes": b""}, photo()]
    one += [flat(0), flat(0)[..., 0], Item("a", "a.png")]
    for image in one:
        assert list(as_iterable(image)) == [image]
    several = [np.zeros((3, 5, 5, 3), np.uint8), np.array(["a", "b", "c"]), np.array(["a", "b", "c"], object)]
    several += [["a", "b", "c"], ("a", "b", "c"), iter("abc"), {"a": 1, "b": 2, "c": 3}.keys()]
    for images in several:
        assert len(list(as_iterable(images))) == 3


def test_an_array_of_paths(tmp_path: Path) -> None:
    for i in range(3):
        Image.fromarray(flat(i)).save(tmp_path / f"{i}.png")
    names = [str(tmp_path / f"{i}.png") for i in range(3)]
    for array in (np.array(names), np.array(names, object), np.array([Path(name) for name in names], object)):
        batches = decoded(array)
        assert levels(batches) == [0, 1, 2]
        assert batches[0].keys == names
