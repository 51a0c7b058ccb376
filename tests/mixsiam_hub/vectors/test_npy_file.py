"""A bare matrix and the list of its keys."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from mixsiam_hub import ImageEncoder
from mixsiam_hub.errors import OutputError
from mixsiam_hub.images.sources import Item
from mixsiam_hub.vectors.embed import embed_files
from mixsiam_hub.vectors.npy_file import matrix_writer, with_listable_keys
from mixsiam_hub.vectors.table import VectorFile

VECTORS = np.eye(3, 4, dtype=np.float32)


def make(*keys: str) -> VectorFile:
    return VectorFile(VECTORS, list(keys), "f", "v", "m")


def test_a_line_of_keys_for_each_row(tmp_path: Path) -> None:
    with matrix_writer(tmp_path / "my.v.npy") as write:
        write(make("a b.jpg", "日本/写真.jpg", os.fsdecode(b"caf\xe9.jpg")))
    np.testing.assert_array_equal(np.load(tmp_path / "my.v.npy", allow_pickle=False), VECTORS)
    assert (tmp_path / "my.v.keys.txt").read_bytes() == "a b.jpg\n日本/写真.jpg\n".encode() + b"caf\xe9.jpg\n"
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize("line_break", ["\n", "\r"])
def test_a_key_that_is_no_line_costs_its_own_image_alone(tmp_path: Path, line_break: str) -> None:
    pixels = np.zeros((8, 8, 3), np.uint8)
    images = [Item("a", pixels), Item(f"b{line_break}.jpg", pixels), Item("c", pixels)]
    encoder = ImageEncoder.from_pretrained(threads=1)
    with matrix_writer(tmp_path / "v.npy") as write:
        data, bad = embed_files(encoder, with_listable_keys(images))
        write(data)
    assert len(np.load(tmp_path / "v.npy", allow_pickle=False)) == 2
    assert (tmp_path / "v.keys.txt").read_text() == "a\nc\n"
    assert list(bad) == [images[1].key]
    assert "its name has a line break" in bad[images[1].key]


@pytest.mark.parametrize("taken", ["v.npy", "v.keys.txt"])
def test_a_place_is_tried_before_the_work(tmp_path: Path, taken: str) -> None:
    (tmp_path / taken).mkdir()
    with (
        pytest.raises(OutputError, match=f"{taken} cannot be written: it is a folder"),
        matrix_writer(tmp_path / "v.npy"),
    ):
        pytest.fail("the work began")
    assert [path.name for path in tmp_path.iterdir()] == [taken]
