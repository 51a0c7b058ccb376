"""Images in tars are read where they lie, by the names that they have there, and a hostile tar ends in an error."""

from __future__ import annotations

import io
import itertools
import os
import pickle
import tarfile
from pathlib import Path

import numpy as np
import pytest
from encoding import encoded
from PIL import Image

from mixsiam_hub.errors import DataError, ImageError
from mixsiam_hub.images.kinds import MAX_IMAGE_BYTES
from mixsiam_hub.images.load import load_image
from mixsiam_hub.images.sources import ImageSet, open_source
from mixsiam_hub.images.tar import TarImage
from mixsiam_hub.images.tar_headers import read_members

BLOCK = 512


def picture(level: int) -> bytes:
    return encoded(Image.new("L", (4, 3), level))


def write(path: Path, members: dict[str, bytes | int], form: int = tarfile.PAX_FORMAT) -> str:
    """A tar; an integer stands for a grey image of that level."""
    path.parent.mkdir(exist_ok=True)
    with tarfile.open(path, "w", format=form) as tar:
        for name, content in members.items():
            data = picture(content) if isinstance(content, int) else content
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return str(path)


def header(name: str = "a.png", size: int = 0, kind: bytes = tarfile.REGTYPE) -> bytes:
    info = tarfile.TarInfo(name)
    info.size, info.type = size, kind
    return info.tobuf(tarfile.GNU_FORMAT)


def levels(images: ImageSet) -> list[int]:
    return [load_image(item.source, name=item.key).getpixel((0, 0))[0] for item in images]


@pytest.mark.parametrize("form", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT])
def test_keys_are_file_and_name_whatever_the_format(form: int, tmp_path: Path) -> None:
    long = "/".join(["folder" * 5] * 5 + ["é.png"])
    path = write(tmp_path / "a.tar", {"x.png": 1, long: 2, "./y.JPG": 3}, form)
    images = open_source(path)
    assert [item.key for item in images] == [f"{path}#x.png", f"{path}#{long}", f"{path}#./y.JPG"]
    assert levels(images) == [1, 2, 3]


def test_shards_in_any_order_and_in_other_processes(tmp_path: Path) -> None:
    for shard in range(3):
        write(tmp_path / f"d/{shard}.tar", {f"{i}.png": 10 * shard + i for i in range(4)})
    images = open_source(str(tmp_path / "d"))
    assert levels(images) == [0, 1, 2, 3, 10, 11, 12, 13, 20, 21, 22, 23]
    assert levels(open_source(str(tmp_path / "d/[12].tar"))) == [10, 11, 12, 13, 20, 21, 22, 23]
    part = pickle.loads(pickle.dumps(images.take(np.array([11, 0, 5]))))
    assert levels(part) == [23, 0, 11]
    assert [item.key for item in part] == [images[place].key for place in (11, 0, 5)]


def test_classes_are_what_the_cls_of_each_sample_says(tmp_path: Path) -> None:
    members = {
        "0.jpg": 1,
        "0.cls": b"3\n",
        "1.cls": b"dog",
        "1.left.png": 2,
        "1.right.png": 3,
        "d/1.jpg": 4,
        "d/1.cls": b"3",
    }
    images = open_source(write(tmp_path / "a.tar", members))
    assert images.labels == ["3", "dog", "dog", "3"]
    assert [item.label for item in images] == images.labels
    assert images.left_out == 0


@pytest.mark.parametrize("missing", [{}, {"1.cls": b"-1"}, {"1.cls": b""}, {"1.cls": b"x" * 999}, {"2.cls": b"7"}])
def test_a_sample_without_a_class_leaves_the_set_without(missing: dict[str, bytes], tmp_path: Path) -> None:
    images = open_source(write(tmp_path / "a.tar", {"0.png": 0, "0.cls": b"1", "1.png": 1, **missing}))
    assert images.labels is None
    assert [item.label for item in images] == ["1", None]


