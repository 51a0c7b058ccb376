"""Tars far away are sets like those here: fetched once to be indexed, and read by parts."""

from __future__ import annotations

import pickle
import tarfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from encoding import encoded, tar
from PIL import Image

from mixsiam_hub.errors import DataError, ImageError
from mixsiam_hub.images import remote_tars
from mixsiam_hub.images.keyed import KeyedImages
from mixsiam_hub.images.load import load_image
from mixsiam_hub.images.remote import open_address, read_range
from mixsiam_hub.images.sources import open_source

fsspec = pytest.importorskip("fsspec", reason="needs the extra bulk")

BUCKET = "memory:///tars"


def picture(level: int) -> bytes:
    return encoded(Image.new("L", (4, 3), level))


def put(name: str, content: bytes) -> str:
    fsspec.filesystem("memory").pipe(f"/tars/{name}", content)
    return f"{BUCKET}/{name}"


@pytest.fixture(autouse=True)
def bucket() -> Iterator[None]:
    for number in range(3):
        members = {f"{number}{i}.png": picture(10 * number + i) for i in range(4)}
        put(f"{number}.tar", tar({f"{number}0.cls": b"dog", f"{number}0.txt": b"no image"} | members))
    yield
    fsspec.filesystem("memory").rm("/tars", recursive=True)


@pytest.fixture
def fetched(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The tars that were read from their start to their end."""
    addresses = []

    def note(address: str, *args: Any) -> Any:
        addresses.append(address)
        return open_address(address, *args)

    monkeypatch.setattr(remote_tars, "open_address", note)
    return addresses


class Endless:
    """A tar of empty files without an end."""

    header = tarfile.TarInfo("a.txt").tobuf()

    def seek(self, offset: int, /) -> int:
        return offset

    def read(self, size: int, /) -> bytes:
        return self.header[:size]


@pytest.mark.parametrize("error", [DataError, KeyboardInterrupt])
def test_where_one_fails_nobody_waits_for_the_others(
    monkeypatch: pytest.MonkeyPatch, error: type[BaseException]
) -> None:
    has_begun = threading.Event()

    @contextmanager
    def fetch(address: str) -> Iterator[Endless]:
        if address == f"{BUCKET}/0.tar":
            has_begun.wait()
            raise error
        has_begun.set()
        yield Endless()

    monkeypatch.setattr(remote_tars, "version", lambda address: (None, []))
    monkeypatch.setattr(remote_tars, "open_address", fetch)
    with pytest.raises(error):
        open_source([f"{BUCKET}/0.tar", f"{BUCKET}/1.tar"])


def test_they_are_read_in_any_order() -> None:
    images = pickle.loads(pickle.dumps(open_source(f"{BUCKET}/*.tar")))
    for place in (11, 0, 7, 4):
        level = 10 * (place // 4) + place % 4
        assert images[place].key == f"{BUCKET}/{place // 4}.tar#{level:02}.png"
        assert load_image(images[place].source).getpixel((0, 0))[0] == level
    assert [item.label for item in images] == 3 * ["dog", None, None, None]
    assert images.left_out == 3


def test_a_set_here_and_far_away_are_the_same_images(tmp_path: Any) -> None:
    for number in range(3):
        (tmp_path / f"{number}.tar").write_bytes(fsspec.filesystem("memory").cat(f"/tars/{number}.tar"))
    assert open_source(f"{BUCKET}/*.tar").identity == open_source(str(tmp_path)).identity


def test_a_tar_is_fetched_once_until_it_is_replaced(fetched: list[str]) -> None:
    addresses = [put(f"new-{number}.tar", tar({"0.png": picture(number), "0.cls": b"cat"})) for number in range(2)]
    first = open_source(addresses)
    assert sorted(fetched) == addresses
    again = open_source(addresses)
    assert len(fetched) == 2
    assert (again.identity, again.labels) == (first.identity, first.labels)
    put("new-1.tar", tar({"0.png": picture(1), "1.png": picture(2), "1.cls": b"dog"}))
    changed = open_source(addresses)
    assert fetched[2:] == [addresses[1]]
    assert [item.label for item in changed] == ["cat", None, "dog"]


def test_sheets_find_them_by_their_keys() -> None:
    source = KeyedImages().source(f"{BUCKET}/1.tar#12.png")
    assert load_image(source).getpixel((0, 0))[0] == 12


def test_one_that_cannot_be_had_is_named() -> None:
    cut = put("cut.tar", tar({"0.png": picture(0), "1.png": picture(1)})[:1556])
    with pytest.raises(DataError, match=r"cut\.tar is cut off"):
        open_source([f"{BUCKET}/0.tar", cut])
    with pytest.raises(DataError, match=r"absent\.tar cannot be read"):
        open_source(f"{BUCKET}/absent.tar")
    with pytest.raises(DataError, match=r"none\.tar: no image inside"):
        open_source(put("none.tar", tar({"0.txt": b"text"})))


def test_a_server_must_send_parts_of_files(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = put("whole.tar", tar({"0.png": picture(0)}))
    system = type(fsspec.filesystem("memory"))
    monkeypatch.setattr(system, "cat_file", lambda self, path, start, end: self.store[path].getvalue())
    with pytest.raises(DataError, match=r"whole\.tar .* sends no parts of files; copy it here"):
        open_source(whole)


def test_one_that_has_become_shorter_gives_an_image_that_cannot_be_read() -> None:
    item = open_source(f"{BUCKET}/0.tar")[3]
    put("0.tar", b"short")
    with pytest.raises(ImageError, match=r"0\.tar.* another length"):
        load_image(item.source, name=item.key)


def test_a_part_of_a_file() -> None:
    address = put("letters", b"abcdefgh")
    assert read_range(address, 2, 3) == b"cde"
    with open_address(address, start=2) as file:
        assert file.read(2) == b"cd"
        file.seek(6)
        assert file.read(9) == b"gh"
