"""Images as they are found are those of open_source, the first before the search ends; far ones come by address."""

from __future__ import annotations

import io
import itertools
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from encoding import encoded, tar
from PIL import Image

from mixsiam_hub.errors import DataError, ImageError, MissingExtraError
from mixsiam_hub.images.feed import count_source, stream_source
from mixsiam_hub.images.load import load_image
from mixsiam_hub.images.sources import open_source


def picture(level: int) -> bytes:
    return encoded(Image.new("L", (4, 3), level))


def shard(levels: range) -> bytes:
    return tar({f"{level}.png": picture(level) for level in levels})


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for level, name in enumerate(["in/b.png", "in/a/2.png", "in/a/1.png", "in/a.b/x.png", "in/c/d/e.png"]):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(picture(level))
    (tmp_path / "shards").mkdir()
    for number in range(2):
        (tmp_path / f"shards/{number}.tar").write_bytes(shard(range(10 * number, 10 * number + 3)))
    (tmp_path / "list.txt").write_text("in/b.png\n\nshards/1.tar\r\nin/a/1.png")
    return tmp_path


def pixels(items: Iterator[object]) -> list[tuple[str, int]]:
    return [(item.key, load_image(item.source).getpixel((0, 0))[0]) for item in items]


@pytest.mark.parametrize(
    "specs", [["in"], ["in/a", "in"], ["in/**/*.png"], ["shards"], ["shards/1.tar", "in/c"], ["list.txt"], ["."]]
)
def test_keys_and_order_are_those_of_the_index(specs: list[str], folder: Path) -> None:
    found = pixels(stream_source(specs))
    assert found == pixels(iter(open_source(specs)))
    assert count_source(specs) == len(found)


def test_images_are_counted_without_being_read(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("in/a/1.png").write_bytes(b"no image")
    Path("shards/0.tar").write_bytes(shard(range(3))[:1556])  # Cut off within its second image: it counts as none.
    assert count_source(["in", "shards"]) == 5 + 3
    assert count_source(["in", "-"]) is None
    assert count_source(["in", "memory://bucket/0.tar"]) is None
    with pytest.raises(DataError, match="'absent' matches no image"):
        count_source(["absent"])


def test_rows_of_parquet(folder: Path) -> None:
    pa = pytest.importorskip("pyarrow", reason="needs the extra bulk")
    pq = pytest.importorskip("pyarrow.parquet", reason="needs the extra bulk")
    for name in "ab":
        pq.write_table(pa.table({"scan": [picture(3), picture(4)]}), f"{name}.parquet")
    assert pixels(stream_source("*.parquet", "scan")) == pixels(iter(open_source("*.parquet", "scan")))
    assert count_source(["*.parquet"], "scan") == 4


def test_the_first_image_comes_before_the_search_has_ended(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    looked_into: list[str] = []
    scandir = os.scandir
    monkeypatch.setattr(os, "scandir", lambda path: looked_into.append(str(path)) or scandir(path))
    images = stream_source("in")
    assert next(images).key == "in/a/1.png"
    assert looked_into == ["in", "in/a"]
    assert len(list(images)) == 4


def test_standard_input_is_read_as_it_comes(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read_end, write_end = os.pipe()
    with os.fdopen(read_end) as stdin, os.fdopen(write_end, "wb", buffering=0) as writer:
        monkeypatch.setattr(sys, "stdin", stdin)
        images = stream_source("-")
        for name in ["in/b.png", "in/a/1.png", "in/b.png"]:  # What an endless list repeats is not remembered.
            writer.write(name.encode() + b"\n")
            assert next(images).key == name
        writer.close()
        assert next(images, None) is None


def test_endless_lists_do_not_end_before_use(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Endless(io.RawIOBase):
        def readline(self, size: int | None = -1) -> bytes:
            return b"in/b.png\n"

    monkeypatch.setattr(sys, "stdin", type("Stdin", (), {"buffer": Endless()}))
    assert len(list(itertools.islice(stream_source("-"), 1000))) == 1000


def test_what_cannot_be_read_is_an_item_that_fails(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("shards/0.tar").write_bytes(shard(range(3))[:1556])
    items = {item.key: item for item in stream_source(["shards", "in/b.png"])}
    good = [f"shards/1.tar#{level}.png" for level in (10, 11, 12)]
    assert list(items) == ["shards/0.tar#0.png", "shards/0.tar", *good, "in/b.png"]
    with pytest.raises(ImageError, match=r"^shards/0\.tar: is cut off or damaged"):
        load_image(items["shards/0.tar"].source, name="shards/0.tar")
    scandir = os.scandir

    def scan(path: str) -> object:
        if path == "in/a":
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", scan)
    *found, last = stream_source("in")
    assert [item.key for item in found] == ["in/a.b/x.png", "in/b.png", "in/c/d/e.png"]
    with pytest.raises(ImageError, match="in/a: cannot be searched: Permission denied"):
        load_image(last.source, name=last.key)


def test_a_wrong_name_is_said_before_the_work(folder: Path) -> None:
    with pytest.raises(DataError, match="'absent/' matches no image"):
        stream_source(["in", "absent/"])


@pytest.fixture
def far() -> Iterator[str]:
    """Addresses of fsspec's file system in memory."""
    fsspec = pytest.importorskip("fsspec", reason="needs the extra bulk")
    system = fsspec.filesystem("memory")
    for number in range(2):
        system.pipe(f"/bucket/{number}.tar", shard(range(10 * number, 10 * number + 3)))
    system.pipe("/bucket/one.png", picture(77))
    yield "memory://bucket"
    system.rm("/bucket", recursive=True)


def test_addresses_of_images_and_tars(far: str, folder: Path) -> None:
    shards = [
        (f"{far}/{number}.tar#{level}.png", level) for number in (0, 1) for level in range(10 * number, 10 * number + 3)
    ]
    assert pixels(stream_source([f"{far}/0.tar", f"{far}/1.tar"])) == shards
    assert [level for _, level in pixels(stream_source(f"{far}/*.tar"))] == [level for _, level in shards]
    Path("list.txt").write_text(f"in/b.png\n{far}/one.png\n")
    assert pixels(stream_source("list.txt")) == [("in/b.png", 0), (f"{far}/one.png", 77)]


def test_far_files_that_cannot_be_used_are_named(far: str) -> None:
    fsspec = pytest.importorskip("fsspec", reason="needs the extra bulk")
    system = fsspec.filesystem("memory")
    system.pipe("/bucket/cut.tar", shard(range(3))[:1556])
    for name, reason in [("cut.tar", "is cut off"), ("absent.tar", "cannot be read"), ("absent.png", "cannot be read")]:
        *_, last = stream_source(f"{far}/{name}")
        with pytest.raises(ImageError, match=rf"{name}.* {reason}"):
            load_image(last.source, name=last.key)
    (parquet,) = stream_source(f"{far}/a.parquet")
    with pytest.raises(ImageError, match="copy the file here"):
        load_image(parquet.source)
    with pytest.raises(DataError, match=r"one\.png: .*copy it here"):
        open_source(f"{far}/one.png")


def test_far_files_need_the_extra(far: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "fsspec", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'mixsiam-hub\[bulk\]'"):
        next(stream_source(f"{far}/0.tar"))
