"""Images by their keys."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import pytest
from PIL import Image

from mixsiam_hub.errors import ImageError
from mixsiam_hub.images.keyed import KeyedImages
from mixsiam_hub.images.load import load_image


def png(colour: str) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (3, 2), colour).save(file, "PNG")
    return file.getvalue()


def colour_of(key: str | Path) -> tuple[int, ...]:
    pixel = load_image(KeyedImages().source(str(key))).getpixel((0, 0))
    assert isinstance(pixel, tuple)
    return pixel


def test_a_path_is_itself(tmp_path: Path) -> None:
    (tmp_path / "a#b.png").write_bytes(png("red"))
    assert colour_of(tmp_path / "a#b.png") == (255, 0, 0)


def test_a_row_of_parquet_and_a_name_in_a_tar(tmp_path: Path) -> None:
    pa = pytest.importorskip("pyarrow", reason="needs the extra bulk")
    pq = pytest.importorskip("pyarrow.parquet", reason="needs the extra bulk")
    pq.write_table(pa.table({"image": [png("red"), png("blue")]}), tmp_path / "p.parquet")
    with tarfile.open(tmp_path / "t.tar", "w") as tar:
        for name in ("red", "blue"):
            member = tarfile.TarInfo(f"{name}#1.png")
            member.size = len(png(name))
            tar.addfile(member, io.BytesIO(png(name)))
    for key in (f"{tmp_path}/p.parquet#1", f"{tmp_path}/t.tar#blue#1.png"):
        assert colour_of(key) == (0, 0, 255)


@pytest.mark.parametrize("key", ["gone.png", "gone.parquet#1", "gone.tar#a.png", "gone.parquet#x"])
def test_what_is_gone_is_an_error_of_the_image(key: str, tmp_path: Path) -> None:
    with pytest.raises(ImageError):
        load_image(KeyedImages().source(str(tmp_path / key)))