def test_what_is_no_image_is_counted_and_what_is_hidden_is_not(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w") as tar:
        for name in ("a.png", "a.json", "._a.png", ".git/b.png", "a.png"):
            info = tarfile.TarInfo(name)
            info.size = len(picture(1))
            tar.addfile(info, io.BytesIO(picture(1)))
        for name, kind in [("d.png", tarfile.DIRTYPE), ("s.png", tarfile.SYMTYPE), ("h.png", tarfile.LNKTYPE)]:
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, "a.png"
            tar.addfile(info)
    images = open_source(str(path))
    assert [item.key for item in images] == [f"{path}#a.png"]
    assert images.left_out == 4  # a.json, the second a.png and the two links.


def test_files_with_holes_are_left_out_and_what_follows_is_found(tmp_path: Path) -> None:
    sparse = bytearray(header("hole.png", BLOCK, tarfile.GNUTYPE_SPARSE))
    sparse[482] = 1  # Its map goes on in one more block.
    sparse[148:156] = b" " * 8
    sparse[148:156] = b"%06o\0 " % sum(sparse)
    data = picture(9)
    path = tmp_path / "a.tar"
    path.write_bytes(
        bytes(sparse) + bytes(BLOCK) + b"h" * BLOCK + header("b.png", len(data)) + data.ljust(BLOCK, b"\0")
    )
    images = open_source(str(path))
    assert [item.key for item in images] == [f"{path}#b.png"]
    assert levels(images) == [9]
    assert images.left_out == 1


def test_the_identity_tells_tars_apart(tmp_path: Path) -> None:
    first = open_source(write(tmp_path / "x/a.tar", {"a.png": 1, "b.png": 2})).identity
    assert open_source(write(tmp_path / "y/a.tar", {"a.png": 1, "b.png": 2})).identity == first
    for name, members in [
        ("b.tar", {"a.png": 1, "b.png": 2}),
        ("a.tar", {"a.png": 1}),
        ("a.tar", {"a.png": 1, "c.png": 2}),
    ]:
        assert open_source(write(tmp_path / "z" / name, members)).identity != first


@pytest.mark.parametrize("size", [-1, -BLOCK, 2**62, 4 * BLOCK])
def test_a_size_that_cannot_be_ends_in_an_error(size: int, tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    path.write_bytes(header("ok.png") + header("bad.png", size) + bytes(2 * BLOCK))
    with pytest.raises(DataError, match=r"a\.tar is cut off or damaged: at byte 512 it says that 'bad\.png' has -?\d"):
        open_source(str(path))


@pytest.mark.parametrize("kind", [tarfile.GNUTYPE_LONGNAME, tarfile.XHDTYPE])
def test_a_name_of_any_length_is_not_read(kind: bytes, tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    with path.open("wb") as file:
        file.write(header("name", 2**40, kind))
        file.truncate(2**41)  # A file with holes: it takes no room.
    with pytest.raises(DataError, match=r"a\.tar is damaged: a name in it has 1099511627776 bytes"):
        open_source(str(path))


@pytest.mark.parametrize(
    "record", [b"0 size=1\n", b"-9 size=1\n", b"999 size=1\n", b"11 size=x1\n", b"12 size=-99\n", b"x", b"9" * 400]
)
def test_attributes_that_cannot_be_end_in_an_error(record: bytes, tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    path.write_bytes(header("pax", len(record), tarfile.XHDTYPE) + record.ljust(BLOCK, b"\0") + header() + bytes(1024))
    with pytest.raises(DataError, match=r"a\.tar (is|cannot)"):
        open_source(str(path))


def test_damaged_headers_end_in_an_error_or_in_other_members(tmp_path: Path) -> None:
    whole = bytearray(Path(write(tmp_path / "a.tar", {"a.png": 1, "é" * 60 + ".png": 2, "c.png": 3})).read_bytes())
    rng = np.random.default_rng(0)
    for _ in range(300):
        damaged = bytearray(whole)
        damaged[rng.integers(len(whole))] = rng.integers(256)
        try:
            members = list(read_members(io.BytesIO(damaged), "a.tar", len(damaged)))
        except DataError:
            continue
        assert all(0 < m.offset <= m.offset + m.size <= len(damaged) for m in members)
        assert all(a.offset < b.offset for a, b in itertools.pairwise(members))


def test_files_that_cannot_be_used_are_named(tmp_path: Path) -> None:
    whole = Path(write(tmp_path / "a.tar", {"a.png": 1, "b.png": 2})).read_bytes()
    for name, content in [
        ("junk", b"no tar at all " * 99),
        ("cut", whole[: BLOCK + 20]),
        ("head", whole[: BLOCK + 700]),
    ]:
        (tmp_path / f"{name}.tar").write_bytes(content)
        with pytest.raises(DataError, match=rf"{name}\.tar .*fetch it again"):
            open_source(str(tmp_path / f"{name}.tar"))
    with pytest.raises(DataError, match=r"texts\.tar: no image inside"):
        open_source(write(tmp_path / "texts.tar", {"a.txt": b"a"}))
    os.mkfifo(tmp_path / "pipe.tar")
    with pytest.raises(DataError, match=r"pipe\.tar is a pipe"):
        open_source(str(tmp_path / "pipe.tar"))


def test_a_tar_that_changed_gives_bad_images(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    item = open_source(write(path, {"a.png": 1}))[0]
    path.write_bytes(path.read_bytes()[: BLOCK + 10])
    with pytest.raises(ImageError, match=r"#a\.png: .*a\.tar has become shorter since it was searched"):
        load_image(item.source, name=item.key)
    path.unlink()
    with pytest.raises(ImageError, match="no such file"):
        load_image(item.source, name=item.key)
    with pytest.raises(ImageError, match="at most 2147483648 are read"):
        TarImage(str(path), 0, MAX_IMAGE_BYTES + 1).read_bytes()
