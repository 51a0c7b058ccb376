"""Whatever holds an image gives its pixels, read at once where it may change; only regular files are opened."""

from __future__ import annotations

import io
import os
import socket
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from encoding import encoded, photo
from needs import NAMED_PIPES, SOCKETS
from PIL import Image

from mixsiam_hub.errors import ImageError
from mixsiam_hub.images.kinds import ImageSource, describe
from mixsiam_hub.images.load import load_image, take

PHOTO = np.asarray(photo())


class Stream:
    """The least of a file object: it can be read, once."""

    def __init__(self, data: bytes | str) -> None:
        self._data: bytes | str | None = data

    def read(self) -> bytes | str | None:
        data, self._data = self._data, None
        return data


class Unseekable(io.BytesIO):
    def seek(self, *_: int) -> int:
        raise io.UnsupportedOperation


def archive(path: Path) -> zipfile.Path:
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("in/photo.png", encoded(photo()))
    return zipfile.Path(path, "in/photo.png")


KINDS: dict[str, Callable[[Path], ImageSource]] = {
    "str": lambda path: str(path),
    "numpy str": lambda path: np.array([str(path)])[0],
    "path": lambda path: path,
    "bytes": lambda path: path.read_bytes(),
    "bytearray": lambda path: bytearray(path.read_bytes()),
    "memoryview": lambda path: memoryview(path.read_bytes()),
    "file object": lambda path: io.BytesIO(path.read_bytes()),
    "least file object": lambda path: Stream(path.read_bytes()),
    "unseekable": lambda path: Unseekable(path.read_bytes()),
    "archive member": lambda path: archive(path.with_suffix(".zip")),
    "open archive member": lambda path: archive(path.with_suffix(".zip")).open("rb"),
    "mapping of bytes": lambda path: {"bytes": path.read_bytes(), "path": None},
    "mapping of both": lambda path: {"bytes": path.read_bytes(), "path": "elsewhere.png"},
    "mapping of a path": lambda path: {"bytes": None, "path": str(path)},
    "array": lambda path: PHOTO.copy(),
    "PIL image": lambda path: Image.open(path),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("is_taken", [False, True], ids=["now", "taken"])
def test_each_kind_of_source_gives_the_pixels(kind: str, is_taken: bool, tmp_path: Path) -> None:
    path = tmp_path / "photo.png"
    photo().save(path)
    source = KINDS[kind](path)
    if is_taken:
        source = take(source)
    np.testing.assert_array_equal(np.asarray(load_image(source)), PHOTO)


def test_what_was_taken_does_not_change_with_its_source() -> None:
    array, image, buffer = PHOTO.copy(), photo(), bytearray(encoded(photo()))
    file = io.BytesIO(buffer)
    taken = [take(source) for source in (array, image, buffer, memoryview(buffer), file, {"bytes": buffer})]
    array[:] = 0
    image.paste("black", (0, 0, *image.size))
    buffer[:] = bytes(len(buffer))
    file.close()
    for source in taken:
        np.testing.assert_array_equal(np.asarray(load_image(source)), PHOTO)


def test_a_path_and_bytes_stay_as_they_are(tmp_path: Path) -> None:
    data = encoded(photo())
    assert take(data) is data
    assert take(tmp_path / "absent.png") == str(tmp_path / "absent.png")
    assert take("absent.png") == "absent.png"


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "LA", "CMYK", "I;16"])
def test_a_pil_image_is_taken_upright_and_in_its_colours(mode: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    if mode == "I;16":
        image = Image.fromarray(np.arange(12, dtype=np.uint16).reshape(3, 4) * 5000)
    else:
        image = photo().convert(mode)
    data = encoded(image, "TIFF" if mode == "CMYK" else "PNG", exif=exif)
    opened = Image.open(io.BytesIO(data))
    taken = take(opened)
    opened.close()
    np.testing.assert_array_equal(np.asarray(load_image(taken)), np.asarray(load_image(data)))


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        (5, "it is a int; an image must be a path"),
        (Stream("text"), "the file object gives text; open it with mode 'rb'"),
        ({"image": b"abc"}, r"must hold an encoded image's 'bytes' or its 'path'; its keys are \['image'\]"),
        ({"bytes": None, "path": None}, "must hold an encoded image's 'bytes' or its 'path'"),
    ],
    ids=["number", "text", "other mapping", "empty mapping"],
)
def test_what_holds_no_image_is_refused_with_what_would(source: object, reason: str) -> None:
    for read in (take, load_image):
        with pytest.raises(ImageError, match=f"^pic: .*{reason}"):
            read(source, name="pic")


def test_a_closed_file_and_a_damaged_pil_image_are_image_errors() -> None:
    file = io.BytesIO(encoded(photo()))
    file.close()
    with pytest.raises(ImageError, match=r"^pic: .*closed file"):
        take(file, name="pic")
    with pytest.raises(ImageError, match=r"^pic: .*(broken|truncated)"):
        take(Image.open(io.BytesIO(encoded(photo())[:-100])), name="pic")


def test_names_of_sources(tmp_path: Path) -> None:
    member = archive(tmp_path / "a.zip")
    with (tmp_path / "b.png").open("wb") as file:
        assert describe(file) == f"image from a file object {tmp_path / 'b.png'}"
    assert describe(member).endswith("a.zip/in/photo.png")
    assert describe({"bytes": b"", "path": "c.png"}) == "c.png"
    assert describe({"bytes": b""}) == describe(bytearray()) == "image from bytes"


@NAMED_PIPES
@pytest.mark.parametrize("is_mapping", [False, True], ids=["path", "mapping"])
def test_a_fifo_is_refused_without_waiting_for_its_writer(is_mapping: bool, tmp_path: Path) -> None:
    path = tmp_path / "cam.jpg"
    os.mkfifo(path)
    with pytest.raises(ImageError, match=r"cam\.jpg: is a pipe, socket or device; it must be a regular file"):
        load_image({"bytes": None, "path": str(path)} if is_mapping else path)


@SOCKETS
def test_other_things_that_are_no_regular_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # A socket's name has to be short.
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind("cam.jpg")
        with pytest.raises(ImageError, match=r"cam\.jpg: is a pipe, socket or device"):
            load_image("cam.jpg")
    with pytest.raises(ImageError, match="null: is a pipe, socket or device"):
        load_image(os.devnull)
    with pytest.raises(ImageError, match="is a folder; it must be a regular file"):
        load_image(tmp_path)


def test_a_file_that_becomes_a_fifo_in_between_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    regular, path = tmp_path / "regular.png", tmp_path / "cam.jpg"
    photo().save(regular)
    os.mkfifo(path)
    seen_before = os.stat(regular)
    monkeypatch.setattr("mixsiam_hub.untrusted.os.stat", lambda _: seen_before)
    with pytest.raises(ImageError, match="is a pipe, socket or device"):
        load_image(path)


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("a" * 300 + ".png", "cannot be read: File name too long"),
        ("file.png/below.png", "cannot be read: Not a directory"),
        ("nul\0.png", "cannot be decoded: embedded null byte"),
        ("~tilde.png", "no such file"),
        ("", "image with an empty path: no such file"),
    ],
)
def test_paths_that_cannot_be_opened(path: str, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file.png").touch()
    with pytest.raises(ImageError, match=reason):
        load_image(path)
